//! What a node tells: HTTP endpoints, command line, metrics that follow open connections.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use serde_json::Value;
use testkit::fixture::TwoClusters;
use testkit::topology::NodeId;

fn http(stage: &TwoClusters, node: NodeId, arguments: &[&str]) -> String {
    let line = [&["curl", "--silent", "--show-error", "--max-time", "5"], arguments].concat();
    stage.topology.node_place(node).run_ok(&line).unwrap()
}

fn cli(stage: &TwoClusters, node: NodeId, arguments: &[&str]) -> String {
    let socket = stage.topology.daemon(node).socket().to_string_lossy().into_owned();
    let line = [&["causeway"], arguments, &["--socket", &socket]].concat();
    stage.topology.node_place(node).run_ok(&line).unwrap()
}

/// The value of the first series of `name` that has all of these labels.
fn metric(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut lines = text.lines().filter(|line| line.starts_with(name));
    let line = lines.find(|line| labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn metrics_have_istios_names_and_follow_a_connection_while_it_is_open() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("metrics").unwrap();
    stage.peer_service("default/echo", "echo", 9000).unwrap();
    let stage = stage.started().unwrap();
    let vip = stage.vip("default/echo");
    let script = format!("exec 3<>/dev/tcp/{vip}/9000; printf 0123456789 >&3; head -c 10 <&3; sleep 60");
    let talker = stage.client.spawn(&["bash", "-c", &script]).unwrap();
    testkit::process::until(Duration::from_secs(10), || talker.stdout().contains("0123456789")).unwrap();

    let labels = ["reporter=\"source\"", "destination_service=\"echo.default.svc.cluster.local\""];
    let text = http(&stage, stage.client_node, &["http://127.0.0.1:15020/metrics"]);
    assert_eq!(metric(&text, "istio_tcp_connections_opened_total", &labels), Some(1.0), "{text}");
    assert_eq!(metric(&text, "istio_tcp_received_bytes_total", &labels), Some(10.0), "{text}");
    assert_eq!(metric(&text, "istio_tcp_sent_bytes_total", &labels), Some(10.0), "{text}");
    assert_eq!(metric(&text, "istio_tcp_sockets_open", &[]), Some(1.0), "{text}");
    let line = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
    for part in [
        "source_principal=\"spiffe://cluster.local/ns/default/sa/client\"",
        "destination_principal=\"spiffe://cluster.local/ns/default/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
        "request_protocol=\"tcp\"",
        "response_flags=\"-\"",
        "source_cluster=\"cluster1\"",
        "destination_cluster=\"cluster2\"",
    ] {
        assert!(line.contains(part), "{part} is missing in {line}");
    }
    assert!(text.trim_end().ends_with("# EOF"), "OpenMetrics text ends with its mark");

    let rows: Value = serde_json::from_str(&cli(&stage, stage.client_node, &["connections", "-o", "json"])).unwrap();
    let row = rows.as_array().unwrap().first().unwrap();
    assert_eq!(row["service"], "echo.default.svc.cluster.local", "{row}");
    assert_eq!(row["bytesSent"], 10, "{row}");
    drop(talker);
    let closed = || {
        let text = http(&stage, stage.client_node, &["http://127.0.0.1:15020/stats/prometheus"]);
        metric(&text, "istio_tcp_connections_closed_total", &labels) == Some(1.0)
    };
    testkit::process::until(Duration::from_secs(10), closed).unwrap();
    assert_eq!(cli(&stage, stage.client_node, &["connections", "-o", "json"]).trim(), "[]");
}

#[test]
fn admin_endpoints_answer_as_users_of_ztunnel_expect() {
    testkit::needs_root!();
    let stage = TwoClusters::start("endpoints").unwrap();
    let node = stage.gateway_node;
    assert_eq!(http(&stage, node, &["http://127.0.0.1:15021/healthz/ready"]), "ready");
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();

    let dump: Value = serde_json::from_str(&http(&stage, node, &["http://127.0.0.1:15000/config_dump"])).unwrap();
    let workloads = dump["workloads"].as_array().unwrap();
    let uid = &stage.web[0].data().uid;
    let web = workloads.iter().find(|workload| workload["uid"] == uid.as_str()).unwrap();
    for key in ["uid", "workloadIps", "protocol", "name", "namespace", "status", "clusterId", "capacity"] {
        assert!(!web[key].is_null(), "{key} is missing in {web}");
    }
    let services = dump["services"].as_array().unwrap();
    let service = services.iter().find(|service| service["name"] == "web").unwrap();
    assert_eq!(service["endpoints"][uid.as_str()]["status"], "Healthy", "{service}");
    assert_eq!(dump["workloadState"][uid.as_str()]["state"], "Up");
    let certificate = &dump["certificates"][0];
    assert_eq!(certificate["state"], "Available");
    assert!(certificate["certChain"][0]["serialNumber"].is_string(), "{certificate}");

    let level = http(&stage, node, &["--request", "POST", "http://127.0.0.1:15000/logging?level=debug"]);
    assert!(level.contains("debug"), "{level}");
    let refused = http(&stage, node, &["--request", "POST", "http://127.0.0.1:15000/logging?level=a=b=c"]);
    assert!(refused.contains("is no log level"), "{refused}");
    let reset = http(&stage, node, &["--request", "POST", "http://127.0.0.1:15000/logging?reset"]);
    assert!(reset.contains("info"), "{reset}");
    // From outside of the node nobody reaches the port that can end the daemon.
    let url = format!("http://{}:15000/config_dump", stage.topology.node_ip(node));
    let done = stage.outsider.run(&["curl", "--silent", "--max-time", "3", &url]).unwrap();
    assert!(!done.status.success(), "{}", done.stdout);
}

#[test]
fn every_verb_of_the_command_line_shows_a_table_and_json() {
    testkit::needs_root!();
    let stage = TwoClusters::start("verbs").unwrap();
    let node = stage.client_node;
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();
    for (verb, title, cell) in [
        ("workloads", "PROTOCOL", "client"),
        ("services", "ENDPOINTS", "web.default.svc.cluster.local"),
        ("policies", "SCOPE", ""),
        ("certs", "VALID FOR", "spiffe://cluster.local/ns/default/sa/client"),
        ("connections", "DIRECTION", ""),
    ] {
        let table = cli(&stage, node, &[verb]);
        assert!(table.lines().next().unwrap().contains(title), "{verb}: {table}");
        assert!(table.contains(cell), "{verb}: {table}");
        let json: Value = serde_json::from_str(&cli(&stage, node, &[verb, "-o", "json"])).unwrap();
        assert!(json.is_array(), "{verb}: {json}");
    }
    let status = cli(&stage, node, &["status"]);
    assert!(status.contains("ready") && status.contains("Enrolled"), "{status}");
    let json: Value = serde_json::from_str(&cli(&stage, node, &["status", "-o", "json"])).unwrap();
    assert_eq!(json["ready"], true);
    let top = cli(&stage, node, &["top", "--count", "1", "--interval", "0.2"]);
    assert!(top.contains("outbound/s"), "{top}");
    let json: Value =
        serde_json::from_str(&cli(&stage, node, &["top", "--count", "1", "--interval", "0.2", "-o", "json"])).unwrap();
    assert!(json["rates"].is_object(), "{json}");
    let dump: Value = serde_json::from_str(&cli(&stage, node, &["dump"])).unwrap();
    assert!(dump["workloadState"].is_object(), "{dump}");
    let part: Value = serde_json::from_str(&cli(&stage, node, &["dump", "services"])).unwrap();
    assert_eq!(part, dump["services"]);
    let place = stage.topology.node_place(node);
    let nobody = place.run(&["causeway", "workloads", "--socket", "/nowhere/node.sock"]).unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(nobody.stderr.contains("/nowhere/node.sock"), "{}", nobody.stderr);
    let socket = stage.topology.daemon(node).socket().to_string_lossy().into_owned();
    let absent = place.run(&["causeway", "dump", "colours", "--socket", &socket]).unwrap();
    assert_eq!(absent.status.code(), Some(1));
    assert!(absent.stderr.contains("workloads"), "the parts there are must be named: {}", absent.stderr);
    let misuse = place.run(&["causeway", "workloads", "--output", "xml"]).unwrap();
    assert_eq!(misuse.status.code(), Some(2));
}

#[test]
fn a_policy_that_changes_ends_live_connections_it_no_longer_allows() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("withdrawn").unwrap();
    stage.peer_service("default/echo", "echo", 9000).unwrap();
    let mut stage = stage.started().unwrap();
    let vip = stage.vip("default/echo");
    let script = format!("exec 3<>/dev/tcp/{vip}/9000; printf hello >&3; head -c 5 <&3; cat <&3; echo ended");
    let talker = stage.client.spawn(&["bash", "-c", &script]).unwrap();
    testkit::process::until(Duration::from_secs(10), || talker.stdout().contains("hello")).unwrap();
    // Another port is denied: nothing changes for this connection.
    let deny = |port: u16| {
        serde_json::json!({"name": "no", "namespace": "default", "scope": "Namespace", "action": "Deny", "dryRun": false,
            "rules": [[[{"destinationPorts": [port]}]]]})
    };
    stage.topology.set_policies(vec![deny(9001)]);
    stage.topology.publish().unwrap();
    stage.topology.daemon(stage.server_node).wait_for_log("model reloaded").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(!talker.stdout().contains("ended"), "a policy about another port cut the connection");
    stage.topology.set_policies(vec![deny(9000)]);
    stage.topology.publish().unwrap();
    testkit::process::until(Duration::from_secs(10), || talker.stdout().contains("ended")).unwrap();
    let line = stage.topology.daemon(stage.server_node).wait_for_line(&["no longer allowed", "default/no"]).unwrap();
    assert!(line.contains("sa/client"), "{line}");
}
