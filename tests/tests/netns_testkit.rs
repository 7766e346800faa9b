//! The kit itself, without any daemon: addresses, captures and the guard.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;
use testkit::{Capture, Topology, apps, cgroup, netns};

const MARKER: &str = "a-text-that-is-easily-found;";

#[test]
fn pods_of_two_clusters_share_addresses_and_meet_by_their_outside_ones() {
    testkit::needs_root!();
    let mut topology = Topology::new("kit").unwrap();
    let (one, two) = (topology.cluster("cluster1", "network1"), topology.cluster("cluster2", "network2"));
    let (left, right, third) = (topology.node(one).unwrap(), topology.node(two).unwrap(), topology.node(two).unwrap());
    let client = topology.plain_pod(left, "default/client", "client").unwrap();
    let server = topology.plain_pod(right, "default/server", "server").unwrap();
    let neighbour = topology.plain_pod(third, "default/neighbour", "neighbour").unwrap();
    assert_eq!(client.data().ip4, server.data().ip4, "clusters use the same pod range");

    let _nginx = apps::nginx(&server, 8080).unwrap();
    let inside = format!("http://{}:8080/", server.data().ip4);
    let answer = neighbour.run_ok(&["curl", "--silent", "--max-time", "5", &inside]).unwrap();
    assert_eq!(answer, format!("pod=default/server client=::ffff:{}", neighbour.data().ip4));
    let inside6 = format!("http://[{}]:8080/", server.data().ip6);
    let answer = neighbour.run_ok(&["curl", "--silent", "--max-time", "5", &inside6]).unwrap();
    assert_eq!(answer, format!("pod=default/server client={}", neighbour.data().ip6));

    let capture = Capture::start(&topology.wan_place(), &topology.link_of(two)).unwrap();
    let outside = format!("http://{}:8080/?{MARKER}", server.data().egress4);
    let answer = client.run_ok(&["curl", "--silent", "--max-time", "5", &outside]).unwrap();
    assert_eq!(answer, format!("pod=default/server client=::ffff:{}", client.data().egress4));
    let seen = capture.finish(&[MARKER.as_bytes()]).unwrap();
    assert!(!seen.readable.is_empty(), "a capture must show plain text when there is some: {seen:?}");
    assert_eq!(seen.dropped, 0);
    assert_eq!(topology.netfilter_rules().unwrap(), Vec::<String>::new());
}

#[test]
fn a_dropped_topology_leaves_no_process_namespace_or_cgroup() {
    testkit::needs_root!();
    let mut topology = Topology::new("guard").unwrap();
    let one = topology.cluster("cluster1", "network1");
    let node = topology.node(one).unwrap();
    let pod = topology.plain_pod(node, "default/sleeper", "sleeper").unwrap();
    let mut sleeper = pod.spawn(&["sleep", "1000"]).unwrap();
    let (prefix, scratch) = (topology.prefix().to_owned(), topology.scratch().to_owned());
    assert!(sleeper.is_running());
    assert!(!cgroup::processes(&pod.cgroup).is_empty());

    let failed = std::thread::spawn(move || {
        let _guard = topology;
        panic!("a test fails");
    });
    assert!(failed.join().is_err());
    sleeper.wait_status(Duration::from_secs(5)).expect("killed with its cgroup");
    assert!(netns::with_prefix(&prefix).is_empty());
    assert!(cgroup::with_prefix(&prefix).is_empty());
    assert!(!scratch.exists());
}

#[test]
fn peers_behave_as_their_names_say() {
    testkit::needs_root!();
    let mut topology = Topology::new("peers").unwrap();
    let one = topology.cluster("cluster1", "network1");
    let node = topology.node(one).unwrap();
    let client = topology.plain_pod(node, "default/client", "client").unwrap();
    let server = topology.plain_pod(node, "default/server", "server").unwrap();
    let kinds = ["echo", "sink", "duplex", "banner", "half", "watch", "reset"];
    let mut servers = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        let port = (9000 + number).to_string();
        let process = server.spawn(&["testkit-peer", "serve", kind, "--port", &port]).unwrap();
        servers.push(apps::wait_for_port(&server, 9000 + u16::try_from(number).unwrap(), process).unwrap());
    }
    let at = |port: u16| format!("{}:{port}", server.data().ip4);
    let said = |line: &[&str]| client.run_ok(&[&["testkit-peer"], line].concat()).unwrap();
    assert!(said(&["duplex", &at(9002), "10000000"]).starts_with("both ways ok"));
    assert_eq!(said(&["half-close", &at(9001)]), "counted 1048576");
    assert_eq!(said(&["late-sender", &at(9004)]), "sent 1048576");
    servers[4].wait_for("eof 1048576 after closing", Duration::from_secs(5)).unwrap();
    assert_eq!(said(&["greeted", &at(9003)]), "greeted");
    assert_eq!(said(&["how-it-ends", &at(9006)]), "ended by reset");
    assert_eq!(said(&["send-reset", &at(9005)]), "reset");
    servers[5].wait_for("reset 16", Duration::from_secs(5)).unwrap();
    let line = said(&["connections", &at(9000), "4", "100", "--count", "2000"]);
    assert!(line.contains("\"completed\":2000,\"failed\":0"), "{line}");
    let line = said(&["ping-pong", &at(9000), "8", "0.3"]);
    assert!(line.contains("round_trips"), "{line}");
    let line = said(&["stream", &at(9001), "0.3"]);
    assert!(line.contains("bytes"), "{line}");
}
