//! The control planes a node follows: one thread of its own, so that a large push delays neither connections nor signals.

use std::{sync::Arc, thread, time::Duration};

use serde_json::{Value, json};
use tracing::info;

use super::{node::Failure, on_demand::standing};
use crate::{
    istio::{
        channel::Connector,
        xds_client::{Client, Handle},
        xds_settings::{Environment, servers},
    },
    redirect::return_memory,
    state::{ModelStore, NodeConfig, SourceId},
};

/// How often snapshots that readers have let go are freed.
const CLEAN: Duration = Duration::from_millis(250);

/// Changed objects after which free memory is given back.
const MANY: u64 = 5_000;

/// The addresses of the control planes that a node would follow.
///
/// # Errors
/// Settings that cannot work.
pub fn check(node: &NodeConfig, environment: &Environment) -> Result<Vec<String>, Failure> {
    let servers = servers(node, environment);
    servers.into_iter().map(|server| Ok(Connector::new(&server.channel)?.address().to_owned())).collect()
}

/// Follows every control plane that the node is given; nothing is decided before the own one has told all it knows.
///
/// # Errors
/// Settings that cannot work, or no thread.
pub fn start(node: &NodeConfig, store: &Arc<ModelStore>, environment: &Environment) -> Result<Vec<Handle>, Failure> {
    let servers = servers(node, environment);
    if servers.is_empty() {
        return Ok(Vec::new());
    }
    let mut clients = Vec::new();
    let mut handles = Vec::new();
    for server in servers {
        info!("following {} at {}", server.source, server.channel.address);
        let (client, handle) = Client::new(server, store.clone())?;
        clients.push(client);
        handles.push(handle);
    }
    store.wait_for(SourceId::CONTROL_PLANE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let store = store.clone();
    let on_demand = handles.clone();
    thread::Builder::new().name("control-plane".into()).spawn(move || {
        runtime.block_on(async move {
            for client in clients {
                tokio::spawn(client.run());
            }
            let mut clean = tokio::time::interval(CLEAN);
            let (mut trimmed_at, mut seen) = (0, 0);
            let mut looked_at = 0;
            loop {
                clean.tick().await;
                store.clean();
                let generation = store.generation();
                if looked_at != generation && on_demand.iter().any(Handle::on_demand) {
                    looked_at = generation;
                    for name in standing(&store.load()) {
                        for plane in on_demand.iter().filter(|plane| plane.on_demand()) {
                            // The answer appears in the model; nobody waits for it here.
                            drop(plane.want(name.to_string()));
                        }
                    }
                }
                let changed = store.changed_objects();
                // Not in the middle of a burst, and not for a trickle.
                if changed == seen && changed.abs_diff(trimmed_at) >= MANY {
                    return_memory();
                    trimmed_at = changed;
                }
                seen = changed;
            }
        });
    })?;
    Ok(handles)
}

/// What the admin socket tells of them.
pub fn report(handles: &[Handle]) -> Value {
    handles.iter().map(|handle| json!(handle.condition())).collect()
}
