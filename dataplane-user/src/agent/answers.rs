//! What the admin interface says about this node.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::{
    control_plane,
    enrolment::{PodInfo, Report},
    profile,
    reach::Reach,
    worker::Shared,
};
use crate::{
    observe::{admin::Topic, dump, http::Source, process},
    redirect::heap,
};

/// Everything a question can be answered from.
pub(super) struct Answers {
    pub(super) report: Arc<Mutex<Report>>,
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Registry,
    /// Tries what pods can reach of other networks.
    pub(super) reach: Reach,
    /// Notified when somebody asks the daemon to end.
    pub(super) quit: Arc<Notify>,
}

impl Answers {
    /// The answer to one request on the admin socket.
    pub(super) fn about(&self, topic: Topic) -> Value {
        match topic {
            Topic::Status => self.status(),
            Topic::Certificates => self.certificates(),
            Topic::ConfigDump => self.config_dump(),
            Topic::Connections => self.connections(),
        }
    }

    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> Value {
        self.shared.connections.list().iter().map(|one| dump::connection(one)).collect()
    }

    /// Certificates by identity: state, and begin and end of life in seconds since 1970.
    fn certificates(&self) -> Value {
        let states = self.shared.credentials.states();
        let rows = states.iter().map(|certificate| {
            let held = certificate.credential.as_ref();
            json!({
                "identity": certificate.id.to_string(),
                "state": certificate.state.to_string(),
                "generation": held.map(|credential| credential.generation),
                "not_before": held.map(|credential| dump::seconds(credential.not_before)),
                "not_after": held.map(|credential| dump::seconds(credential.not_after)),
            })
        });
        rows.collect()
    }

    fn status(&self) -> Value {
        self.shared.connections.flush();
        let ready = self.pending().is_empty();
        let pods = self.report();
        let list = |uid: &String, state: &str, more: Value| {
            let mut entry = json!({"uid": uid, "state": state});
            if let (Some(entry), Value::Object(more)) = (entry.as_object_mut(), more) {
                entry.extend(more);
            }
            entry
        };
        let mut listed: Vec<Value> = pods.enrolled.iter().map(|(uid, pod)| list(uid, "Enrolled", json!(pod))).collect();
        listed.extend(pods.releasing.iter().map(|(uid, pod)| list(uid, "Releasing", json!(pod))));
        listed.extend(pods.failed.iter().map(|(uid, why)| list(uid, "Failed", json!({ "error": why }))));
        let model = self.shared.model.load();
        let waiting = model.node.enrol.iter().map(|enrolment| &enrolment.workload);
        let waiting: Vec<&str> = waiting.filter(|uid| model.workload(uid).is_none()).map(|uid| &**uid).collect();
        json!({
            "ready": ready,
            "synced": model.synced,
            "waiting_for_workloads": waiting,
            "control_planes": control_plane::report(&self.shared.control_planes),
            "model": {
                "workloads": model.workload_count(),
                "services": model.service_count(),
                "policies": model.policies().count(),
                "generation": self.shared.model.generation(),
            },
            "pods": listed,
            "node_ports": pods.node_ports,
            "model_error": pods.model_error,
            "trouble": pods.trouble,
            "entry_points": self.shared.entry_points.list(),
            "look": &*pods.look.lock().unwrap_or_else(PoisonError::into_inner),
            "counters": self.shared.counters.read(),
            "kernel": pods.kernel.iter().copied().collect::<BTreeMap<_, _>>(),
        })
    }
}

impl Source for Answers {
    fn pending(&self) -> Vec<String> {
        let pods = self.report();
        // A pod that only the API asks for must not hold up what else the node does; it has an event of its own.
        let failed = pods.failed.iter().filter(|_| !pods.from_api);
        let mut pending: Vec<String> = failed.map(|(uid, why)| format!("{uid}: {why}")).collect();
        pending.extend(pods.trouble.clone());
        // Those of the API stay with the node's own service proxy until they can be taken.
        let untaken = pods.node_ports.error.iter().filter(|_| !pods.from_api);
        pending.extend(untaken.map(|why| format!("node ports: {why}")));
        if pods.incomplete {
            pending.push("the Kubernetes API has not told which pods belong to the mesh yet".to_owned());
        }
        if self.shared.model.load().node.exports.is_awaited() {
            pending.push("the Kubernetes API has not told which services clusters share yet".to_owned());
        }
        if !self.shared.model.load().synced {
            pending.push("the control plane has not told all it knows yet".to_owned());
        }
        pending
    }

    fn status(&self) -> Value {
        Answers::status(self)
    }

    fn reach(&self) -> Pin<Box<dyn Future<Output = Value> + Send + '_>> {
        let pods = self.report().enrolled.values().filter_map(PodInfo::askable).collect();
        self.reach.answer(pods)
    }

    fn metrics(&self) -> String {
        self.all_metrics()
    }

    fn config_dump(&self) -> Value {
        let model = self.shared.model.load();
        let open = self.shared.connections.list();
        let mut all = dump::model(&model);
        let held = self.shared.credentials.held();
        all.insert("certificates".to_owned(), held.iter().map(|credential| dump::certificate(credential)).collect());
        let pods = self.report();
        let state = |uid: &String, state: &str| {
            let known = model.workload(uid);
            let info = known.map(|workload| {
                json!({"name": workload.name, "namespace": workload.namespace, "serviceAccount": workload.service_account})
            });
            (uid.clone(), json!({"state": state, "info": info, "connections": dump::pod_connections(&open, uid)}))
        };
        let states: Map<String, Value> = (pods.enrolled.keys().map(|uid| state(uid, "Up")))
            .chain(pods.failed.keys().map(|uid| state(uid, "Pending")))
            .collect();
        all.insert("workloadState".to_owned(), states.into());
        all.insert("version".to_owned(), json!({"version": env!("CARGO_PKG_VERSION")}));
        all.insert(
            "config".to_owned(),
            json!({"network": model.node.network, "dumpedAt": dump::seconds(SystemTime::now())}),
        );
        all.into()
    }

    fn quit(&self) {
        self.quit.notify_one();
    }

    fn profile(&self, frequency: u32, duration: Duration) -> Result<Vec<u8>, String> {
        profile::take(frequency, duration)
    }

    fn memory(&self) -> Value {
        let heap = heap().map(|heap| {
            json!({
                "arenaBytes": heap.arenas,
                "arenaBytesUsed": heap.used,
                "arenaBytesFree": heap.free,
                "mappedBytes": heap.mapped,
                "mappings": heap.mappings,
            })
        });
        json!({"residentBytes": process::resident_bytes(), "allocator": heap})
    }
}
