//! How busy each endpoint is with connections of one worker, and which failed a moment ago.
//!
//! Each worker counts its own: nothing is shared between threads, and what one worker sees is a fair sample of the node,
//! because the CPU that receives a SYN chooses the worker.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::decide::LoadView;

/// How long an endpoint that did not accept a connection is tried last.
const EJECTION: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Endpoints {
    open: HashMap<Arc<str>, u32>,
    failed: HashMap<Arc<str>, Instant>,
}

/// Load by workload uid; clones share it.
#[derive(Clone, Default)]
pub struct Load(Rc<RefCell<Endpoints>>);

/// One connection to an endpoint, counted while it lives.
pub struct Slot {
    load: Load,
    uid: Arc<str>,
}

impl Load {
    /// Counts one more connection to `uid`.
    pub fn take(&self, uid: &Arc<str>) -> Slot {
        let mut endpoints = self.0.borrow_mut();
        *endpoints.open.entry(uid.clone()).or_default() += 1;
        Slot { load: self.clone(), uid: uid.clone() }
    }

    /// Notes that `uid` accepted a connection.
    pub(super) fn accepted(&self, uid: &str) {
        self.0.borrow_mut().failed.remove(uid);
    }

    /// Notes that `uid` did not accept a connection.
    pub(super) fn failed(&self, uid: &Arc<str>) {
        let now = Instant::now();
        let mut endpoints = self.0.borrow_mut();
        endpoints.failed.retain(|_, at| now.duration_since(*at) < EJECTION);
        endpoints.failed.insert(uid.clone(), now);
    }
}

impl LoadView for Load {
    fn open(&self, uid: &str) -> u32 {
        self.0.borrow().open.get(uid).copied().unwrap_or(0)
    }

    fn ejected(&self, uid: &str) -> bool {
        self.0.borrow().failed.get(uid).is_some_and(|at| at.elapsed() < EJECTION)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut endpoints = self.load.0.borrow_mut();
        if let Some(count) = endpoints.open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                endpoints.open.remove(&self.uid);
            }
        }
    }
}
