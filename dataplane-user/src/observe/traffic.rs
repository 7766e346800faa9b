//! What is counted about connections: Istio's TCP metrics with their labels, and the time each leg took.
//!
//! Names and labels are those of Istio's standard metrics, so that dashboards made for them keep working. A worker finds the
//! counters of a connection that looks like an earlier one in a table of its own thread; only a new kind of connection takes
//! a lock and makes texts.

use std::{
    cell::RefCell,
    collections::HashMap,
    fmt::{self, Write},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{
    histogram::Histogram,
    labels::{self, Labels, flags},
    record::{Direction, Record, Side},
};
use crate::{
    hbone::{Leg, LegTimes},
    identity::SpiffeId,
    state::{Service, Workload},
};

/// Label sets kept; a cluster has far fewer pairs of workloads that talk at one node.
const MAX_SERIES: usize = 100_000;
/// Pairs of clusters kept; past that they count as unknown, because a peer names its cluster itself.
const MAX_WAYS: usize = 1_024;
/// Kinds of connections a worker remembers.
const REMEMBERED: usize = 1_024;

/// The counters of one set of labels.
#[derive(Debug)]
pub struct Series {
    opened: Counter,
    closed: Counter,
    failed: Counter,
    sent: Counter,
    received: Counter,
}

/// What is counted by direction and clusters, the gateway role included.
#[derive(Debug, Default)]
struct Way {
    setup: Histogram,
    legs: [Histogram; Leg::ALL.len()],
    failed: [AtomicU64; Leg::ALL.len()],
}

impl Way {
    fn observe(&self, setup: u32, times: LegTimes) {
        self.setup.observe(setup);
        for (leg, micros) in times.walked() {
            if let Some(histogram) = self.legs.get(leg as usize) {
                histogram.observe(micros);
            }
        }
    }
}

/// Where one kind of connection is counted.
#[derive(Debug)]
pub struct Account {
    /// None for the gateway role, which is nobody's source or destination, and where there are too many label sets.
    series: Option<Arc<Series>>,
    way: Arc<Way>,
}

impl Account {
    /// Adds bytes that went towards the destination and back. Istio counts from the server's side: what it sent is the answer.
    pub fn add_bytes(&self, towards: u64, back: u64) {
        if let Some(series) = &self.series {
            series.received.inc_by(towards);
            series.sent.inc_by(back);
        }
    }
}

/// All that makes two connections count alike. Workloads and services are told by their place in memory.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    traffic: usize,
    direction: Direction,
    source: End,
    destination: End,
    service: usize,
    flags: &'static str,
}

#[derive(PartialEq, Eq, Hash)]
struct End {
    workload: usize,
    identity: Option<SpiffeId>,
    cluster: Option<Arc<str>>,
}

impl End {
    fn new(side: &Side) -> Self {
        Self { workload: place(&side.workload), identity: side.identity.clone(), cluster: side.cluster.clone() }
    }
}

fn place<T>(of: &Option<Arc<T>>) -> usize {
    of.as_ref().map_or(0, |of| Arc::as_ptr(of).addr())
}

/// An account, and what keeps the places that its kind is told by from being used again.
struct Remembered {
    account: Arc<Account>,
    _workloads: [Option<Weak<Workload>>; 2],
    _service: Option<Weak<Service>>,
}

thread_local! {
    static REMEMBER: RefCell<HashMap<Kind, Remembered>> = RefCell::default();
}

/// Direction, and the clusters of both sides.
type WayKey = (Direction, Arc<str>, Arc<str>);

/// All traffic metrics of a node.
#[derive(Debug)]
pub struct Traffic {
    number: usize,
    known: Mutex<HashMap<Labels, Arc<Series>>>,
    ways: Mutex<HashMap<WayKey, Arc<Way>>>,
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
}

impl Traffic {
    /// Registers the metrics with nothing counted.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let traffic = Self {
            number: NUMBER.fetch_add(1, Relaxed) as usize,
            known: Mutex::default(),
            ways: Mutex::default(),
            opened: Family::default(),
            closed: Family::default(),
            failed: Family::default(),
            sent: Family::default(),
            received: Family::default(),
        };
        let istio = registry.sub_registry_with_prefix("istio_tcp");
        istio.register("connections_opened", "TCP connections opened", traffic.opened.clone());
        istio.register("connections_closed", "TCP connections closed", traffic.closed.clone());
        istio.register("connections_failed", "TCP connections that failed before bytes flowed", traffic.failed.clone());
        istio.register("sent_bytes", "Bytes sent in answers", traffic.sent.clone());
        istio.register("received_bytes", "Bytes received in requests", traffic.received.clone());
        traffic
    }

    /// Counts a connection whose bytes can flow now, and how long it took until then.
    pub fn opened(&self, record: &Record) -> Arc<Account> {
        let account = self.account(record, labels::NONE);
        let setup = u32::try_from(record.setup.as_micros()).unwrap_or(u32::MAX);
        account.way.observe(setup, record.legs);
        if let Some(series) = &account.series {
            series.opened.inc();
        }
        account
    }

    /// Counts the end of a connection that was opened, or one that failed before.
    pub fn ended(&self, record: &Record) {
        let account = match (&record.account, &record.error) {
            (Some(account), None) => account.clone(),
            (_, Some(error)) => {
                let account = self.account(record, flags(error));
                if let Some(count) = account.way.failed.get(error.leg as usize) {
                    count.fetch_add(1, Relaxed);
                }
                account
            }
            // Neither opened nor failed: nothing to tell.
            (None, None) => return,
        };
        if let Some(series) = &account.series {
            if record.opened() {
                series.closed.inc()
            } else {
                series.failed.inc()
            };
        }
    }

    /// The account of connections like this one.
    fn account(&self, record: &Record, flags: &'static str) -> Arc<Account> {
        let kind = Kind {
            traffic: self.number,
            direction: record.direction,
            source: End::new(&record.source),
            destination: End::new(&record.destination),
            service: place(&record.service),
            flags,
        };
        REMEMBER.with_borrow_mut(|remember| {
            if let Some(known) = remember.get(&kind) {
                return known.account.clone();
            }
            let account = Arc::new(Account { series: self.series(record, flags), way: self.way(record) });
            if remember.len() >= REMEMBERED {
                remember.clear();
            }
            let weak = |side: &Side| side.workload.as_ref().map(Arc::downgrade);
            let known = Remembered {
                account: account.clone(),
                _workloads: [weak(&record.source), weak(&record.destination)],
                _service: record.service.as_ref().map(Arc::downgrade),
            };
            remember.insert(kind, known);
            account
        })
    }

    fn series(&self, record: &Record, flags: &'static str) -> Option<Arc<Series>> {
        let labels = Labels::of(record, flags)?;
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

    fn way(&self, record: &Record) -> Arc<Way> {
        let cluster = |side: &Side| {
            let known = side.cluster().filter(|cluster| !cluster.is_empty());
            known.cloned().unwrap_or_else(|| labels::UNKNOWN.into())
        };
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (record.direction, cluster(&record.source), cluster(&record.destination));
        if ways.len() >= MAX_WAYS && !ways.contains_key(&key) {
            key = (record.direction, labels::UNKNOWN.into(), labels::UNKNOWN.into());
        }
        ways.entry(key).or_default().clone()
    }

    /// Writes what is counted by direction and clusters.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, text: &mut String) -> fmt::Result {
        let ways: Vec<(WayKey, Arc<Way>)> = {
            let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
            ways.iter().map(|(key, way)| (key.clone(), way.clone())).collect()
        };
        let mut rows: Vec<(String, Arc<Way>)> = Vec::with_capacity(ways.len());
        for ((direction, source, destination), way) in ways {
            rows.push((way_labels(direction, &source, &destination)?, way));
        }
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        let name = "causeway_setup_seconds";
        write!(text, "# HELP {name} Time from accept until bytes could flow.\n# TYPE {name} histogram\n")?;
        for (labels, way) in rows.iter().filter(|(_, way)| !way.setup.is_empty()) {
            way.setup.write(text, name, labels)?;
        }
        let name = "causeway_leg_duration_seconds";
        write!(text, "# HELP {name} Time of a leg, for connections that walked it.\n# TYPE {name} histogram\n")?;
        for (labels, way) in &rows {
            for (leg, histogram) in Leg::ALL.iter().zip(&way.legs).filter(|(_, histogram)| !histogram.is_empty()) {
                histogram.write(text, name, &format!("leg=\"{leg}\",{labels}"))?;
            }
        }
        let name = "causeway_failures";
        write!(text, "# HELP {name} Failed connections by leg and clusters.\n# TYPE {name} counter\n")?;
        for (labels, way) in &rows {
            for (leg, count) in Leg::ALL.iter().zip(&way.failed) {
                writeln!(text, "{name}_total{{leg=\"{leg}\",{labels}}} {}", count.load(Relaxed))?;
            }
        }
        Ok(())
    }
}

/// The labels of a way, as they stand between braces.
fn way_labels(direction: Direction, source: &str, destination: &str) -> Result<String, fmt::Error> {
    let mut text = format!("direction=\"{}\"", direction.name());
    for (name, value) in [("source_cluster", source), ("destination_cluster", destination)] {
        write!(text, ",{name}=\"{}\"", labels::escaped(value))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
