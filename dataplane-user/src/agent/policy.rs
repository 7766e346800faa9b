//! Authorisation of what arrives, with a moment's patience for policies that are on their way.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tracing::info;

use super::worker::{Pod, Worker};
use crate::{
    decide::{self, PolicyContext},
    identity::SpiffeId,
    state::{Model, Workload},
};

/// How long a connection waits for a policy that its workload lists and the model does not hold.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether `peer` at `from` may reach `to`, an address of the workload of `pod`.
///
/// # Errors
/// Why not, in words for the log.
pub async fn authorise(
    worker: &Worker,
    pod: &Pod,
    (mut model, mut workload): (Arc<Model>, Arc<Workload>),
    peer: Option<&SpiffeId>,
    from: SocketAddr,
    to: SocketAddr,
) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let mut changes = worker.shared.model.subscribe();
    loop {
        let context = PolicyContext {
            identity: peer,
            source_ip: from.ip(),
            destination_ip: to.ip(),
            destination_port: to.port(),
        };
        let verdict = decide::policy(&model, &workload, &context);
        for name in &verdict.dry_run {
            info!("policy {name} would refuse {from} to {to} (dry run)");
        }
        if verdict.allowed {
            return Ok(());
        }
        if !verdict.pending || !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return Err(verdict.reason.to_string());
        }
        model = worker.model();
        match model.workload(&pod.uid) {
            Some(current) => workload = current.clone(),
            None => return Err(format!("the workload {} is no longer in the mesh model", pod.uid)),
        }
    }
}

/// Waits until a connection that was allowed is no longer, and says why. A policy on its way cuts nothing.
pub async fn withdrawn(
    worker: &Worker,
    pod: &Pod,
    peer: Option<&SpiffeId>,
    from: SocketAddr,
    to: SocketAddr,
) -> String {
    let mut changes = worker.shared.model.subscribe_authorization();
    let mut identity: Option<SpiffeId> = None;
    loop {
        let model = worker.model();
        if let Some(workload) = model.workload(&pod.uid) {
            let known = identity.get_or_insert_with(|| workload.identity.clone());
            if *known != workload.identity {
                return format!("the workload {} has another identity now: {}", pod.uid, workload.identity);
            }
            let context = PolicyContext {
                identity: peer,
                source_ip: from.ip(),
                destination_ip: to.ip(),
                destination_port: to.port(),
            };
            let verdict = decide::policy(&model, workload, &context);
            if !verdict.allowed && !verdict.pending {
                return verdict.reason.to_string();
            }
        }
        drop(model);
        if changes.changed().await.is_err() {
            // The daemon ends; so will the connection.
            return std::future::pending().await;
        }
    }
}
