//! Istio's TCP metrics: which labels a connection has, and the counters behind them.
//!
//! Names and labels are those of Istio's standard metrics, so that dashboards made for them keep working.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

use super::access_log::{Direction, Record, Side};
use crate::hbone::{ConnError, Leg};

/// Label sets kept; a cluster has far fewer pairs of workloads that talk at one node.
const MAX_SERIES: usize = 100_000;
/// Bounds of the time from accept until bytes can flow, in seconds.
const SETUP_SECONDS: [f64; 12] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What Istio calls a connection's traffic labels, in the order they are written.
const LABELS: [&str; 26] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_region",
    "source_zone",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_region",
    "destination_zone",
    "connection_security_policy",
    "response_flags",
];

/// The label that is the same on all of these metrics.
const PROTOCOL: (&str, &str) = ("request_protocol", "tcp");

/// Values of the labels, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels([Arc<str>; LABELS.len()]);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in LABELS.iter().zip(&self.0) {
            (*name, &**value).encode(encoder.encode_label())?;
        }
        PROTOCOL.encode(encoder.encode_label())
    }
}

/// The counters of one set of labels.
#[derive(Debug)]
pub struct Series {
    opened: Counter,
    closed: Counter,
    failed: Counter,
    sent: Counter,
    received: Counter,
}

impl Series {
    /// Adds bytes that went towards the destination and back. Istio counts from the server's side: what it sent is the answer.
    pub fn add_bytes(&self, towards: u64, back: u64) {
        self.received.inc_by(towards);
        self.sent.inc_by(back);
    }
}

/// All traffic metrics of a node.
#[derive(Debug)]
pub struct Traffic {
    unknown: Arc<str>,
    none: Arc<str>,
    known: Mutex<HashMap<Labels, Arc<Series>>>,
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    setup: Family<Way, Histogram>,
}

/// The label of metrics that only tell which way a connection went.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Way(&'static str);

impl EncodeLabelSet for Way {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        ("direction", self.0).encode(encoder.encode_label())
    }
}

impl Traffic {
    /// Registers the metrics with nothing counted.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let traffic = Self {
            unknown: "unknown".into(),
            none: "-".into(),
            known: Mutex::default(),
            opened: Family::default(),
            closed: Family::default(),
            failed: Family::default(),
            sent: Family::default(),
            received: Family::default(),
            setup: Family::new_with_constructor(|| Histogram::new(SETUP_SECONDS)),
        };
        let istio = registry.sub_registry_with_prefix("istio_tcp");
        istio.register("connections_opened", "TCP connections opened", traffic.opened.clone());
        istio.register("connections_closed", "TCP connections closed", traffic.closed.clone());
        istio.register("connections_failed", "TCP connections that failed before bytes flowed", traffic.failed.clone());
        istio.register("sent_bytes", "Bytes sent in answers", traffic.sent.clone());
        istio.register("received_bytes", "Bytes received in requests", traffic.received.clone());
        registry.register("causeway_setup_seconds", "Time from accept until bytes could flow", traffic.setup.clone());
        traffic
    }

    /// Counts a connection whose bytes can flow now. The gateway role is nobody's source or destination and has counters of its own.
    pub fn opened(&self, record: &Record) -> Option<Arc<Series>> {
        self.setup.get_or_create(&Way(record.direction.name())).observe(record.setup.as_secs_f64());
        let series = self.series(record, self.none.clone())?;
        series.opened.inc();
        Some(series)
    }

    /// Counts the end of a connection that was opened, or one that failed before.
    pub fn ended(&self, record: &Record, was_open: bool) {
        let flags = record.error.as_ref().map_or_else(|| self.none.clone(), |error| Arc::from(flags(error)));
        if let Some(series) = self.series(record, flags) {
            if was_open {
                series.closed.inc()
            } else {
                series.failed.inc()
            };
        }
    }

    fn series(&self, record: &Record, flags: Arc<str>) -> Option<Arc<Series>> {
        let labels = self.labels(record, flags)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.get(&labels) {
            return Some(series.clone());
        }
        if known.len() >= MAX_SERIES {
            return None;
        }
        let counter = |family: &Family<Labels, Counter>| family.get_or_create(&labels).clone();
        let series = Arc::new(Series {
            opened: counter(&self.opened),
            closed: counter(&self.closed),
            failed: counter(&self.failed),
            sent: counter(&self.sent),
            received: counter(&self.received),
        });
        known.insert(labels, series.clone());
        Some(series)
    }

    fn labels(&self, record: &Record, flags: Arc<str>) -> Option<Labels> {
        let reporter = match record.direction {
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
            Direction::Gateway => return None,
        };
        let or_unknown = |text: &Arc<str>| if text.is_empty() { self.unknown.clone() } else { text.clone() };
        let side = |side: &Side| -> [Arc<str>; 10] {
            let principal = side.identity.as_ref().map_or_else(|| self.unknown.clone(), |id| Arc::from(id.to_string()));
            let Some(workload) = &side.workload else {
                let mut all = std::array::from_fn(|_| self.unknown.clone());
                all[4] = principal;
                if let Some(cluster) = &side.cluster {
                    all[7] = or_unknown(cluster);
                }
                return all;
            };
            let cluster = side.cluster.as_ref().unwrap_or(&workload.cluster);
            [
                or_unknown(&workload.workload_name),
                or_unknown(&workload.canonical_name),
                or_unknown(&workload.canonical_revision),
                or_unknown(&workload.namespace),
                principal,
                or_unknown(&workload.canonical_name),
                or_unknown(&workload.canonical_revision),
                or_unknown(cluster),
                or_unknown(&workload.locality.region),
                or_unknown(&workload.locality.zone),
            ]
        };
        let service = match &record.service {
            Some(service) => [&service.hostname, &service.namespace, &service.name].map(or_unknown),
            None => std::array::from_fn(|_| self.unknown.clone()),
        };
        let secured = record.source.identity.is_some() && record.destination.identity.is_some();
        let policy = if secured { "mutual_tls" } else { "unknown" };
        let values = [reporter.into()]
            .into_iter()
            .chain(side(&record.source))
            .chain(service)
            .chain(side(&record.destination))
            .chain([policy.into(), flags]);
        let values: Vec<Arc<str>> = values.collect();
        values.try_into().ok().map(Labels)
    }
}

/// Istio's word for what ended a connection.
fn flags(error: &ConnError) -> &'static str {
    match (error.leg, error.status) {
        (_, Some(401)) | (Leg::Accept, _) => "DENY",
        (Leg::OuterTls | Leg::InnerTls, _) => "TLS_FAILURE",
        (Leg::OuterTcp | Leg::Backend | Leg::Resolve | Leg::Connect, _) => "CONNECT",
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn a_connection_counts_once_when_it_opens_and_once_when_it_ends() {
        let mut registry = Registry::default();
        let traffic = Traffic::new(&mut registry);
        let mut record = Record::new(Direction::Outbound);
        let series = traffic.opened(&record);
        assert!(series.is_some());
        if let Some(series) = series {
            series.add_bytes(7, 11);
        }
        traffic.ended(&record, true);
        record.error = Some(ConnError::fatal(Leg::InnerTls, "web:80", "no"));
        traffic.ended(&record, false);
        let mut text = String::new();
        assert!(encode(&mut text, &registry).is_ok());
        let value = |name: &str, flags: &str| {
            text.lines()
                .find(|line| line.starts_with(name) && line.contains(&format!("response_flags=\"{flags}\"")))
                .and_then(|line| line.rsplit(' ').next())
                .map(str::to_owned)
        };
        assert_eq!(value("istio_tcp_connections_opened_total", "-").as_deref(), Some("1"), "{text}");
        assert_eq!(value("istio_tcp_connections_closed_total", "-").as_deref(), Some("1"));
        assert_eq!(value("istio_tcp_sent_bytes_total", "-").as_deref(), Some("11"));
        assert_eq!(value("istio_tcp_received_bytes_total", "-").as_deref(), Some("7"));
        assert_eq!(value("istio_tcp_connections_failed_total", "TLS_FAILURE").as_deref(), Some("1"));
        assert!(text.contains("reporter=\"source\""));
        assert!(text.contains("request_protocol=\"tcp\""));
    }

    #[test]
    fn the_gateway_role_is_no_reporter() {
        let traffic = Traffic::new(&mut Registry::default());
        assert!(traffic.opened(&Record::new(Direction::Gateway)).is_none());
    }
}
