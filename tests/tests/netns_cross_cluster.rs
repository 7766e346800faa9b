//! Ordinary applications across two clusters with one pod range.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;
use testkit::daemon::field;
use testkit::fixture::TwoClusters;
use testkit::{Capture, apps};

#[test]
fn curl_to_a_service_is_answered_by_every_remote_pod_over_both_families() {
    testkit::needs_root!();
    let stage = TwoClusters::start("curl").unwrap();
    let vip6 = stage.topology.vip6(stage.clusters[0], "default/web");
    for address in [stage.vip("default/web").to_string(), format!("[{vip6}]")] {
        let mut answers = BTreeMap::new();
        for _ in 0..40 {
            *answers.entry(stage.curl(&stage.client, &address).unwrap()).or_insert(0) += 1;
        }
        assert_eq!(answers.len(), 2, "both pods must answer at {address}: {answers:?}");
        assert!(answers.values().all(|count| *count >= 5), "answers at {address} must be spread: {answers:?}");
    }
    assert_eq!(stage.topology.netfilter_rules().unwrap(), Vec::<String>::new());
}

#[test]
fn identities_and_addresses_are_the_true_ones_at_each_side() {
    testkit::needs_root!();
    let stage = TwoClusters::start("identity").unwrap();
    let client = stage.client.identity("cluster.local");
    let web = stage.web[1].identity("cluster.local");
    let gateway = stage.topology.node_ip(stage.gateway_node).to_string();
    // Until the pod on the node without a gateway has answered, so that all three nodes have logged.
    let answer = (0..40)
        .map(|_| stage.curl(&stage.client, stage.vip("default/web")).unwrap())
        .find(|answer| answer.contains("web-b"))
        .expect("web-b never answered in 40 calls");
    assert_eq!(answer, format!("pod=default/web-b client=::ffff:{gateway}"), "across clusters: the gateway's address");

    let daemon = |node| stage.topology.daemon(node);
    let line = daemon(stage.client_node).wait_for_line(&["direction=outbound", "dst.identity="]).unwrap();
    assert_eq!(field(&line, "dst.identity"), Some(web.as_str()), "{line}");
    let line = daemon(stage.gateway_node).wait_for_line(&["direction=gateway", "src.identity="]).unwrap();
    assert_eq!(field(&line, "src.identity"), Some(client.as_str()), "{line}");
    let line = daemon(stage.server_node).wait_for_line(&["direction=inbound", " client="]).unwrap();
    assert_eq!(field(&line, "src.identity"), Some(client.as_str()), "{line}");
    let own = stage.client.data().ip4.to_string();
    assert!(field(&line, " client").is_some_and(|address| address.contains(&own)), "{own} is not in {line}");
}

#[test]
fn within_a_cluster_the_application_sees_the_pod_itself_and_the_wire_carries_hbone() {
    testkit::needs_root!();
    let stage = TwoClusters::start("within").unwrap();
    let capture = Capture::start(stage.topology.node_place(stage.server_node), "eth0").unwrap();
    let own = stage.neighbour.data().ip4;
    let own6 = stage.neighbour.data().ip6;
    let server = stage.web[1].data();
    let direct = stage.curl(&stage.neighbour, format!("{}:8080", server.ip4)).unwrap();
    assert_eq!(direct, format!("pod=default/web-b client=::ffff:{own}"));
    let direct = stage.curl(&stage.neighbour, format!("[{}]:8080", server.ip6)).unwrap();
    assert_eq!(direct, format!("pod=default/web-b client={own6}"));
    let vip = stage.topology.vip(stage.clusters[1], "default/web");
    for _ in 0..20 {
        let answer = stage.curl(&stage.neighbour, vip).unwrap();
        assert!(answer.ends_with(&format!("client=::ffff:{own}")), "{answer}");
    }
    let seen = capture.finish(&[b"pod=default/web", b"GET / HTTP"]).unwrap();
    assert_eq!(seen.readable, Vec::<String>::new());
    assert!(seen.port(15008).tls_data > 0, "{seen:?}");
}

#[test]
fn redis_postgres_and_iperf_work_across_clusters() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("apps").unwrap();
    let server = stage.web[1].clone();
    for (name, port) in [("default/redis", 6379), ("default/postgres", 5432), ("default/iperf", 5201)] {
        stage.topology.service(name, &[(port, port)], &[&server]);
    }
    let _redis = apps::redis(&server, 6379).unwrap();
    let _postgres = apps::postgres(&server, 5432).unwrap();
    let iperf = server.spawn(&["iperf3", "--server"]).unwrap();
    let _iperf = apps::wait_for_port(&server, 5201, iperf).unwrap();
    let stage = stage.started().unwrap();

    let redis = stage.vip("default/redis").to_string();
    let said = |line: &[&str]| stage.client.run_ok(&[&["redis-cli", "-h", &redis], line].concat()).unwrap();
    assert_eq!(said(&["set", "who", "causeway"]), "OK");
    assert_eq!(said(&["get", "who"]), "causeway");
    let long = "v".repeat(100_000);
    assert_eq!(said(&["set", "long", &long]), "OK");
    assert_eq!(said(&["strlen", "long"]), "100000");

    let address = format!("host={} user=postgres dbname=postgres connect_timeout=10", stage.vip("default/postgres"));
    let sql = "create table t(n int); insert into t select generate_series(1,100000); select sum(n) from t;";
    let sum =
        stage.client.run_ok(&["psql", &address, "--quiet", "--tuples-only", "--no-align", "--command", sql]).unwrap();
    assert_eq!(sum, "5000050000");

    let iperf = stage.vip("default/iperf").to_string();
    for direction in [&[][..], &["--reverse"], &["--bidir"]] {
        let line = ["iperf3", "--client", &iperf, "--bytes", "64M", "--json"];
        let output = stage.client.run_ok(&[&line[..], direction].concat()).unwrap();
        let result: serde_json::Value = serde_json::from_str(&output).unwrap();
        let bytes = result.pointer("/end/sum_received/bytes").and_then(serde_json::Value::as_u64).unwrap();
        // What is still on its way when the client has sent everything is not in this figure.
        assert!(bytes >= 32 << 20, "{direction:?}: {bytes} bytes arrived");
    }
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("first").unwrap();
    stage.peer_service("default/banner", "banner", 2500).unwrap();
    let stage = stage.started().unwrap();
    let to = format!("{}:2500", stage.vip("default/banner"));
    for _ in 0..5 {
        assert_eq!(stage.peer(&["greeted", &to]).unwrap(), "greeted");
    }
}

#[test]
fn half_closed_connections_carry_the_other_direction_to_its_end() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("half").unwrap();
    stage.peer_service("default/sink", "sink", 2501).unwrap();
    stage.topology.service("default/half", &[(2502, 2502)], &[&stage.web[1]]);
    let half = stage.web[1].spawn(&["testkit-peer", "serve", "half", "--port", "2502"]).unwrap();
    let mut half = apps::wait_for_port(&stage.web[1], 2502, half).unwrap();
    let stage = stage.started().unwrap();
    for _ in 0..3 {
        let to = format!("{}:2501", stage.vip("default/sink"));
        assert_eq!(stage.peer(&["half-close", &to]).unwrap(), "counted 1048576");
        let to = format!("{}:2502", stage.vip("default/half"));
        assert_eq!(stage.peer(&["late-sender", &to]).unwrap(), "sent 1048576");
    }
    half.wait_for("eof 1048576 after closing\neof 1048576 after closing\neof", Duration::from_secs(5)).unwrap();
}

#[test]
fn a_reset_of_either_side_arrives_as_a_reset() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("reset").unwrap();
    stage.peer_service("default/reset", "reset", 2503).unwrap();
    stage.topology.service("default/watch", &[(2504, 2504)], &[&stage.web[1]]);
    let watch = stage.web[1].spawn(&["testkit-peer", "serve", "watch", "--port", "2504"]).unwrap();
    let mut watch = apps::wait_for_port(&stage.web[1], 2504, watch).unwrap();
    let stage = stage.started().unwrap();
    let to = format!("{}:2503", stage.vip("default/reset"));
    assert_eq!(stage.peer(&["how-it-ends", &to]).unwrap(), "ended by reset");
    let to = format!("{}:2504", stage.vip("default/watch"));
    assert_eq!(stage.peer(&["send-reset", &to]).unwrap(), "reset");
    watch.wait_for("reset 16", Duration::from_secs(5)).unwrap();

    // Both nodes say whose reset it was, and count it as no failure.
    let nodes = [(stage.client_node, "direction=outbound"), (stage.server_node, "direction=inbound")];
    for (port, party) in [(2503, "server"), (2504, "client")] {
        for (node, direction) in nodes {
            let daemon = stage.topology.daemon(node);
            let line = daemon.wait_for_line(&[&format!(":{port}"), direction, "reset_by="]).unwrap();
            assert_eq!(field(&line, "reset_by"), Some(party), "{line}");
            assert!(line.contains("connection complete") && !line.contains("error="), "{line}");
        }
    }
    for node in stage.topology.nodes() {
        let daemon = stage.topology.daemon(node);
        let failed = daemon.status().unwrap()["counters"]["failed"].clone();
        let sum: u64 = failed.as_object().unwrap().values().filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(sum, 0, "{failed}: {}", daemon.log_tail(10));
    }
}

#[test]
fn a_service_without_a_listener_resets_the_caller_and_names_the_leg() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("dead").unwrap();
    stage.topology.service("default/dead", &[(2505, 2505)], &[&stage.web[1]]);
    let stage = stage.started().unwrap();
    let to = format!("{}:2505", stage.vip("default/dead"));
    assert_eq!(stage.peer(&["how-it-ends", &to]).unwrap(), "ended by reset", "never a silent end");
    let line = stage.topology.daemon(stage.client_node).wait_for_line(&["direction=outbound", "error="]).unwrap();
    assert!(line.contains("leg="), "{line}");
}
