//! What of its connections a node writes down: the keys `log` and `traces` of the model file.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A share of all, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// Everything.
    pub const ALL: Self = Self(1_000_000);

    /// From a number between 0 and 1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        // The range keeps the product within a u32.
        (0.0..=1.0).contains(&share).then(|| Self((share * 1e6).round() as u32))
    }

    /// Whether one of all is taken, given a random number.
    #[must_use]
    pub fn takes(self, random: u64) -> bool {
        random % 1_000_000 < u64::from(self.0)
    }
}

/// Which connections have a line in the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lines {
    /// None; they are counted all the same.
    Off,
    /// Those that failed.
    Errors,
    /// Those that failed, and of the others the configured share.
    #[default]
    All,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Fields behind tabs.
    Text,
    /// One JSON object.
    Json,
}

/// The access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How its lines are written; without it, as the environment says.
    pub format: Option<LogFormat>,
    /// Which of the connections that succeed have a line.
    pub sample: Share,
    /// Which connections have a line, where their namespace is not named below.
    pub connections: Lines,
    /// By namespace of the pod that is enrolled here, at a gateway of the service.
    pub namespaces: BTreeMap<Arc<str>, Lines>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: None, sample: Share::ALL, connections: Lines::All, namespaces: BTreeMap::new() }
    }
}

impl LogConfig {
    /// Whether a connection of `namespace` has a line.
    #[must_use]
    pub fn wants(&self, namespace: Option<&str>, failed: bool, random: impl FnOnce() -> u64) -> bool {
        let named = namespace.and_then(|namespace| self.namespaces.get(namespace));
        match named.copied().unwrap_or(self.connections) {
            Lines::Off => false,
            Lines::Errors => failed,
            Lines::All => failed || self.sample == Share::ALL || self.sample.takes(random()),
        }
    }
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// `host:port` of the collector.
    pub collector: String,
    /// The path of the address.
    pub path: String,
    /// Which of the connections that begin here are traced; those that arrive follow their caller.
    pub sample: Share,
}

/// What of its connections a node writes down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Telemetry {
    /// The access log.
    pub log: LogConfig,
    /// Spans, where they are wanted.
    pub traces: Option<Traces>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn failures_have_a_line_whatever_the_share_and_successes_by_it() {
        let never = Share::new(0.0).unwrap();
        let named = BTreeMap::from([("quiet".into(), Lines::Off), ("loud".into(), Lines::All)]);
        let config = LogConfig { sample: never, connections: Lines::Errors, namespaces: named, format: None };
        // Namespace, failed, whether there is a line.
        for (namespace, failed, line) in [
            (Some("quiet"), true, false),
            (Some("quiet"), false, false),
            (Some("loud"), true, true),
            (Some("loud"), false, false),
            (Some("other"), true, true),
            (Some("other"), false, false),
            (None, true, true),
        ] {
            assert_eq!(config.wants(namespace, failed, || 0), line, "{namespace:?} {failed}");
        }
        assert!(LogConfig { sample: Share::ALL, ..config }.wants(Some("loud"), false, || unreachable!()));
    }

    #[test]
    fn a_share_takes_as_many_as_it_says() {
        let tenth = Share::new(0.1).unwrap();
        assert_eq!((0..1_000_000).filter(|random| tenth.takes(*random)).count(), 100_000);
        assert!((0..1_000_000).all(|random| Share::ALL.takes(random)));
        for wrong in [-0.1, 1.1, f64::NAN] {
            assert_eq!(Share::new(wrong), None);
        }
    }
}
