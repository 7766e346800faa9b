//! The end of Causeway on a node or in a cluster: noticing it, and taking back what the API was told.

use std::time::Duration;

use ::kube::api::{ListParams, Patch, PatchParams};
use ::kube::core::PartialObjectMeta;
use ::kube::{Api, Error};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::pods::REDIRECTION;

/// A daemon that is told to end has no time for a server that does not answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pods listed at once.
const PAGE: u32 = 500;

/// Whether the DaemonSet is gone or going, or our rights are, which go with it. A server that does not answer says nothing:
/// then the kernel's state stays, and pods stay closed until the next daemon.
pub async fn is_removal(namespace: &str, name: &str) -> bool {
    let asked = async {
        let client = super::client().await.ok()?;
        let sets: Api<DaemonSet> = Api::namespaced(client, namespace);
        Some(match sets.get(name).await {
            Ok(set) => set.metadata.deletion_timestamp.is_some(),
            Err(Error::Api(status)) => matches!(status.code, 401 | 403 | 404),
            Err(_) => false,
        })
    };
    tokio::time::timeout(PATIENCE, asked).await.ok().flatten().unwrap_or(false)
}

/// Removes the annotation that says a pod is redirected from every pod of the cluster. Returns from how many.
///
/// # Errors
/// The API server's, with the pod it was about. Those before it are done.
pub async fn unmark_all() -> Result<usize, String> {
    let client = super::client().await?;
    let pods: Api<PartialObjectMeta<Pod>> = Api::all(client.clone());
    let mut parameters = ListParams::default().limit(PAGE);
    let mut done = 0;
    loop {
        let list = pods.list(&parameters).await.map_err(|error| format!("listing pods: {error}"))?;
        for pod in list.items {
            let metadata = pod.metadata;
            let marked = metadata.annotations.is_some_and(|annotations| annotations.contains_key(REDIRECTION));
            let (true, Some(name), Some(namespace)) = (marked, metadata.name, metadata.namespace) else { continue };
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let patch = json!({"metadata": {"uid": metadata.uid, "annotations": {REDIRECTION: null}}});
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => done += 1,
                // It has ended, or another has taken its name.
                Err(Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(format!("annotation {REDIRECTION} of {namespace}/{name}: {error}")),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(done),
        }
    }
}
