//! What this node found at the entry points of other networks: the last answer and the last failure of each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::hbone::{ConnError, Leg, LegTimes};

/// Most entry points remembered; a mesh with more shows the first ones.
const MEMORY: usize = 1024;

/// One entry point, as this node met it.
#[derive(Debug, Default)]
struct EntryPoint {
    /// When it last opened a stream.
    answered: Option<Instant>,
    /// How long TCP took when a tunnel to it was last made, in milliseconds.
    tcp_ms: Option<f64>,
    /// The same of TLS.
    tls_ms: Option<f64>,
    /// When it last failed.
    failed: Option<Instant>,
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
            change(all.entry(key).or_default());
        }
    }

    /// A stream was opened there, and these legs were walked to open it.
    pub(super) fn answered(&self, network: &str, address: &str, times: LegTimes) {
        let ms = |leg| times.of(leg).map(|micros| f64::from(micros) / 1e3);
        self.change(network, address, |entry| {
            entry.answered = Some(Instant::now());
            entry.failures = 0;
            entry.tcp_ms = ms(Leg::OuterTcp).or(entry.tcp_ms);
            entry.tls_ms = ms(Leg::OuterTls).or(entry.tls_ms);
        });
    }

    /// No stream was opened there.
    pub(super) fn failed(&self, network: &str, address: &str, error: &ConnError) {
        self.change(network, address, |entry| {
            entry.failed = Some(Instant::now());
            entry.failures += 1;
            entry.leg = Some(error.leg.name());
            entry.error = Some(error.reason.clone());
        });
    }

    /// All that are remembered; times of legs in milliseconds, and how many seconds ago it was.
    pub(super) fn list(&self) -> Vec<Value> {
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed().as_secs());
        let all = self.all();
        let rows = all.iter().map(|((network, address), entry)| {
            json!({
                "network": network, "address": address, "failures": entry.failures,
                "answered_ago": ago(entry.answered), "tcp_ms": entry.tcp_ms, "tls_ms": entry.tls_ms,
                "failed_ago": ago(entry.failed), "leg": entry.leg, "error": entry.error,
            })
        });
        rows.collect()
    }
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
        let seen = || points.list().into_iter().next().unwrap_or_default();
        assert_eq!(
            seen(),
            json!({"network": "n2", "address": "192.0.2.1:15008", "failures": 2, "answered_ago": null, "tcp_ms": null,
                "tls_ms": null, "failed_ago": 0, "leg": "outer-tcp", "error": "silence"})
        );
        let walk = Walk::default();
        walk.done(Leg::OuterTcp, Instant::now());
        points.answered("n2", "192.0.2.1:15008", walk.times());
        let first = seen();
        assert!(first["failures"] == 0 && first["answered_ago"] == 0, "{first}");
        assert!(first["tcp_ms"].is_number() && first["tls_ms"].is_null(), "{first}");
        points.answered("n2", "192.0.2.1:15008", LegTimes::default());
        assert_eq!(seen()["tcp_ms"], first["tcp_ms"], "a stream in a standing tunnel says nothing of TCP");
        for number in 0..MEMORY {
            points.answered("n3", &number.to_string(), LegTimes::default());
        }
        assert_eq!(points.list().len(), MEMORY);
    }
}
