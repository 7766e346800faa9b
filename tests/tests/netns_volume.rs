//! Much data, and many connections at once.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;
use testkit::fixture::TwoClusters;

const GIB: &str = "1073741824";
const IDLE: usize = 2000;
/// What one idle connection may cost in a daemon, helper included.
const KIB_PER_CONNECTION: f64 = 12.0;

#[test]
fn a_gibibyte_each_way_at_once_arrives_byte_for_byte() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("volume").unwrap();
    stage.peer_service("default/duplex", "duplex", 2600).unwrap();
    let stage = stage.started().unwrap();
    let to = format!("{}:2600", stage.vip("default/duplex"));
    let said = stage.peer(&["duplex", &to, GIB]).unwrap();
    assert!(said.starts_with("both ways ok"), "{said}");
    println!("across clusters, {said}");
}

#[test]
fn many_idle_connections_stay_alive_and_cost_little_memory() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("idle").unwrap();
    stage.peer_service("default/echo", "echo", 2601).unwrap();
    let stage = stage.started().unwrap();
    let to = format!("{}:2601", stage.vip("default/echo"));
    // Certificates, tunnels and code are there before the first reading: only connections are counted.
    stage.peer(&["ping-pong", &to, "4", "0.3"]).unwrap();
    let nodes = [stage.client_node, stage.gateway_node, stage.server_node];
    let before = nodes.map(|node| stage.topology.daemon(node).rss_kib());
    let count = IDLE.to_string();
    let mut idle = stage.client.spawn_with_input(&["testkit-peer", "idle", &to, &count]).unwrap();
    idle.wait_for(&format!("open {IDLE}"), Duration::from_secs(60)).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    for ((node, name), before) in nodes.into_iter().zip(["client's node", "gateway", "server's node"]).zip(before) {
        let after = stage.topology.daemon(node).rss_kib();
        let each = after.saturating_sub(before) as f64 / IDLE as f64;
        println!("{IDLE} idle connections, {name}: {before} KiB before, {after} KiB with them, {each:.1} KiB each");
        assert!(each < KIB_PER_CONNECTION, "{name}: {each:.1} KiB each");
    }
    idle.close_input();
    idle.wait_for(&format!("alive {IDLE}"), Duration::from_secs(60)).unwrap();
}

#[test]
fn ten_thousand_short_connections_across_clusters_all_complete() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("short").unwrap();
    stage.peer_service("default/echo", "echo", 2602).unwrap();
    let stage = stage.started().unwrap();
    let to = format!("{}:2602", stage.vip("default/echo"));
    let said = stage.peer(&["connections", &to, "16", "100", "--count", "10000"]).unwrap();
    println!("{said}");
    assert!(said.contains("\"completed\":10000,\"failed\":0"), "{said}");
}
