//! Connections that are open now: what the admin interface lists, and where their bytes are counted while they live.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use super::{
    access_log::Record,
    counters::Counters,
    traffic::{Account, Traffic},
};
use crate::tunnel::copy::Counts;

/// Parts of the registry, so that workers seldom meet at one lock.
const SHARDS: usize = 16;

/// One open connection.
#[derive(Debug)]
pub struct Connection {
    /// What is known about it; its bytes and duration are those of [`Self::bytes`] and [`Self::since`].
    pub record: Record,
    /// When its bytes began to flow.
    pub since: Instant,
    counts: Counts,
    /// Whether the near socket is the destination's.
    inward: bool,
    account: Arc<Account>,
    flushed: Mutex<(u64, u64)>,
}

impl Connection {
    /// Bytes so far: towards the destination, and back.
    pub fn bytes(&self) -> (u64, u64) {
        let (sent, received) = (self.counts.sent(), self.counts.received());
        if self.inward { (received, sent) } else { (sent, received) }
    }

    /// Adds what has flowed since the last time to the metrics.
    fn flush(&self, counters: &Counters) {
        let mut flushed = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
        let (towards, back) = self.bytes();
        let new = (towards - flushed.0, back - flushed.1);
        *flushed = (towards, back);
        self.account.add_bytes(new.0, new.1);
        counters.add_bytes(new);
    }
}

/// All open connections of a node.
#[derive(Debug)]
pub struct Connections {
    shards: [Mutex<HashMap<u64, Arc<Connection>>>; SHARDS],
    next: AtomicU64,
    counters: Arc<Counters>,
    traffic: Arc<Traffic>,
}

impl Connections {
    /// None open.
    #[must_use]
    pub fn new(counters: Arc<Counters>, traffic: Arc<Traffic>) -> Self {
        Self { shards: Default::default(), next: AtomicU64::new(0), counters, traffic }
    }

    /// Where they are counted.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Registers a connection whose bytes begin to flow. `inward`: the near socket of its copy is the destination's.
    pub fn open(&self, record: &mut Record, inward: bool) -> Open<'_> {
        Counters::add(&self.counters.open);
        let account = self.traffic.opened(record);
        record.account = Some(account.clone());
        let connection = Arc::new(Connection {
            account,
            record: record.clone(),
            since: Instant::now(),
            counts: Counts::default(),
            inward,
            flushed: Mutex::default(),
        });
        let number = self.next.fetch_add(1, Relaxed);
        if let Some(mut shard) = self.shard(number) {
            shard.insert(number, connection.clone());
        }
        Open { all: self, number, connection }
    }

    /// Those open now, in no order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Connection>> {
        self.shards
            .iter()
            .flat_map(|shard| {
                shard.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect::<Vec<_>>()
            })
            .collect()
    }

    /// Brings the metrics up to date with the bytes of open connections.
    pub fn flush(&self) {
        for connection in self.list() {
            connection.flush(&self.counters);
        }
    }

    fn shard(&self, number: u64) -> Option<std::sync::MutexGuard<'_, HashMap<u64, Arc<Connection>>>> {
        let shard = self.shards.get(number as usize % SHARDS)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A connection is listed while this lives.
pub struct Open<'a> {
    all: &'a Connections,
    number: u64,
    connection: Arc<Connection>,
}

impl Open<'_> {
    /// Where its copy counts.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.connection.counts
    }

    /// Bytes so far: towards the destination, and back.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.connection.bytes()
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(mut shard) = self.all.shard(self.number) {
            shard.remove(&self.number);
        }
        self.connection.flush(&self.all.counters);
        self.all.counters.closed();
    }
}
