//! Faults, induced one by one under running daemons: each connection fails with one line that names leg and remedy.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use testkit::fixture::TwoClusters;
use testkit::topology::NodeId;
use testkit::{Pod, daemon, process};

/// Lines of a node's access log that tell of failed connections in a direction.
fn failures(stage: &TwoClusters, node: NodeId, direction: &str) -> Vec<String> {
    let wanted = format!("direction={direction}");
    let log = stage.topology.daemon(node).log();
    let failed = log.lines().filter(|line| line.contains("connection failed") && line.contains(&wanted));
    failed.map(str::to_owned).collect()
}

/// One connection from the pod that must be reset, and the one line it left at the client's node.
fn fails(stage: &TwoClusters, from: &Pod, node: NodeId, to: &str) -> String {
    let before = failures(stage, node, "outbound").len();
    let url = format!("http://{to}/");
    let done = from.run(&["curl", "--silent", "--show-error", "--max-time", "20", &url]).unwrap();
    assert_eq!(done.status.code(), Some(56), "{to} must be reset: {}{}", done.stdout, done.stderr);
    let line = || failures(stage, node, "outbound").split_off(before);
    process::until(std::time::Duration::from_secs(5), || !line().is_empty()).unwrap();
    // The writer flushes after a pause: a second line of the same connection would be there by then.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let lines = line();
    assert_eq!(lines.len(), 1, "one connection, one line: {lines:#?}");
    lines.into_iter().next().unwrap()
}

fn check(line: &str, leg: &str, words: &[&str], why: &str) {
    assert_eq!(daemon::field(line, "leg"), Some(leg), "{why}: {line}");
    for word in words {
        assert!(line.contains(word), "{why}: {word:?} is missing in {line}");
    }
}

/// Changes the model of a node until the daemon has taken it over.
fn change(stage: &TwoClusters, node: NodeId, edit: impl Fn(&mut Value)) {
    let mut model = stage.topology.model(node).unwrap();
    edit(&mut model);
    let generation = || {
        let status = stage.topology.daemon(node).status().unwrap();
        status.pointer("/model/generation").and_then(Value::as_u64).unwrap()
    };
    let before = generation();
    stage.topology.write_model(node, &model).unwrap();
    process::until(std::time::Duration::from_secs(10), || generation() > before).unwrap();
}

fn edit_workloads(model: &mut Value, fits: impl Fn(&Value) -> bool, edit: impl Fn(&mut Value)) {
    let all = model["workloads"].as_array_mut().unwrap();
    all.iter_mut().filter(|workload| fits(workload)).for_each(edit);
}

fn is_gateway(workload: &Value) -> bool {
    workload["uid"].as_str().unwrap().starts_with("NetworkGateway/")
}

#[test]
fn each_fault_leaves_one_line_with_its_leg_and_a_remedy() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("faults").unwrap();
    stage.topology.service("default/dead", &[(80, 2505)], &[&stage.web[1]]);
    stage.topology.service("default/near-dead", &[(80, 2505)], &[&stage.web[0]]);
    stage.topology.service("default/nobody", &[(80, 8080)], &[]);
    let mut stage = stage.started().unwrap();
    let (client, node) = (stage.client.clone(), stage.client_node);
    let web = stage.vip("default/web").to_string();
    stage.curl(&client, &web).unwrap();

    // Nothing listens at the pod, behind the gateway's node and on it.
    for service in ["default/dead", "default/near-dead"] {
        let line = fails(&stage, &client, node, &stage.vip(service).to_string());
        check(&line, "backend", &["status=503"], service);
    }
    for node in [stage.gateway_node, stage.server_node] {
        let line = stage.topology.daemon(node).wait_for_line(&["direction=inbound", "leg=backend"]).unwrap();
        assert!(line.contains("Connection refused") && !line.contains("within 10 s"), "told at once: {line}");
    }
    // The same for a neighbour, which no tunnel leads to.
    let to = stage.topology.vip(stage.clusters[1], "default/near-dead").to_string();
    let line = fails(&stage, &stage.neighbour.clone(), stage.gateway_node, &to);
    check(&line, "backend", &["Connection refused"], "a neighbour without a listener");

    let line = fails(&stage, &client, node, &stage.vip("default/nobody").to_string());
    check(&line, "resolve", &["no healthy upstream for default/nobody", "no healthy endpoint"], "no endpoint");
    let line = fails(&stage, &client, node, &format!("{web}:81"));
    check(&line, "resolve", &["the service has no port 81"], "a port that the service has not");

    // A policy of the destination.
    let deny = json!([{"name": "deny", "namespace": "default", "scope": "Namespace", "action": "Deny", "dryRun": false, "rules": [[]]}]);
    for place in [stage.gateway_node, stage.server_node] {
        change(&stage, place, |model| model["policies"] = deny.clone());
    }
    let line = fails(&stage, &client, node, &web);
    check(&line, "backend", &["status=401", "denied by the policy of the peer"], "a policy");
    let refusal = [stage.gateway_node, stage.server_node].iter().any(|place| {
        failures(&stage, *place, "inbound").iter().any(|line| line.contains("denied by policy default/deny"))
    });
    assert!(refusal, "the destination's node names the policy");
    for place in [stage.gateway_node, stage.server_node] {
        change(&stage, place, |_| {});
    }
    stage.curl(&client, &web).unwrap();

    // The gateway's record names another trust domain, then another identity.
    change(&stage, node, |model| {
        edit_workloads(model, is_gateway, |gateway| gateway["trustDomain"] = json!("else.where"))
    });
    let line = fails(&stage, &client, node, &web);
    check(
        &line,
        "outer-tls",
        &["else.where", "spiffe://cluster.local/ns/istio-eastwest/sa/eastwest"],
        "wrong trust domain",
    );
    change(&stage, node, |model| {
        for service in model["services"].as_array_mut().unwrap() {
            service["subjectAltNames"] = json!(["spiffe://cluster.local/ns/default/sa/somebody"]);
        }
    });
    let line = fails(&stage, &client, node, &web);
    check(&line, "inner-tls", &["sa/somebody", "sa/web"], "another identity than the service's");

    // A network label that no gateway has: istiod would publish it so after a typing error.
    change(&stage, node, |model| {
        edit_workloads(model, is_gateway, |gateway| gateway["network"] = json!("netwrok2"));
        edit_workloads(
            model,
            |workload| workload["networkGateway"].is_object(),
            |workload| {
                workload["networkGateway"]["destination"] =
                    json!(workload["networkGateway"]["destination"].as_str().unwrap().replace("network2", "netwrok2"));
                workload["network"] = json!("network3");
            },
        );
    });
    let line = fails(&stage, &client, node, &web);
    check(&line, "outer-tls", &[], "another network's gateway answers for no one else");
    change(&stage, node, |_| {});
    stage.curl(&client, &web).unwrap();

    // No way to the gateway: the daemon is told by the router.
    let gateway = stage.topology.node_ip(stage.gateway_node).to_string();
    change(&stage, node, |model| {
        edit_workloads(model, is_gateway, |record| record["workloadIps"] = json!(["198.51.100.9"]));
        edit_workloads(
            model,
            |workload| workload["networkGateway"].is_object(),
            |workload| workload["networkGateway"]["destination"] = json!("network2/198.51.100.9"),
        );
    });
    let line = fails(&stage, &client, node, &web);
    check(&line, "outer-tcp", &["198.51.100.9:15008"], "no route to the gateway");
    change(&stage, node, |_| {});
    stage.curl(&client, &web).unwrap();

    // The gateway's daemon is gone.
    stage.topology.kill_daemon(stage.gateway_node).unwrap();
    let line = fails(&stage, &client, node, &web);
    check(&line, "outer-tcp", &[&format!("{gateway}:15008"), "Connection refused"], "gateway down");
}
