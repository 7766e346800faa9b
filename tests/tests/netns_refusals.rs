//! Who is not served, and what the log says about it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::json;
use testkit::fixture::TwoClusters;

#[test]
fn a_pod_outside_the_mesh_is_refused_at_the_gateway_and_at_a_pod() {
    testkit::needs_root!();
    let stage = TwoClusters::start("outsider").unwrap();
    let gateway = stage.topology.node_ip(stage.gateway_node);
    for address in [gateway, stage.web[1].data().egress4] {
        let url = format!("https://{address}:15008/");
        let line = ["curl", "--silent", "--show-error", "--insecure", "--max-time", "5", &url];
        let done = stage.outsider.run(&line).unwrap();
        assert!(!done.status.success(), "served without a certificate at {address}: {}", done.stdout);
    }
    let from = stage.outsider.data().egress4.to_string();
    let line = stage.topology.daemon(stage.gateway_node).wait_for_line(&[&from]).unwrap();
    assert!(line.contains("error="), "a refusal says why: {line}");
    // Plain bytes to the port of the tunnels are no better.
    let url = format!("http://{gateway}:15008/");
    let done = stage.outsider.run(&["curl", "--silent", "--max-time", "5", &url]).unwrap();
    assert!(!done.status.success(), "{}", done.stdout);
    // And the mesh still works.
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();
}

#[test]
fn a_caller_of_another_authority_with_the_right_name_is_refused() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("rogue").unwrap();
    stage.topology.prepare().unwrap();
    let rogue = stage.topology.scratch().join("rogue");
    std::fs::create_dir_all(&rogue).unwrap();
    let out = rogue.to_string_lossy().into_owned();
    let line = ["causeway", "ca", "--out", &out, "--trust-domain", "cluster.local", "--cluster", "cluster1"];
    stage.topology.wan_place().run_ok(&line).unwrap();
    let mut model = stage.topology.model(stage.client_node).unwrap();
    model["causeway"]["identity"]["caDirectory"] = json!(rogue.join("cluster1"));
    stage.topology.write_model(stage.client_node, &model).unwrap();
    for node in stage.topology.nodes() {
        stage.topology.launch(node).unwrap();
    }
    for node in stage.topology.nodes() {
        stage.topology.wait_ready(node).unwrap();
    }
    let url = format!("http://{}/", stage.vip("default/web"));
    let done = stage.client.run(&["curl", "--silent", "--max-time", "5", &url]).unwrap();
    assert!(!done.status.success(), "{}", done.stdout);
    let line = stage.topology.daemon(stage.client_node).wait_for_line(&["direction=outbound", "error="]).unwrap();
    assert!(line.contains("leg=outer-tls"), "{line}");
}

#[test]
fn a_service_that_is_not_exported_is_refused_by_the_gateway() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("private").unwrap();
    stage.topology.service("default/private", &[(80, 8080)], &[&stage.web[1]]);
    let mut stage = stage.started().unwrap();
    stage.curl(&stage.client, stage.vip("default/private")).unwrap();
    // The gateway stops exporting it while the other cluster still believes that it may call.
    let mut model = stage.topology.model(stage.gateway_node).unwrap();
    model["causeway"]["exports"] = json!(["default/web.default.svc.cluster.local"]);
    stage.topology.write_model(stage.gateway_node, &model).unwrap();
    let daemon = stage.topology.daemon(stage.gateway_node);
    testkit::process::until(std::time::Duration::from_secs(10), || {
        stage.curl(&stage.client, stage.vip("default/private")).is_err() || daemon.status().is_err()
    })
    .expect("new calls must be refused once the export is gone");
    let line = stage.topology.daemon(stage.gateway_node).wait_for_line(&["direction=gateway", "error="]).unwrap();
    assert!(line.contains("private.default.svc.cluster.local"), "{line}");
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();
    stage.topology.terminate_daemon(stage.gateway_node).unwrap();
}

#[test]
fn a_policy_decides_by_the_identity_of_the_caller_also_across_clusters() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("policy").unwrap();
    // Only the client of the other cluster may call, not the neighbour of the same one.
    stage.topology.set_policies(vec![json!({
        "name": "only-client",
        "namespace": "default",
        "scope": "Namespace",
        "action": "Allow",
        "dryRun": false,
        "rules": [[[{"principals": [{"Exact": "cluster.local/ns/default/sa/client"}]}]]],
    })]);
    let stage = stage.started().unwrap();
    for _ in 0..8 {
        stage.curl(&stage.client, stage.vip("default/web")).unwrap();
    }
    let vip = stage.topology.vip(stage.clusters[1], "default/web");
    let url = format!("http://{vip}/");
    for _ in 0..4 {
        let done = stage.neighbour.run(&["curl", "--silent", "--max-time", "5", &url]).unwrap();
        assert!(!done.status.success(), "the policy lets only the client in: {}", done.stdout);
    }
    let server = stage.topology.daemon(stage.gateway_node);
    let line = server.wait_for_line(&["sa/neighbour", "error="]).unwrap();
    assert!(line.contains("policy"), "{line}");
}
