//! What applications notice of a mesh at its largest: real connections through a running node, while its model stands still
//! and while it changes.

use std::path::Path;
use std::time::{Duration, Instant};

use causeway::state::file;
use serde_json::json;

use super::scale::{changed, service, workload};
use crate::control_plane::{Scripted, resources};
use crate::fixture::TwoClusters;
use crate::peer::measure::Connections;
use crate::{Result, context, process};

/// The port of the echo server that is called.
const PORT: u16 = 2600;
/// Connections begun per second, and how many may wait for their answer at once.
const LOAD: (&str, &str) = ("200", "8");
/// How long connections are made in each of the two measurements.
const SECONDS: u32 = 10;
/// How often many endpoints change meanwhile.
const EVERY: Duration = Duration::from_secs(1);
/// How long the first full answer may take until it is in force.
const FIRST: Duration = Duration::from_secs(120);

/// Runs both measurements and prints them, `rounds` times by turns.
///
/// # Errors
/// What could not be started, or a connection that failed.
pub fn run(workloads: u32, services: u32, changes: u32, rounds: u32) -> Result<()> {
    let mut stage = TwoClusters::build("scale")?;
    stage.peer_service("default/echo", "echo", PORT)?;
    stage.topology.prepare()?;
    let node = stage.client_node;
    let mut full = stage.topology.model(node)?;
    let model = file::parse(&full.to_string(), Path::new("model.yaml")).map_err(context("model"))?;
    let folder = stage.topology.scratch().join("plane");
    let plane = Scripted::start(&folder, Some(&stage.topology.node_place(node).netns))?;
    plane.set(resources(&model));
    plane.set((0..services).map(service).chain((0..workloads).map(|number| workload(number, services, 0))));
    let own = full.get_mut("causeway").ok_or("the kit's model has no causeway")?;
    let keys = own.as_object_mut().ok_or("causeway is no mapping")?;
    keys.insert(
        "controlPlane".to_owned(),
        json!({"address": plane.url(), "rootCert": plane.root_cert(), "token": plane.token()}),
    );
    let own = own.clone();
    stage.topology.write_model(node, &json!({"causeway": own}))?;
    for node in stage.topology.nodes() {
        stage.topology.launch(node)?;
    }
    for node in stage.topology.nodes() {
        stage.topology.wait_ready(node)?;
    }
    let known = || {
        let status = stage.topology.daemon(node).status().unwrap_or_default();
        status.pointer("/model/workloads").and_then(serde_json::Value::as_u64).unwrap_or(0)
    };
    process::until(FIRST, || known() > u64::from(workloads))?;
    // Once around, so that tunnels are warm in both measurements.
    connections(&stage, 2, || Ok(()))?;
    println!("new connections with one round trip through a running node, to a service of another cluster:");
    let mut round = 0;
    for turn in 1..=rounds {
        let idle = connections(&stage, SECONDS, || Ok(()))?;
        println!("{turn}: while nothing changes: {}", told(&idle));
        let mut pushes = 0;
        let busy = connections(&stage, SECONDS, || {
            let end = Instant::now() + Duration::from_secs(u64::from(SECONDS));
            while Instant::now() + EVERY < end {
                round += 1;
                pushes += 1;
                let next = Instant::now() + EVERY;
                let resources = changed(workloads, services, changes, round);
                plane.forget_seen();
                plane.set(resources);
                plane.wait_seen("an acknowledgement", |seen| !seen.request.response_nonce.is_empty())?;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        })?;
        println!("{turn}: while {changes} endpoints change, {pushes} times: {}", told(&busy));
        let failed = idle.failed + busy.failed;
        if failed > 0 {
            return Err(format!("{failed} connections failed").into());
        }
    }
    stage.topology.close()
}

/// Makes connections from the client's pod for so many seconds, while `meanwhile` runs.
fn connections(stage: &TwoClusters, seconds: u32, meanwhile: impl FnOnce() -> Result<()>) -> Result<Connections> {
    let to = format!("{}:{PORT}", stage.vip("default/echo"));
    let (seconds, (rate, parallel)) = (seconds.to_string(), LOAD);
    let line = ["testkit-peer", "connections", &to, parallel, &seconds, "--rate", rate];
    let load = stage.client.spawn(&line)?;
    meanwhile()?;
    let done = load.wait(Duration::from_secs(60))?;
    serde_json::from_str(done.stdout.trim()).map_err(context(format!("{}{}", done.stdout, done.stderr)))
}

fn told(measured: &Connections) -> String {
    let Connections { completed, failed, p50_us, p99_us, .. } = measured;
    format!("{completed} connections, {failed} failed: median {:.2} ms, p99 {:.2} ms", p50_us / 1e3, p99_us / 1e3)
}
