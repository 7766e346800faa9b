//! What the API is told of pods: the annotation that says a pod is redirected, and events of those that cannot be.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::kube::api::{Api, Patch, PatchParams};
use ::kube::{Client, Error};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::complaints::{Complaints, Failed};
use super::pods::{ENABLED, Facts, REDIRECTION};

/// Pause before something that the API server did not take is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod whose annotation has to become something else.
#[derive(Debug, Clone)]
struct Due {
    namespace: String,
    name: String,
    enabled: bool,
    at: Instant,
    asked: bool,
}

/// Writes annotations and events, a few at a time, and tries again what was not taken.
pub(super) struct Marks {
    client: Client,
    complaints: Complaints,
    due: BTreeMap<String, Due>,
    /// What was written last; what the API shows may be older.
    done: BTreeMap<String, bool>,
    writing: JoinSet<(String, bool, Result<(), Error>)>,
}

impl Marks {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            complaints: Complaints::new(client.clone(), node),
            client,
            due: BTreeMap::new(),
            done: BTreeMap::new(),
            writing: JoinSet::new(),
        }
    }

    /// The annotation of a pod shall say that it is redirected, or be gone.
    pub(super) fn set(&mut self, pod: &Facts, enabled: bool) {
        if let Some(due) = self.due.get_mut(&pod.uid) {
            if due.enabled != enabled {
                (due.enabled, due.asked, due.at) = (enabled, false, Instant::now());
            }
            return;
        }
        // What was written or found once is not written again: should somebody take an annotation away, they mean it.
        if *self.done.entry(pod.uid.clone()).or_insert(pod.marked) == enabled {
            return;
        }
        let (namespace, name) = (pod.candidate.namespace.clone(), pod.name.clone());
        self.due.insert(pod.uid.clone(), Due { namespace, name, enabled, at: Instant::now(), asked: false });
    }

    /// Forgets pods that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.due.retain(|uid, _| is_there(uid));
        self.done.retain(|uid, _| is_there(uid));
        self.complaints.retain(is_there);
    }

    /// Starts what is due and takes in what has ended.
    pub(super) fn work(&mut self) {
        self.complaints.work();
        while let Some(done) = self.writing.try_join_next() {
            if let Ok((uid, enabled, result)) = done {
                self.written(uid, enabled, result);
            }
        }
        let now = Instant::now();
        for (uid, due) in self.due.iter_mut().filter(|(_, due)| !due.asked && due.at <= now) {
            due.asked = true;
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &due.namespace);
            let (uid, name, enabled) = (uid.clone(), due.name.clone(), due.enabled);
            self.writing.spawn(async move {
                let value = enabled.then_some(ENABLED);
                // With the uid in it the patch is refused for another pod that has taken the name.
                let patch = json!({"metadata": {"uid": uid, "annotations": {REDIRECTION: value}}});
                let parameters = PatchParams::default();
                let patch = Patch::Merge(&patch);
                let written = tokio::time::timeout(PATIENCE, api.patch_status(&name, &parameters, &patch)).await;
                let timed_out = || Error::Service("no answer".into());
                (uid, enabled, written.unwrap_or_else(|_| Err(timed_out())).map(drop))
            });
        }
    }

    fn written(&mut self, uid: String, enabled: bool, result: Result<(), Error>) {
        let Some(due) = self.due.get_mut(&uid) else { return };
        let pod = format!("{}/{}", due.namespace, due.name);
        match result {
            // What was asked for changed meanwhile.
            _ if due.enabled != enabled => due.asked = false,
            Ok(()) => {
                info!("{pod}: annotation {REDIRECTION} {}", if enabled { "says enabled" } else { "removed" });
                self.due.remove(&uid);
                self.done.insert(uid, enabled);
            }
            Err(Error::Api(status)) if status.code == 404 || status.code == 409 => {
                self.due.remove(&uid);
            }
            Err(error) => {
                warn!("{pod}: annotation {REDIRECTION} cannot be written yet: {error}");
                (due.asked, due.at) = (false, Instant::now() + AGAIN);
            }
        }
    }

    /// Tells whoever looks at a pod why it is not redirected, and what to do.
    pub(super) fn complain(&mut self, pod: &Facts, reason: &str, text: &str) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.candidate.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        let failed = Failed { reason, action: "Redirect", line: "redirected" };
        self.complaints.complain(about, failed, text);
    }

    /// A pod is redirected: what was said of it holds no more.
    pub(super) fn settled(&mut self, uid: &str) {
        self.complaints.settled(uid);
    }
}
