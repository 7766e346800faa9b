//! Connections from outside to ports of the nodes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod node_port_common;

use node_port_common::{ENTRY, NODE_PORT, PATIENCE, Stage, clients4, clients6, node4, node6};
use serde_json::json;
use testkit::daemon::field;
use testkit::outside::{CLIENT4, CLIENT6};
use testkit::{netns, process};

#[test]
fn a_thousand_clients_of_each_family_are_seen_by_their_own_addresses() {
    testkit::needs_root!();
    let mut stage = Stage::build("seen").unwrap();
    stage.open(json!([{
        "service": "default/near.default.svc.cluster.local", "port": 80, "nodePort": NODE_PORT,
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
    }]));
    let stage = stage.start().unwrap();
    for (clients, to, shown) in [(clients4(1000), node4(1), "::ffff:"), (clients6(1000), node6(1), "")] {
        let answers = stage.outside.ask(&clients, to, "/").unwrap();
        let failed: Vec<&String> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), clients.len(), failed.first());
        for (client, answer) in clients.iter().zip(&answers) {
            let wanted = format!("pod=default/near client={shown}{client}\n");
            let answer = answer.as_ref().unwrap();
            assert!(answer.ends_with(&wanted), "{client} at {to}: {answer}");
        }
    }
    let daemon = stage.topology.daemon(stage.nodes[0]);
    assert_eq!(daemon.counter("node_ports").unwrap(), 2000);
    assert_eq!(daemon.counter("local").unwrap(), 2000, "each without a tunnel");
    // A SYN that is sent again, where its answer took long, counts again.
    assert!(stage.kernel("entry_opened") >= 2000);
    let line = daemon.wait_for_line(&["src.addr=198.18.", "near.default"]).unwrap();
    assert_eq!(field(&line, "src.identity"), Some(ENTRY), "{line}");
    let health = stage.outside.ask_one(CLIENT4, (node4(1).ip(), 32000).into(), "/healthz").unwrap();
    assert!(health.starts_with("HTTP/1.0 200") && health.contains("\"localEndpoints\": 1"), "{health}");
    assert_eq!(stage.topology.netfilter_rules().unwrap(), Vec::<String>::new());
}

#[test]
fn a_node_without_endpoints_refuses_local_and_says_so_to_load_balancers() {
    testkit::needs_root!();
    let mut stage = Stage::build("local").unwrap();
    stage.open(json!([
        {"service": "default/far.default.svc.cluster.local", "port": 80, "nodePort": NODE_PORT,
         "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000},
        {"service": "default/far.default.svc.cluster.local", "port": 80, "nodePort": 30081},
    ]));
    let stage = stage.start().unwrap();
    let refused = stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap_err().to_string();
    assert!(refused.contains("ConnectionReset"), "{refused}");
    let daemon = stage.topology.daemon(stage.nodes[0]);
    daemon.wait_for_line(&["src.addr=203.0.113.1:", "externalTrafficPolicy is Local", "leg=resolve"]).unwrap();
    let health = stage.outside.ask_one(CLIENT4, (node4(1).ip(), 32000).into(), "/").unwrap();
    assert!(health.starts_with("HTTP/1.0 503") && health.contains("\"localEndpoints\": 0"), "{health}");
    // The same service for everybody: a tunnel to the other node, whose application sees this one.
    let to = (node4(1).ip(), 30081).into();
    let answer = stage.outside.ask_one(CLIENT4, to, "/").unwrap();
    assert!(answer.ends_with(&format!("pod=default/far client=::ffff:{}\n", node4(1).ip())), "{answer}");
    let line = stage.topology.daemon(stage.nodes[1]).wait_for_line(&["direction=inbound", " client="]).unwrap();
    assert_eq!(field(&line, "src.identity"), Some(ENTRY), "{line}");
    assert!(field(&line, " client").is_some_and(|client| client.contains(CLIENT4)), "{line}");
}

#[test]
fn across_clusters_the_true_client_is_in_log_policy_and_at_the_application() {
    testkit::needs_root!();
    let mut stage = Stage::build("across").unwrap();
    stage.open(json!([{"service": "default/remote.default.svc.cluster.local", "port": 80, "nodePort": NODE_PORT}]));
    let mut stage = stage.start().unwrap();
    let gateway = stage.topology.node_ip(stage.nodes[2]);
    let server = stage.nodes[3];
    // Nobody is believed at first: the gateway is what policy and application see, the client is in the log.
    let answer = stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap();
    assert!(answer.ends_with(&format!("pod=default/remote client=::ffff:{gateway}\n")), "{answer}");
    let line = stage.topology.daemon(server).wait_for_line(&["direction=inbound", CLIENT4]).unwrap();
    assert_eq!(field(&line, "src.identity"), Some(ENTRY), "{line}");

    let trust = json!({"trustedEntries": {"identities": [ENTRY], "podRanges": ["10.244.0.0/16", "fd00:10:244::/48"]}});
    stage.topology.set_section(server, trust);
    stage.publish_to(server);
    let answer = stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap();
    assert!(answer.ends_with(&format!("pod=default/remote client=::ffff:{CLIENT4}\n")), "{answer}");
    // The gateway reaches the pod over IPv4, where there is no address for this one to show; the log has it all the same.
    let answer = stage.outside.ask_one(CLIENT6, node6(1), "/").unwrap();
    assert!(answer.ends_with(&format!("pod=default/remote client=::ffff:{gateway}\n")), "{answer}");
    stage.topology.daemon(server).wait_for_line(&["direction=inbound", &format!("client=[{CLIENT6}]")]).unwrap();

    // A policy that knows clients by their addresses lets this one in and no other.
    stage.topology.set_policies(vec![json!({
        "name": "only-one", "namespace": "default", "scope": "Namespace", "action": "Allow", "dryRun": false,
        "rules": [[[{"sourceIps": [format!("{CLIENT4}/32")]}]]],
    })]);
    stage.publish_to(server);
    stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap();
    let refused = stage.outside.ask_one("198.18.7.7", node4(1), "/").unwrap_err().to_string();
    assert!(refused.contains("ConnectionReset"), "{refused}");
    stage.topology.daemon(server).wait_for_line(&["198.18.7.7", "leg=accept/policy"]).unwrap();
    stage.topology.set_policies(Vec::new());

    // And the header that an application tunnel gets.
    let mut model = stage.topology.model(server).unwrap();
    for workload in model["workloads"].as_array_mut().unwrap() {
        if workload["name"] == json!("remote") {
            workload["applicationTunnel"] = json!({"protocol": "PROXY", "port": 9000});
        }
    }
    stage.rewrite(server, &model);
    let echo = stage.remote.spawn(&["testkit-peer", "serve", "echo", "--port", "9000"]).unwrap();
    let _echo = testkit::apps::wait_for_port(&stage.remote, 9000, echo).unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/{}/{NODE_PORT}; printf hello >&3; timeout 2 cat <&3 | od -An -v -tx1 | tr -d ' \\n'",
        node4(1).ip()
    );
    let header = stage.outside.place().run(&["bash", "-c", &script]).unwrap().stdout;
    // Version 2, PROXY, TCP over IPv4, then the client's address.
    assert!(header.starts_with("0d0a0d0a000d0a515549540a2111") && header.get(32..40) == Some("cb007101"), "{header}");
}

#[test]
fn a_large_answer_arrives_over_a_narrow_path() {
    testkit::needs_root!();
    let mut stage = Stage::build("narrow").unwrap();
    stage.open_near();
    let stage = stage.start().unwrap();
    stage.outside.narrow(&stage.topology, 1400).unwrap();
    let body = "0123456789abcdef".repeat(1 << 16);
    std::fs::write(stage.topology.scratch().join("large"), &body).unwrap();
    for (client, to) in [(CLIENT4, node4(1)), (CLIENT6, node6(1))] {
        let answer = stage.outside.ask_one(client, to, "/files/large").unwrap();
        let (_, received) = answer.split_once("\r\n\r\n").unwrap();
        assert!(received == body, "{client}: {} of {} bytes", received.len(), body.len());
    }
    assert!(stage.kernel("entry_error") >= 2, "routers on the way were heard: {}", stage.kernel("entry_error"));
}

#[test]
fn each_of_two_uplinks_takes_its_own_connections() {
    testkit::needs_root!();
    let mut stage = Stage::build("uplinks").unwrap();
    stage.second_uplink().unwrap();
    stage.open_near();
    let stage = stage.start().unwrap();
    for (to, device) in [(node4(1), "eth0"), ("172.31.1.1:30080".parse().unwrap(), "eth1")] {
        let answers = stage.outside.ask(&clients4(50), to, "/").unwrap();
        for (client, answer) in clients4(50).iter().zip(answers) {
            let wanted = format!("pod=default/near client=::ffff:{client}\n");
            assert!(answer.as_ref().is_ok_and(|answer| answer.ends_with(&wanted)), "{client} by {device}: {answer:?}");
        }
    }
    assert_eq!(stage.kernel("entry_opened"), 100);
    // Each connection has at least a SYN-ACK, two segments and an end to send.
    let (first, second) = (stage.sent_by("eth0"), stage.sent_by("eth1"));
    assert!(
        first >= 200 && second >= 200,
        "answers left by the uplinks they were asked at: {first} and {second} packets"
    );
}

#[test]
fn a_dnat_rule_for_the_same_port_changes_nothing() {
    testkit::needs_root!();
    let mut stage = Stage::build("dnat").unwrap();
    stage.open_near();
    stage.dnat(NODE_PORT).unwrap();
    let stage = stage.start().unwrap();
    let clients = clients4(200);
    let answers = stage.outside.ask(&clients, node4(1), "/").unwrap();
    for (client, answer) in clients.iter().zip(answers) {
        let wanted = format!("pod=default/near client=::ffff:{client}\n");
        assert!(answer.as_ref().is_ok_and(|answer| answer.ends_with(&wanted)), "{client}: {answer:?}");
    }
    assert_eq!(stage.kernel("entry_opened"), 200);
    assert_eq!(stage.dnat_packets(NODE_PORT), 0, "the rule was never met");
}

#[test]
fn connections_older_than_a_node_port_live_on_and_so_do_those_it_took() {
    testkit::needs_root!();
    let stage = Stage::build("older").unwrap();
    // As kube-proxy serves the port before Causeway does.
    stage.dnat_to(30085, 9000).unwrap();
    let mut stage = stage.start().unwrap();
    let echo = stage.near.spawn(&["testkit-peer", "serve", "echo", "--port", "9000"]).unwrap();
    let _echo = testkit::apps::wait_for_port(&stage.near, 9000, echo).unwrap();
    let to = format!("{}:30085", node4(1).ip());
    let mut older = stage.outside.place().spawn_with_input(&["testkit-peer", "idle", &to, "20"]).unwrap();
    older.wait_for("open 20", PATIENCE).unwrap();
    let ports = json!([{"service": "default/echo.default.svc.cluster.local", "port": 9000, "nodePort": 30085}]);
    stage.open(ports);
    stage.publish_to(stage.nodes[0]);
    stage.wait_ports(&[30085]);
    let mut taken = stage.outside.place().spawn_with_input(&["testkit-peer", "idle", &to, "20"]).unwrap();
    taken.wait_for("open 20", PATIENCE).unwrap();
    assert_eq!(stage.kernel("entry_opened"), 20);
    older.close_input();
    older.wait_for("alive 20", PATIENCE).expect("connections from before live on");
    assert!(stage.kernel("entry_older") > 0);
    stage.open(json!([]));
    stage.publish_to(stage.nodes[0]);
    stage.wait_ports(&[]);
    taken.close_input();
    taken.wait_for("alive 20", PATIENCE).expect("connections that were taken outlive their port");
    process::until(PATIENCE, || !stage.has_entry()).expect("the last connection takes the rest with it");
}

#[test]
fn a_killed_daemon_leaves_node_ports_refused_until_the_next_and_uninstall_leaves_nothing() {
    testkit::needs_root!();
    let mut stage = Stage::build("killed").unwrap();
    stage.open(json!([
        {"service": "default/near.default.svc.cluster.local", "port": 80, "nodePort": NODE_PORT},
        {"service": "default/echo.default.svc.cluster.local", "port": 9000, "nodePort": 30085},
    ]));
    stage.dnat(NODE_PORT).unwrap();
    stage.dnat_to(30085, 9000).unwrap();
    let mut stage = stage.start().unwrap();
    let echo = stage.near.spawn(&["testkit-peer", "serve", "echo", "--port", "9000"]).unwrap();
    let _echo = testkit::apps::wait_for_port(&stage.near, 9000, echo).unwrap();
    let node = stage.nodes[0];
    stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap();
    let to = format!("{}:30085", node4(1).ip());
    let mut idle = stage.outside.place().spawn_with_input(&["testkit-peer", "idle", &to, "20"]).unwrap();
    idle.wait_for("open 20", PATIENCE).unwrap();
    stage.topology.kill_daemon(node).unwrap();
    idle.close_input();
    for (client, to) in [(CLIENT4, node4(1)), (CLIENT6, node6(1))] {
        let refused = stage.outside.ask_one(client, to, "/").unwrap_err().to_string();
        assert!(refused.contains("ConnectionRefused"), "{refused}");
    }
    let passed = stage.dnat_packets(NODE_PORT) + stage.dnat_packets(30085);
    assert_eq!(passed, 0, "nothing is passed, neither new connections nor what was on its way");
    stage.topology.launch(node).unwrap();
    stage.topology.wait_ready(node).unwrap();
    stage.wait_ports(&[NODE_PORT, 30085]);
    let answer = stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap();
    assert!(answer.ends_with(&format!("client=::ffff:{CLIENT4}\n")), "{answer}");

    stage.topology.terminate_daemon(node).unwrap();
    let instance = format!("{}{}", stage.topology.prefix(), stage.topology.node_name(node));
    let place = stage.topology.node_place(node);
    place.run_ok(&["causeway", "uninstall", "--instance", &instance]).unwrap();
    assert!(!stage.has_entry());
    let links = place.run_ok(&["ip", "-o", "link"]).unwrap();
    assert!(!links.contains("causeway"), "{links}");
    // Now it is kube-proxy's again.
    let answer = stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap();
    assert!(answer.contains("pod=default/near"), "{answer}");
    assert!(stage.dnat_packets(NODE_PORT) > 0);
}

#[test]
fn pods_and_processes_of_the_node_reach_its_node_ports_too() {
    testkit::needs_root!();
    let mut stage = Stage::build("inside").unwrap();
    stage.open_near();
    let stage = stage.start().unwrap();
    let node = stage.topology.node_place(stage.nodes[0]).clone();
    let (v4, v6) = (node4(1).ip().to_string(), node6(1).ip().to_string());
    let curl = |place: &testkit::Place, host: &str| {
        let url = if host.contains(':') {
            format!("http://[{host}]:{NODE_PORT}/")
        } else {
            format!("http://{host}:{NODE_PORT}/")
        };
        // The peer that the client sees is the one it dialled.
        let line = ["curl", "--silent", "--show-error", "--max-time", "10", "--write-out", "%{remote_ip}", &url];
        place.run_ok(&line).unwrap()
    };
    let (enrolled, plain) = (stage.client.data(), stage.outsider.data());
    for (place, who, own4, own6) in [
        (&node, "a process of the node", v4.clone(), v6.clone()),
        (&plain.place, "a pod outside the mesh", plain.ip4.to_string(), plain.ip6.to_string()),
        (&enrolled.place, "a pod of the mesh", enrolled.ip4.to_string(), enrolled.ip6.to_string()),
    ] {
        assert_eq!(curl(place, &v4), format!("pod=default/near client=::ffff:{own4}\n{v4}"), "{who}");
        assert_eq!(curl(place, &v6), format!("pod=default/near client={own6}\n{v6}"), "{who}");
    }
    assert_eq!(stage.kernel("entry_dialled"), 4);
    let daemon = stage.topology.daemon(stage.nodes[0]);
    daemon.wait_for_line(&["direction=outbound", "sa/client", "near.default"]).unwrap();
}

#[test]
fn the_gateway_is_reached_at_the_node_port_of_every_node() {
    testkit::needs_root!();
    let mut stage = Stage::build("gate").unwrap();
    let (gateway, other) = (stage.nodes[2], stage.nodes[3]);
    let own = format!("{}:15008", stage.topology.node_ip(gateway));
    let identity = testkit::topology::gateway_identity("cluster.local");
    for node in [gateway, other] {
        let mut section = json!({"entry": {"identity": ENTRY}, "nodePorts": [{"gateway": true, "nodePort": 31508}]});
        if node == other {
            section["gateways"] = json!([{"network": "network2", "addresses": [own], "identities": [identity]}]);
        }
        stage.topology.set_section(node, section);
    }
    let stage = stage.start().unwrap();
    let client = stage.nodes[0];
    for (number, node) in [(1u8, gateway), (2, other)] {
        // The other cluster knows this one by the node port of one node.
        let model = stage.topology.model(client).unwrap().to_string();
        let ip = stage.topology.node_ip(gateway).to_string();
        let entry = stage.topology.node_ip(node).to_string();
        let model = model.replace(&format!("{ip}/15008"), &format!("{entry}/31508")).replace(&ip, &entry);
        let model = model.replace("\"hboneMtlsPort\":15008", "\"hboneMtlsPort\":31508");
        stage.rewrite(client, &serde_json::from_str(&model).unwrap());
        let before = stage.topology.daemon(node).counter("node_ports").unwrap();
        let url = format!("http://{}/", stage.topology.vip(stage.clusters[0], "default/remote"));
        let answer = stage.client.run_ok(&["curl", "--silent", "--show-error", "--max-time", "10", &url]).unwrap();
        assert!(answer.contains("pod=default/remote"), "by node {number}: {answer}");
        assert!(stage.topology.daemon(node).counter("node_ports").unwrap() > before, "by node {number}");
    }
    assert!(stage.topology.daemon(gateway).counter("gateway").unwrap() >= 2);
}

#[test]
fn a_device_that_cannot_be_an_uplink_is_refused_with_its_reason() {
    testkit::needs_root!();
    let stage = Stage::build("unfit").unwrap();
    let node = stage.nodes[0];
    let netns = stage.topology.node_place(node).netns.clone();
    netns::batch(
        Some(&netns),
        "link add br9 type bridge\nlink add d9 type veth peer name e9\nlink set d9 master br9\n",
    )
    .unwrap();
    let mut stage = stage.start().unwrap();
    for (uplink, words) in [
        ("eth9", "there is no device eth9"),
        ("d9", "d9 cannot be an uplink: it is a port of br9; name that instead"),
        ("lo", "lo cannot be an uplink: it carries no Ethernet frames"),
    ] {
        let mut section = Stage::near_section();
        section["entry"]["uplinks"] = json!([uplink]);
        stage.topology.set_section(node, section);
        stage.topology.publish().unwrap();
        let reason = || {
            let status = stage.topology.daemon(node).status().unwrap_or_default();
            status.pointer("/node_ports/error").and_then(|error| error.as_str()).unwrap_or_default().to_owned()
        };
        process::until(PATIENCE, || reason().contains(words)).unwrap_or_else(|_| panic!("{uplink}: {:?}", reason()));
        assert_eq!(stage.topology.daemon(node).status().unwrap()["ready"], json!(false));
    }
    stage.open_near();
    stage.publish_to(node);
    stage.wait_ports(&[NODE_PORT]);
    stage.outside.ask_one(CLIENT4, node4(1), "/").unwrap();
}
