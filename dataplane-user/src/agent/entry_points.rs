//! What this node found at the entry points of other networks: the last answer and the last failure of each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::hbone::{ConnError, Leg, LegTimes};

/// Most entry points remembered; a mesh with more shows the first ones.
const MEMORY: usize = 1024;

/// One entry point, as this node met it.
#[derive(Debug, Default, Clone, Serialize, PartialEq)]
pub(super) struct EntryPoint {
    network: String,
    address: String,
    /// When it last opened a stream, in seconds since 1970; 0 if never.
    answered: u64,
    /// How long TCP took when a tunnel to it was last made, in milliseconds.
    tcp_ms: Option<f64>,
    /// The same of TLS.
    tls_ms: Option<f64>,
    /// When it last failed, in seconds since 1970; 0 if never.
    failed: u64,
    /// At which leg that was.
    leg: Option<&'static str>,
    /// Why.
    error: Option<String>,
    /// Failures since the last answer.
    failures: u64,
}

/// All of them, of all workers. Only those that make tunnels come here.
#[derive(Debug, Default)]
pub struct EntryPoints(Mutex<BTreeMap<(String, String), EntryPoint>>);

impl EntryPoints {
    fn all(&self) -> MutexGuard<'_, BTreeMap<(String, String), EntryPoint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, network: &str, address: &str, change: impl FnOnce(&mut EntryPoint)) {
        let mut all = self.all();
        let key = (network.to_owned(), address.to_owned());
        if all.len() < MEMORY || all.contains_key(&key) {
            let new = || EntryPoint { network: key.0.clone(), address: key.1.clone(), ..EntryPoint::default() };
            change(all.entry(key.clone()).or_insert_with(new));
        }
    }

    /// A stream was opened there, and these legs were walked to open it.
    pub(super) fn answered(&self, network: &str, address: &str, times: LegTimes) {
        let ms = |leg| times.of(leg).map(|micros| f64::from(micros) / 1e3);
        self.change(network, address, |entry| {
            entry.answered = now();
            entry.failures = 0;
            entry.tcp_ms = ms(Leg::OuterTcp).or(entry.tcp_ms);
            entry.tls_ms = ms(Leg::OuterTls).or(entry.tls_ms);
        });
    }

    /// No stream was opened there.
    pub(super) fn failed(&self, network: &str, address: &str, error: &ConnError) {
        self.change(network, address, |entry| {
            entry.failed = now();
            entry.failures += 1;
            entry.leg = Some(error.leg.name());
            entry.error = Some(error.reason.clone());
        });
    }

    /// All that are remembered.
    pub(super) fn list(&self) -> Vec<EntryPoint> {
        self.all().values().cloned().collect()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::hbone::Walk;

    #[test]
    fn the_last_answer_and_the_last_failure_are_remembered() {
        let points = EntryPoints::default();
        points.failed("n2", "192.0.2.1:15008", &ConnError::retryable(Leg::OuterTls, "192.0.2.1:15008", "no"));
        points.failed("n2", "192.0.2.1:15008", &ConnError::retryable(Leg::OuterTcp, "192.0.2.1:15008", "silence"));
        let seen = |at: usize| points.list().get(at).cloned().unwrap_or_default();
        assert_eq!((seen(0).failures, seen(0).leg, seen(0).answered), (2, Some("outer-tcp"), 0));
        assert_eq!(seen(0).error.as_deref(), Some("silence"));
        let walk = Walk::default();
        walk.done(Leg::OuterTcp, Instant::now());
        points.answered("n2", "192.0.2.1:15008", walk.times());
        let first = seen(0);
        assert!(first.failures == 0 && first.answered > 0 && first.tcp_ms.is_some() && first.tls_ms.is_none());
        points.answered("n2", "192.0.2.1:15008", LegTimes::default());
        assert_eq!(seen(0).tcp_ms, first.tcp_ms, "a stream in a standing tunnel says nothing of TCP");
        for number in 0..MEMORY {
            points.answered("n3", &number.to_string(), LegTimes::default());
        }
        assert_eq!(points.list().len(), MEMORY);
    }
}
