//! The node agent on real nodes: installed by its chart, pods enrolled by label, removed without a trace.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod kubernetes_common;

use kubernetes_common::{Namespace, OUTSIDERS, address, figure, get, jobs, load, pod, shop, speak_hbone};
use std::time::Duration;
use testkit::clusters::Clusters;
use testkit::clusters::deployed::{Deployed, SHOP};
use testkit::process;

#[test]
fn pods_of_a_labelled_namespace_speak_hbone_between_nodes_and_have_no_netfilter_rule() {
    testkit::needs_root!();
    speak_hbone(&Clusters::any().unwrap());
}

#[test]
fn helm_uninstall_leaves_no_pin_rule_or_annotation_and_traffic_goes_on() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let mut causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    let there = |node: &str| {
        let look = "ls -A /sys/fs/bpf | grep -v debug$; for ns in /run/netns/*; do nsenter --net=$ns ip rule show; nsenter --net=$ns ip route show table 100; done 2>/dev/null | grep -E '0x111|dev lo'; true";
        clusters.exec(node, &["sh", "-c", look]).unwrap().trim().to_owned()
    };
    for node in ["c1n1", "c1n2"] {
        assert!(
            there(node).contains("causeway") && there(node).contains("0x111"),
            "{node}: something must be there first"
        );
    }
    let (client, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let url = format!("http://{}/", address(&clusters, &server));
    causeway.uninstall().unwrap();
    for node in ["c1n1", "c1n2"] {
        assert_eq!(there(node), "", "{node}");
    }
    let marks = r"jsonpath={.items[*].metadata.annotations.ambient\.istio\.io/redirection}";
    assert_eq!(clusters.kubectl(1, &["get", "pods", "-A", "-o", marks]).unwrap(), "");
    assert_eq!(get(&clusters, &client, &url).unwrap().trim(), "c1n2");
    clusters.delete_namespace(1, SHOP).unwrap();
}

/// Strict mutual TLS, and an authorization policy that allows nothing.
const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: shop}
spec: {}
";

#[test]
fn probes_pass_strict_and_deny_all_policies_and_a_pod_that_imitates_one_is_refused() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    let _outside = Namespace(&clusters, "outside");
    clusters.apply(1, OUTSIDERS).unwrap();
    clusters.wait_ready(1, "outside").unwrap();
    causeway.label(true).unwrap();
    let server = pod(&clusters, "web", "c1n2");
    let url = format!("http://{}/", address(&clusters, &server));
    for outsider in ["outside/plain", "outside/imitator"] {
        assert_eq!(get(&clusters, outsider, &url).unwrap().trim(), "c1n2", "{outsider}, before the policies");
    }
    clusters.apply(1, STRICT).unwrap();
    let client = pod(&clusters, "client", "c1n2");
    let refused = |from: &str| get(&clusters, from, &url).is_err();
    process::until(Duration::from_secs(20), || refused(&client)).expect("the policies are in force");
    for outsider in ["outside/plain", "outside/imitator"] {
        assert!(refused(outsider), "{outsider} got through");
    }
    // Probes come every second; each kind fails its pod after at most three.
    let states = "jsonpath={range .items[*]}{.status.containerStatuses[*].restartCount} {.status.conditions[?(@.type=='Ready')].status} {.status.conditions[?(@.type=='Ready')].lastTransitionTime}{'\\n'}{end}";
    let states = || clusters.kubectl(1, &["-n", SHOP, "get", "pods", "-l", "app=web", "-o", states]).unwrap();
    let before = states();
    assert!(before.lines().count() == 2 && before.lines().all(|line| line.starts_with("0 0 True ")), "{before}");
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(states(), before, "no probe failed");
    let agent = causeway.agents().unwrap().remove("c1n2").unwrap();
    let status: serde_json::Value = serde_json::from_str(&causeway.status(&agent, "json").unwrap()).unwrap();
    let count = |name: &str| status.pointer(&format!("/kernel/{name}")).and_then(serde_json::Value::as_u64).unwrap();
    assert!(count("inbound_node") >= 16, "probes were recognised in the kernel: {status}");
    assert!(refused("outside/imitator"), "still refused");
}

#[test]
fn a_label_taken_off_and_put_on_fails_no_connection_and_ends_none() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    let (client, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let host = address(&clusters, &server);
    let running = load(&client, &host, 45, 4000);
    std::thread::sleep(Duration::from_secs(4));
    for wanted in [false, true, false, true] {
        causeway.label(wanted).unwrap();
        std::thread::sleep(Duration::from_secs(3));
    }
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("label off, on, off, on: {}", text.trim());
    assert!(text.contains(" failed 0 reset 0 "), "{text}\n{}", causeway.logs().unwrap());
    assert!(figure(&text, "made") >= 1000.0, "too few to say anything: {text}");
}

#[test]
fn a_hundred_jobs_that_connect_as_their_first_instruction_are_all_served() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    // Whatever reaches a server in the clear is refused, and the Job with it.
    clusters.apply(1, STRICT.split("---").next().unwrap()).unwrap();
    let (plain, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let url = format!("http://{}/", address(&clusters, &server));
    get(&clusters, &plain, &url).unwrap();
    let times = jobs(&clusters, 100, 10);
    println!("100 Jobs, first connect: {times}");
}
