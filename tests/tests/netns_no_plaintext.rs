//! No byte of an enrolled pod's mesh traffic is readable on a wire, whatever happens to the daemons.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;
use testkit::Capture;
use testkit::fixture::TwoClusters;

/// Short and repeated: every packet with a piece of it holds it whole.
const MARKER: &str = "never-to-be-seen;";

#[test]
fn killing_daemons_under_load_leaks_nothing_and_traffic_returns() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("kill").unwrap();
    stage.peer_service("default/echo", "echo", 2700).unwrap();
    let mut stage = stage.started().unwrap();
    let captures = [
        Capture::start(&stage.topology.wan_place(), &stage.topology.link_of(stage.clusters[1])).unwrap(),
        Capture::start(stage.topology.node_place(stage.client_node), "eth0").unwrap(),
        Capture::start(stage.topology.node_place(stage.server_node), "eth0").unwrap(),
    ];
    let to = format!("{}:2700", stage.vip("default/echo"));
    let mut load = stage.client.spawn_with_input(&["testkit-peer", "load", &to, MARKER]).unwrap();
    for node in [stage.client_node, stage.server_node, stage.gateway_node] {
        std::thread::sleep(Duration::from_secs(1));
        stage.topology.kill_daemon(node).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        stage.topology.launch(node).unwrap();
        stage.topology.wait_ready(node).unwrap();
        let answers = || stage.curl(&stage.client, stage.vip("default/web")).is_ok();
        testkit::process::until(Duration::from_secs(10), answers).expect("calls must work again after each kill");
    }
    load.close_input();
    let done = load.wait(Duration::from_secs(30)).unwrap();
    println!("load while daemons were killed: {}", done.stdout.trim());
    assert!(done.status.success(), "{}", done.stderr);
    let number = |word: &str| -> u64 {
        let words: Vec<&str> = done.stdout.split_whitespace().collect();
        let at = words.iter().position(|found| *found == word).unwrap();
        words[at + 1].parse().unwrap()
    };
    assert!(number("broken") >= 3, "each kill must have broken the connection, or nothing was tested");
    assert!(number("connected") >= 4, "the load must have connected again after each kill");
    for capture in captures {
        let seen = capture.finish(&[MARKER.as_bytes()]).unwrap();
        assert_eq!(seen.readable, Vec::<String>::new());
        assert!(seen.port(15008).tls_data > 10, "the tunnels must be in the recording: {:?}", seen.port(15008));
        assert_eq!(seen.dropped, 0, "a recording with holes proves nothing");
    }
}

#[test]
fn without_a_daemon_a_pod_of_the_mesh_cannot_call_and_cannot_be_called() {
    testkit::needs_root!();
    let mut stage = TwoClusters::start("absent").unwrap();
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();
    stage.topology.kill_daemon(stage.client_node).unwrap();
    stage.topology.kill_daemon(stage.server_node).unwrap();
    let url = format!("http://{}/", stage.vip("default/web"));
    let done = stage.client.run(&["curl", "--silent", "--show-error", "--max-time", "3", &url]).unwrap();
    assert!(!done.status.success(), "{}", done.stdout);
    assert!(done.stderr.contains("refused") || done.stderr.contains("onnect"), "refused at once: {}", done.stderr);
    // Plain calls to the pod whose daemon is gone are reset, not served.
    let url = format!("http://{}:8080/", stage.web[1].data().ip4);
    let done = stage.neighbour.run(&["curl", "--silent", "--max-time", "3", &url]).unwrap();
    assert!(!done.status.success(), "{}", done.stdout);
}
