//! Reuse of inner tunnels without pinning a service to the one pod a gateway happened to pick.
//!
//! An inner tunnel ends at one pod. A pool therefore holds several, learns from the answers which pods they end at, gives
//! each pod its turn, and lets every tunnel go after a while so that pods which joined later are found.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    future::Future,
    rc::Rc,
    time::Duration,
};

use tokio::{sync::Mutex, task::spawn_local};

use super::{client::Tunnel, settings::STREAMS_PER_TUNNEL};
use crate::hbone::ConnError;
use crate::identity::{ExpectedPeer, SpiffeId};

/// A tunnel takes no new streams after this time.
const LIFETIME: Duration = Duration::from_secs(60);
/// Pods one worker keeps tunnels to, per service.
const MOST_TUNNELS: usize = 32;
/// Tunnels opened in vain, per pod expected, before the search for one not seen yet rests until a tunnel is replaced. A
/// gateway that draws at random misses one of five pods that often in fewer than one of 10,000 searches.
const FRUITLESS_PER_POD: u32 = 8;

/// What two connections must have in common to share an inner tunnel.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct InnerKey {
    /// Whose certificate the tunnel presents.
    pub identity: SpiffeId,
    /// The network the destination is in.
    pub network: std::sync::Arc<str>,
    /// Service and port, as the CONNECT names them.
    pub authority: String,
    /// Who the destination must prove to be.
    pub expected: ExpectedPeer,
}

#[derive(Default)]
struct Entry {
    tunnels: RefCell<Vec<Tunnel>>,
    /// Streams given to each pod, so that turns are even.
    turns: RefCell<HashMap<Rc<str>, u64>>,
    dial: Mutex<()>,
    searching: Cell<bool>,
    fruitless: Cell<u32>,
}

/// Inner tunnels by key.
#[derive(Default)]
pub struct InnerPool {
    entries: RefCell<HashMap<InnerKey, Rc<Entry>>>,
}

impl InnerPool {
    /// A tunnel for one more stream. `capacity` is the number of pods behind the service in that network; while fewer are
    /// known, further tunnels are opened in the background.
    ///
    /// # Errors
    /// The error of `dial`, when there is no tunnel to fall back to.
    pub async fn tunnel<F, D>(
        &self,
        key: &InnerKey,
        generation: u64,
        capacity: u32,
        dial: D,
    ) -> Result<Tunnel, ConnError>
    where
        D: Fn() -> F + 'static,
        F: Future<Output = Result<Tunnel, ConnError>> + 'static,
    {
        let entry = self.entry(key);
        let wanted = (capacity.max(1) as usize).min(MOST_TUNNELS);
        if let Some(tunnel) = entry.pick(generation) {
            if entry.wants_more(wanted) {
                entry.searching.set(true);
                spawn_local(search(entry.clone(), dial));
            }
            return Ok(tunnel);
        }
        let _dialling = entry.dial.lock().await;
        if let Some(tunnel) = entry.pick(generation) {
            return Ok(tunnel);
        }
        let tunnel = dial().await?;
        entry.tunnels.borrow_mut().push(tunnel.clone());
        Ok(tunnel)
    }

    /// Notes which pod answered on `tunnel`.
    pub fn learned(&self, key: &InnerKey, tunnel: &Tunnel, endpoint: &str) {
        tunnel.set_endpoint(endpoint);
        let entry = self.entry(key);
        let Some(endpoint) = tunnel.endpoint() else {
            return;
        };
        // A search that found a known pod again leaves a tunnel that only costs memory.
        let spare = entry.tunnels.borrow().iter().any(|other| {
            other.born() < tunnel.born()
                && other.endpoint().as_ref() == Some(&endpoint)
                && other.streams() < STREAMS_PER_TUNNEL as usize / 2
        });
        if spare && tunnel.opened() == 1 {
            tunnel.retire();
        }
        let mut turns = entry.turns.borrow_mut();
        // A pod that joins starts at the others' level, else it would get every connection until it caught up.
        let level = turns.values().copied().min().unwrap_or(0);
        *turns.entry(endpoint).or_insert_with(|| {
            entry.fruitless.set(0);
            level
        }) += 1;
    }

    fn entry(&self, key: &InnerKey) -> Rc<Entry> {
        if let Some(entry) = self.entries.borrow().get(key) {
            return entry.clone();
        }
        self.entries.borrow_mut().entry(key.clone()).or_default().clone()
    }

    /// Forgets tunnels that are gone and keys without any; returns the tunnels left.
    pub fn sweep(&self) -> usize {
        let mut left = 0;
        self.entries.borrow_mut().retain(|_, entry| {
            let mut tunnels = entry.tunnels.borrow_mut();
            tunnels.retain(Tunnel::is_usable);
            left += tunnels.len();
            !tunnels.is_empty() || Rc::strong_count(entry) > 1
        });
        left
    }
}

impl Entry {
    /// The tunnel whose pod had the fewest turns; among equals the one with the fewest streams.
    fn pick(&self, generation: u64) -> Option<Tunnel> {
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|tunnel| {
            if tunnel.generation() < generation || tunnel.born().elapsed() > LIFETIME {
                tunnel.retire();
                self.fruitless.set(0);
            }
            tunnel.is_usable()
        });
        let live: HashSet<Rc<str>> = tunnels.iter().filter_map(Tunnel::endpoint).collect();
        let mut turns = self.turns.borrow_mut();
        turns.retain(|endpoint, _| live.contains(endpoint));
        tunnels
            .iter()
            .filter(|tunnel| tunnel.streams() < tunnel.limit().min(STREAMS_PER_TUNNEL as usize))
            .min_by_key(|tunnel| {
                let turn = match tunnel.endpoint() {
                    Some(endpoint) => turns.get(&endpoint).copied().unwrap_or(0),
                    // A peer that does not say which pod it is: even out by tunnel.
                    None => tunnel.opened(),
                };
                (turn, tunnel.streams())
            })
            .cloned()
    }

    fn wants_more(&self, wanted: usize) -> bool {
        let tunnels = self.tunnels.borrow();
        let known: HashSet<Rc<str>> = tunnels.iter().filter_map(Tunnel::endpoint).collect();
        let unnamed = tunnels.iter().filter(|tunnel| tunnel.endpoint().is_none()).count();
        !self.searching.get()
            && self.fruitless.get() < FRUITLESS_PER_POD * wanted as u32
            && known.len() + unnamed < wanted
    }
}

/// Opens one more tunnel, in the hope that the gateway picks a pod not known yet.
async fn search<F, D>(entry: Rc<Entry>, dial: D)
where
    D: Fn() -> F,
    F: Future<Output = Result<Tunnel, ConnError>>,
{
    entry.fruitless.set(entry.fruitless.get() + 1);
    if let Ok(tunnel) = dial().await {
        entry.tunnels.borrow_mut().push(tunnel);
    }
    entry.searching.set(false);
}
