//! What a node tells of its connections: lines by switch and share, the time of each leg, every metric, profiles, spans.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::daemon::field;
use testkit::fixture::TwoClusters;
use testkit::process::until;
use testkit::topology::NodeId;

const WAIT: Duration = Duration::from_secs(10);

fn http(stage: &TwoClusters, node: NodeId, arguments: &[&str]) -> String {
    let line = [&["curl", "--silent", "--show-error", "--max-time", "20"], arguments].concat();
    stage.topology.node_place(node).run_ok(&line).unwrap()
}

/// Lines of the access log with all of these texts.
fn lines(stage: &TwoClusters, node: NodeId, texts: &[&str]) -> Vec<String> {
    let log = stage.topology.daemon(node).log();
    log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned).collect()
}

/// Changes the `causeway` section of a node and waits until it is in force.
fn reconfigure(stage: &mut TwoClusters, node: NodeId, section: Value) {
    let reloads = lines(stage, node, &["model reloaded"]).len();
    stage.topology.set_section(node, section);
    stage.topology.publish().unwrap();
    until(WAIT, || lines(stage, node, &["model reloaded"]).len() > reloads).unwrap();
}

fn calls(stage: &TwoClusters, count: usize) {
    let url = format!("http://{}/", stage.vip("default/web"));
    let script = format!("for i in $(seq {count}); do curl --silent --max-time 10 -o /dev/null {url} || exit 1; done");
    stage.client.run_ok(&["bash", "-c", &script]).unwrap();
}

#[test]
fn the_log_follows_its_switch_its_share_and_its_form_while_running() {
    testkit::needs_root!();
    let mut stage = TwoClusters::start("switches").unwrap();
    let node = stage.client_node;
    let complete = ["connection complete", "direction=outbound"];
    calls(&stage, 3);
    until(WAIT, || lines(&stage, node, &complete).len() == 3).unwrap();

    // Sampled away entirely: no line for what succeeds, one for what fails.
    reconfigure(&mut stage, node, json!({"log": {"sample": 0.0}}));
    calls(&stage, 5);
    let nobody = format!("{}:81", stage.vip("default/web"));
    let refused = |stage: &TwoClusters| {
        let done = stage.client.run(&["curl", "--silent", "--max-time", "10", &format!("http://{nobody}/")]).unwrap();
        assert!(!done.status.success());
    };
    refused(&stage);
    until(WAIT, || lines(&stage, node, &["connection failed", &nobody]).len() == 1).unwrap();
    assert_eq!(lines(&stage, node, &complete).len(), 3);

    // A share of a half: of 200 neither none nor all, six deviations wide.
    reconfigure(&mut stage, node, json!({"log": {"sample": 0.5}}));
    calls(&stage, 200);
    until(WAIT, || stage.topology.daemon(node).counter("open").unwrap() == 0).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let sampled = lines(&stage, node, &complete).len() - 3;
    assert!((58..=142).contains(&sampled), "{sampled} of 200 lines");

    // The namespace is silent, failures included; they are counted all the same.
    reconfigure(&mut stage, node, json!({"log": {"namespaces": {"default": "off"}}}));
    let failed = |stage: &TwoClusters| {
        let status = stage.topology.daemon(node).status().unwrap();
        status["counters"]["failed"].as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>()
    };
    let before = (failed(&stage), lines(&stage, node, &["direction=outbound"]).len());
    calls(&stage, 3);
    refused(&stage);
    until(WAIT, || failed(&stage) == before.0 + 1).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(lines(&stage, node, &["direction=outbound"]).len(), before.1);

    // Errors alone, for this namespace, whatever holds for the others; and as JSON.
    let log = json!({"log": {"format": "json", "namespaces": {"default": "errors"}}});
    reconfigure(&mut stage, node, log);
    calls(&stage, 2);
    refused(&stage);
    until(WAIT, || lines(&stage, node, &["\"message\":\"connection failed\""]).len() == 1).unwrap();
    assert!(lines(&stage, node, &["\"message\":\"connection complete\""]).is_empty());
    let line = lines(&stage, node, &["\"scope\":\"access\""]).pop().unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["direction"], "outbound", "{line}");
    assert_eq!(line["dst.addr"], nobody.as_str(), "{line}");
    assert_eq!(line["src.namespace"], "default", "{line}");
    assert_eq!(stage.topology.daemon(node).counter("log_dropped").unwrap(), 0);
}

#[test]
fn the_first_connection_names_the_time_of_every_leg_and_a_warm_tunnel_spares_them() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("legs").unwrap();
    stage.topology.set_workers(1);
    stage.peer_service("default/echo", "echo", 9000).unwrap();
    let stage = stage.started().unwrap();
    let call = || {
        let script = format!("exec 3<>/dev/tcp/{}/9000; printf hi >&3; head -c 2 <&3", stage.vip("default/echo"));
        stage.client.run_ok(&["bash", "-c", &script]).unwrap();
    };
    call();
    until(WAIT, || lines(&stage, stage.client_node, &["dst.service=echo"]).len() == 1).unwrap();
    call();
    until(WAIT, || lines(&stage, stage.client_node, &["dst.service=echo"]).len() == 2).unwrap();
    let seen = lines(&stage, stage.client_node, &["dst.service=echo"]);
    let tunnel = ["outer_tcp_ms", "outer_tls_ms", "connect_ms", "inner_tls_ms"];
    for key in tunnel.iter().chain(&["resolve_ms", "backend_ms"]) {
        assert!(field(&seen[0], &format!(" {key}")).unwrap().parse::<f64>().unwrap() > 0.0, "{key} in {}", seen[0]);
    }
    for key in tunnel {
        assert_eq!(field(&seen[1], key), None, "a warm tunnel has no {key}: {}", seen[1]);
    }
    assert!(field(&seen[1], " backend_ms").is_some() && field(&seen[1], " resolve_ms").is_some(), "{}", seen[1]);
    let gateway = stage.topology.daemon(stage.gateway_node).wait_for_line(&["direction=gateway", "opened"]).unwrap();
    assert!(field(&gateway, " backend_ms").is_some() && field(&gateway, " resolve_ms").is_some(), "{gateway}");
    let inbound = stage.topology.daemon(stage.server_node).wait_for_line(&["direction=inbound", "complete"]).unwrap();
    for key in [" policy_ms", " resolve_ms", " backend_ms"] {
        assert!(field(&inbound, key).is_some(), "{key} in {inbound}");
    }
    // Each leg was walked by one connection, the first and the last one by both.
    let text = http(&stage, stage.client_node, &["http://127.0.0.1:15020/metrics"]);
    for (leg, count) in
        [("resolve", 2), ("outer-tcp", 1), ("outer-tls", 1), ("connect", 1), ("inner-tls", 1), ("backend", 2)]
    {
        let series = format!(
            "causeway_leg_duration_seconds_count{{leg=\"{leg}\",direction=\"outbound\",source_cluster=\"cluster1\",destination_cluster=\"cluster2\"}} {count}"
        );
        assert!(text.contains(&series), "{series} is not in {text}");
    }
}

/// Names of the metrics of a node and the labels that one of their series must have.
const METRICS: &[(&str, &str)] = &[
    (
        "istio_tcp_connections_opened_total",
        "reporter source_workload source_canonical_service source_canonical_revision source_workload_namespace source_principal source_app source_version source_cluster source_region source_zone destination_service destination_service_namespace destination_service_name destination_workload destination_canonical_service destination_canonical_revision destination_workload_namespace destination_principal destination_app destination_version destination_cluster destination_region destination_zone request_protocol response_flags connection_security_policy",
    ),
    ("istio_tcp_connections_closed_total", "reporter response_flags"),
    ("istio_tcp_connections_failed_total", "reporter response_flags"),
    ("istio_tcp_sent_bytes_total", "reporter source_cluster destination_cluster"),
    ("istio_tcp_received_bytes_total", "reporter source_cluster destination_cluster"),
    ("istio_tcp_sockets_open", "reporter"),
    ("istio_on_demand_dns_total", ""),
    ("istio_crl_policy_rejections_total", ""),
    ("istio_crl_untracked_connections_total", ""),
    ("istio_xds_connection_terminations_total", "reason"),
    ("istio_xds_message_total", "url"),
    ("istio_xds_message_bytes_total", "url"),
    ("istio_dns_requests_total", ""),
    ("istio_dns_upstream_requests_total", ""),
    ("istio_dns_upstream_failures_total", ""),
    ("istio_dns_upstream_request_duration_seconds_bucket", "le"),
    ("istio_build", "component tag"),
    ("workload_manager_active_proxy_count", ""),
    ("workload_manager_pending_proxy_count", ""),
    ("workload_manager_proxies_started_total", ""),
    ("workload_manager_proxies_stopped_total", ""),
    ("process_open_fds", ""),
    ("process_max_fds", ""),
    ("process_resident_memory_bytes", ""),
    ("process_cpu_seconds_total", ""),
    ("causeway_failures_total", "leg direction source_cluster destination_cluster"),
    ("causeway_leg_duration_seconds_bucket", "leg direction source_cluster destination_cluster le"),
    ("causeway_setup_seconds_bucket", "direction source_cluster destination_cluster le"),
    ("causeway_connections_open", "direction"),
    ("causeway_kernel_verdicts_total", "verdict"),
    ("causeway_certificate_expiry_seconds", "identity"),
    ("causeway_log_dropped_total", ""),
];

#[test]
fn every_metric_has_its_name_and_labels_after_a_connection() {
    testkit::needs_root!();
    let stage = TwoClusters::start("names").unwrap();
    calls(&stage, 1);
    let url = format!("http://{}:81/", stage.vip("default/web"));
    stage.client.run(&["curl", "--silent", "--max-time", "10", &url]).unwrap();
    let text = http(&stage, stage.client_node, &["http://127.0.0.1:15020/metrics"]);
    for (name, labels) in METRICS {
        let mut series =
            text.lines().filter_map(|line| line.strip_prefix(name)).filter(|rest| rest.starts_with([' ', '{']));
        let found = series.next().unwrap_or_else(|| panic!("{name} is not in {text}"));
        for label in labels.split_whitespace() {
            let (first, other) = (format!("{{{label}=\""), format!(",{label}=\""));
            assert!(found.contains(&first) || found.contains(&other), "{name} has no label {label}: {found}");
        }
        assert!(found.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{name}: {found}");
    }
    for reason in ["ConnectionError", "Error", "Reconnect", "Complete"] {
        assert!(text.contains(&format!("terminations_total{{reason=\"{reason}\"}}")), "{reason}");
    }
    for leg in ["accept/policy", "resolve", "outer-tcp", "outer-tls", "connect", "inner-tls", "backend"] {
        assert!(text.contains(&format!("causeway_failures_total{{leg=\"{leg}\"")), "{leg}");
    }
    // A family is described once, and its series stand together.
    let mut seen = BTreeSet::new();
    for name in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|rest| rest.split(' ').next().unwrap())
    {
        assert!(seen.insert(name), "{name} is described twice");
    }
}

#[test]
fn a_cpu_profile_names_what_runs_and_the_heap_is_told_in_figures() {
    testkit::needs_root!();
    let stage = TwoClusters::start("profile").unwrap();
    let node = stage.client_node;
    let file = stage.topology.scratch().join("profile.pb.gz");
    let path = file.to_string_lossy().into_owned();
    // Something to see: connections one after the other, for longer than the profile takes.
    let url = format!("http://{}/", stage.vip("default/web"));
    let script = format!("while true; do curl --silent --max-time 10 -o /dev/null {url}; done");
    let load = stage.client.spawn(&["bash", "-c", &script]).unwrap();
    http(&stage, node, &["--output", &path, "http://127.0.0.1:15000/debug/pprof/profile?seconds=3&frequency=499"]);
    drop(load);
    let unpacked = stage.topology.node_place(node).run(&["gzip", "--decompress", "--keep", "--force", &path]).unwrap();
    assert!(unpacked.status.success(), "{}", unpacked.stderr);
    let profile = std::fs::read(file.with_extension("")).unwrap();
    let text = String::from_utf8_lossy(&profile);
    // What runs for a connection, and what is at the bottom of a worker's stack: reached only by unwinding it whole.
    for name in ["nanoseconds", "[kernel]", "causeway::tunnel::", "__rust_begin_short_backtrace"] {
        assert!(text.contains(name), "{name} is not in the profile of {} bytes", profile.len());
    }
    let wrong = http(&stage, node, &["http://127.0.0.1:15000/debug/pprof/profile?seconds=9999"]);
    assert!(wrong.contains("seconds must be"), "{wrong}");
    let heap = http(&stage, node, &["http://127.0.0.1:15000/debug/pprof/heap"]);
    assert!(heap.contains("/debug/memory"), "{heap}");
    let memory: Value = serde_json::from_str(&http(&stage, node, &["http://127.0.0.1:15000/debug/memory"])).unwrap();
    assert!(memory["residentBytes"].as_u64().unwrap() > 1 << 20, "{memory}");
    assert!(memory["allocator"]["arenaBytesUsed"].as_u64().unwrap() > 1 << 16, "{memory}");
}

#[test]
fn spans_of_client_gateway_and_server_node_join_one_trace() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("spans").unwrap();
    let nodes = [stage.client_node, stage.gateway_node, stage.server_node];
    // The gateway's section is the kit's own; only the key is added.
    for node in nodes {
        stage.topology.set_section(node, json!({"traces": {"endpoint": "http://127.0.0.1:4318"}}));
    }
    stage.peer_service("default/echo", "echo", 9000).unwrap();
    let stage = stage.started().unwrap();
    let collectors = nodes.map(|node| {
        stage.topology.node_place(node).spawn(&["testkit-peer", "serve", "collector", "--port", "4318"]).unwrap()
    });
    until(WAIT, || collectors.iter().all(|collector| collector.stdout().contains("listening"))).unwrap();
    let script = format!("exec 3<>/dev/tcp/{}/9000; printf hi >&3; head -c 2 <&3", stage.vip("default/echo"));
    stage.client.run_ok(&["bash", "-c", &script]).unwrap();
    // The gateway's span is that of the tunnel, which ends with the daemon of the client's node.
    let spans = |index: usize| -> Vec<Value> {
        let text = collectors[index].stdout();
        let bodies = text.lines().filter_map(|line| line.strip_prefix("/v1/traces "));
        let bodies = bodies.map(|body| serde_json::from_str::<Value>(body).unwrap());
        bodies
            .flat_map(|body| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().cloned().unwrap())
            .collect()
    };
    until(WAIT, || spans(0).len() == 1 && spans(2).len() == 1).unwrap();
    stage.topology.daemon(stage.client_node).signal(libc::SIGTERM).unwrap();
    until(WAIT, || !spans(1).is_empty()).unwrap();
    let (client, gateway, server) = (spans(0).remove(0), spans(1).remove(0), spans(2).remove(0));
    assert!(client.get("parentSpanId").is_none(), "{client}");
    for below in [&gateway, &server] {
        assert_eq!(below["traceId"], client["traceId"], "{below}");
        assert_eq!(below["parentSpanId"], client["spanId"], "{below}");
        assert_ne!(below["spanId"], client["spanId"]);
    }
    let attribute = |span: &Value, key: &str| {
        let all = span["attributes"].as_array().unwrap();
        all.iter().find(|one| one["key"] == key).map(|one| one["value"].clone()).unwrap_or_default()
    };
    assert_eq!(attribute(&client, "dst.cluster")["stringValue"], "cluster2", "{client}");
    assert_eq!(attribute(&server, "src.cluster")["stringValue"], "cluster1", "{server}");
    assert!(attribute(&client, "inner_tls_ms")["doubleValue"].as_f64().unwrap() > 0.0, "{client}");
    assert_eq!(attribute(&server, "bytes_sent")["intValue"], "2", "{server}");
}

#[test]
fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("nocollector").unwrap();
    stage.topology.set_section(stage.client_node, json!({"traces": {"endpoint": "http://127.0.0.1:4318"}}));
    let stage = stage.started().unwrap();
    calls(&stage, 20);
    let daemon = stage.topology.daemon(stage.client_node);
    until(WAIT, || daemon.counter("spans_dropped").unwrap() == 20).unwrap();
    daemon.wait_for_log("takes no spans").unwrap();
    until(WAIT, || lines(&stage, stage.client_node, &["connection complete"]).len() == 20).unwrap();
}
