//! Faults, induced one by one under running daemons: each connection fails with one line that names leg and remedy.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use testkit::fixture::TwoClusters;
use testkit::topology::NodeId;
use testkit::{Pod, apps, certificates, daemon, process};

/// Lines of a node's access log that tell of failed connections of its pods to an address: one before this one may end
/// late, by the same fault, and is not what is asked for.
fn failures(stage: &TwoClusters, node: NodeId, to: &str) -> Vec<String> {
    let wanted = format!("dst.addr={to}{}", if to.contains(':') { " " } else { ":" });
    let log = stage.topology.daemon(node).log();
    let failed = log
        .lines()
        .filter(|line| line.contains("connection failed"))
        .filter(|line| line.contains("direction=outbound") && line.contains(&wanted));
    failed.map(str::to_owned).collect()
}

/// One connection from the pod that must be reset, and the one line it left at the client's node.
fn fails(stage: &TwoClusters, from: &Pod, node: NodeId, to: &str) -> String {
    let before = failures(stage, node, to).len();
    let url = format!("http://{to}/");
    let done = from.run(&["curl", "--silent", "--show-error", "--max-time", "20", &url]).unwrap();
    assert!(apps::was_reset(&done), "{to} must be reset: {}{}", done.stdout, done.stderr);
    let line = || failures(stage, node, to).split_off(before);
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

/// Services with the pods of `default/web`, so that no fault is hidden by tunnels of the connection before.
const FRESH: [&str; 7] =
    ["default/f0", "default/f1", "default/f2", "default/f3", "default/f4", "default/f5", "default/f6"];

#[test]
fn each_fault_leaves_one_line_with_its_leg_and_a_remedy() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("faults").unwrap();
    stage.topology.service("default/dead", &[(80, 2505)], &[&stage.web[1]]);
    stage.topology.service("default/near-dead", &[(80, 2505)], &[&stage.web[0]]);
    stage.topology.service("default/nobody", &[(80, 8080)], &[]);
    for name in FRESH {
        stage.topology.service(name, &[(80, 8080)], &[&stage.web[1]]);
    }
    let mut stage = stage.started().unwrap();
    let (client, node) = (stage.client.clone(), stage.client_node);
    let web = stage.vip("default/web").to_string();
    let fresh = FRESH.map(|name| stage.vip(name).to_string());
    stage.curl(&client, &web).unwrap();

    // Nothing listens at the pod, behind the gateway's node and on it.
    for service in ["default/dead", "default/near-dead"] {
        let line = fails(&stage, &client, node, &stage.vip(service).to_string());
        check(&line, "backend", &["status=503", "does it listen on that port?"], service);
    }
    for node in [stage.gateway_node, stage.server_node] {
        let line = stage.topology.daemon(node).wait_for_line(&["direction=inbound", "leg=backend"]).unwrap();
        assert!(line.contains("Connection refused") && line.contains("is it running?"), "told at once: {line}");
    }
    // The same for a neighbour, which no tunnel leads to.
    let to = stage.topology.vip(stage.clusters[1], "default/near-dead").to_string();
    let line = fails(&stage, &stage.neighbour.clone(), stage.gateway_node, &to);
    check(&line, "backend", &["Connection refused", "is it running?"], "a neighbour without a listener");

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
    check(&line, "backend", &["status=401", "the log of its node names the policy"], "a policy");
    let refusal = [stage.gateway_node, stage.server_node].iter().any(|place| {
        let log = stage.topology.daemon(*place).log();
        log.lines().any(|line| line.contains("direction=inbound") && line.contains("denied by policy default/deny"))
    });
    assert!(refusal, "and it does");
    for place in [stage.gateway_node, stage.server_node] {
        change(&stage, place, |_| {});
    }

    // The gateway's record names another trust domain; a service names another identity.
    change(&stage, node, |model| {
        edit_workloads(model, is_gateway, |gateway| gateway["trustDomain"] = json!("else.where"))
    });
    let line = fails(&stage, &client, node, &fresh[0]);
    let words = ["presented spiffe://cluster.local/ns/istio-eastwest/sa/eastwest", "expected spiffe://else.where/"];
    check(&line, "outer-tls", &words, "wrong trust domain");
    change(&stage, node, |model| {
        for service in model["services"].as_array_mut().unwrap() {
            service["subjectAltNames"] = json!(["spiffe://cluster.local/ns/default/sa/somebody"]);
        }
    });
    let line = fails(&stage, &client, node, &fresh[1]);
    check(
        &line,
        "inner-tls",
        &["presented spiffe://cluster.local/ns/default/sa/web", "sa/somebody"],
        "another identity",
    );

    // A network label with a typing error: istiod knows no gateway of such a network.
    change(&stage, node, |model| {
        edit_workloads(
            model,
            |workload| workload["networkGateway"].is_object(),
            |workload| {
                workload["network"] = json!("netwrok2");
                workload.as_object_mut().unwrap().remove("networkGateway");
            },
        );
    });
    let line = fails(&stage, &client, node, &fresh[2]);
    check(&line, "resolve", &["in network \\\"network1\\\"", "or a gateway"], "wrong network label");

    // The gateway is published at an address that nobody has, at one from which nothing comes back, and at one to which the
    // node has no route.
    let nobody = stage.topology.node_ip(stage.gateway_node).to_string().replace("172.30.2.1", "172.30.2.99");
    let unrouted = stage.topology.node_ip(stage.server_node).to_string();
    stage.topology.node_place(node).run_ok(&["ip", "route", "add", "unreachable", &unrouted]).unwrap();
    let routes = "check routes and the address that is published";
    let addresses = [(nobody.as_str(), routes), ("198.51.100.9", "firewall"), (&unrouted, routes)];
    for ((address, remedy), to) in addresses.into_iter().zip(&fresh[3..]) {
        change(&stage, node, |model| {
            edit_workloads(model, is_gateway, |record| record["workloadIps"] = json!([address]));
            edit_workloads(
                model,
                |workload| workload["networkGateway"].is_object(),
                |workload| workload["networkGateway"]["destination"] = json!(format!("network2/{address}")),
            );
        });
        let line = fails(&stage, &client, node, to);
        check(&line, "outer-tcp", &[&format!("{address}:15008"), remedy], "no way to the gateway");
    }
    change(&stage, node, |_| {});
    stage.curl(&client, &web).unwrap();

    // The gateway's daemon is gone.
    let gateway = format!("{}:15008", stage.topology.node_ip(stage.gateway_node));
    stage.topology.kill_daemon(stage.gateway_node).unwrap();
    let line = fails(&stage, &client, node, &fresh[6]);
    check(&line, "outer-tcp", &[&gateway, "Connection refused", "is it running?"], "gateway down");
}

#[test]
fn an_expired_certificate_is_named_by_the_node_whose_it_is() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("expired").unwrap();
    stage.topology.authorities().unwrap();
    let identity = stage.client.identity("cluster.local");
    let folder = stage.topology.scratch().join("short");
    // Long enough to start, short enough to wait for.
    let life = std::time::Duration::from_secs(8);
    let leaf =
        certificates::issue_for(&stage.topology.authority(stage.clusters[0]), &identity, &folder, Some(life)).unwrap();
    stage.topology.set_section(
        stage.client_node,
        json!({"identity": {
            "certificates": [{"identity": identity, "chain": leaf.chain, "key": leaf.key}],
            "roots": leaf.root,
        }}),
    );
    let issued = std::time::Instant::now();
    let stage = stage.started().unwrap();
    let web = stage.vip("default/web").to_string();
    stage.curl(&stage.client, &web).unwrap();
    std::thread::sleep((life + std::time::Duration::from_secs(1)).saturating_sub(issued.elapsed()));
    let line = fails(&stage, &stage.client.clone(), stage.client_node, &web);
    check(&line, "inner-tls", &["no certificate", "the certificate has expired", &identity], "an expired certificate");
}
