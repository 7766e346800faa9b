//! Revocation lists against tunnels that live.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::json;
use std::time::Duration;
use testkit::certificates::revocation_list;
use testkit::fixture::TwoClusters;

#[test]
fn a_revoked_signer_ends_the_live_connections_of_its_workloads_and_no_others() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("revoked").unwrap();
    stage.peer_service("default/echo", "echo", 2601).unwrap();
    stage.topology.authorities().unwrap();
    let crl = stage.topology.scratch().join("crl.pem");
    std::fs::write(&crl, "").unwrap();
    // Only the server's node knows of the revocation, so that it alone can end the tunnels.
    let identity = json!({"caDirectory": stage.topology.authority(stage.clusters[1]), "crl": crl});
    stage.topology.set_section(stage.server_node, json!({"identity": identity}));
    let stage = stage.started().unwrap();
    let to = format!("{}:2601", stage.vip("default/echo"));
    let near = format!("{}:2601", stage.topology.vip(stage.clusters[1], "default/echo"));
    let idle = |pod: &testkit::Pod, to: &str| {
        let mut idle = pod.spawn_with_input(&["testkit-peer", "idle", to, "20"]).unwrap();
        idle.wait_for("open 20", Duration::from_secs(20)).unwrap();
        idle
    };
    let (mut revoked, mut lives) = (idle(&stage.client, &to), idle(&stage.neighbour, &near));

    let ca = stage.topology.ca_folder("cluster.local");
    let signer = stage.topology.authority(stage.clusters[0]).join("ca-cert.pem");
    let list = revocation_list(&ca.join("root-cert.pem"), &ca.join("root-key.pem"), &signer).unwrap();
    let fresh = crl.with_extension("new");
    std::fs::write(&fresh, list).unwrap();
    std::fs::rename(&fresh, &crl).unwrap();

    let daemon = stage.topology.daemon(stage.server_node);
    let line = daemon.wait_for_line(&["direction=inbound", "CERT_REVOKED", "error="]).unwrap();
    assert!(line.contains("sa/client"), "{line}");
    std::thread::sleep(Duration::from_secs(1));
    revoked.close_input();
    lives.close_input();
    let revoked = revoked.wait(Duration::from_secs(20)).unwrap();
    assert!(!revoked.status.success(), "{revoked:?}");
    let lives = lives.wait(Duration::from_secs(20)).unwrap();
    assert!(lives.status.success(), "another cluster's signer was not revoked: {lives:?}");
    let died =
        daemon.log().lines().filter(|line| line.contains("direction=inbound") && line.contains("CERT_REVOKED")).count();
    assert_eq!(died, 20, "exactly the connections of the revoked");
    // New ones are refused, with the reason on both sides.
    assert_ne!(stage.peer(&["how-it-ends", &to]).unwrap(), "ended by end");
    daemon.wait_for_line(&["CERT_REVOKED", "leg=accept"]).unwrap();
}
