//! `causeway multicluster check` on two real, linked clusters: green, and red for each thing that is broken.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::Value;
use std::time::Duration;
use testkit::clusters::Clusters;
use testkit::clusters::linked::{CHECK, GATEWAYS, Linked};
use testkit::process;

/// How long it may take until every node has heard of a change, and looked.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a check says: whether all is well, and the finding that says `text`.
fn check(clusters: &Clusters, text: &str) -> (i32, Option<Value>) {
    let done = clusters.try_shell(&format!("{CHECK} -o json")).unwrap();
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
    let all = answer["checks"].as_array().unwrap().iter();
    let findings = all.flat_map(|check| check["findings"].as_array().unwrap());
    let found = findings.into_iter().find(|finding| finding["what"].as_str().unwrap().contains(text));
    (done.status.code().unwrap(), found.cloned())
}

#[test]
fn a_check_is_green_until_something_breaks_and_its_command_repairs_it() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let linked = Linked::make(&clusters).unwrap();
    let all = clusters.try_shell(CHECK).unwrap();
    println!("{}", String::from_utf8_lossy(&all.stdout));
    assert!(all.status.success(), "{all:?}");
    let gateways = format!("kubectl --context cluster1 -n {GATEWAYS}");
    for (line, text) in [
        (format!("{gateways} delete gateway peer-cluster2"), "has no way into its network"),
        (
            format!("{gateways} label gateway peer-cluster2 --overwrite topology.istio.io/network=elsewhere"),
            "it is labelled with network \"elsewhere\"",
        ),
        (
            format!("{gateways} annotate gateway peer-cluster2 --overwrite gateway.istio.io/service-account=other"),
            "it expects the account istio-eastwest/other",
        ),
        (
            format!(
                "{gateways} annotate gateway peer-cluster2 --overwrite gateway.istio.io/trust-domain=other.example"
            ),
            "is in trust domain \"other.example\"",
        ),
        (
            format!("{gateways} label service causeway-gateway --overwrite topology.istio.io/network=elsewhere"),
            "labelled with network \"elsewhere\"",
        ),
        (
            format!("{gateways} scale deployment causeway-gateway --replicas=0 && sleep 3"),
            "pods behind the entry point is ready",
        ),
        ("kubectl --context cluster2 -n shop label service web istio.io/global-".to_owned(), "global in cluster1 only"),
    ] {
        clusters.shell(&line).unwrap();
        let found = check(&clusters, text).1.unwrap_or_else(|| panic!("{text:?} was not found after: {line}"));
        println!("{}\n  repair {}", found["what"], found["repair"]);
        // Until all have heard of a change, nodes may find more that does not work.
        let code = i32::from(found["severity"] == "error");
        process::until(Duration::from_secs(30), || check(&clusters, text).0 == code)
            .unwrap_or_else(|_| panic!("exit code {code} expected: {found}"));
        clusters.shell(found["repair"].as_str().unwrap()).unwrap();
        process::until(Duration::from_secs(60), || check(&clusters, text).1.is_none())
            .unwrap_or_else(|_| panic!("still found after {}: {found}", found["repair"]));
    }
    process::until(Duration::from_secs(60), || check(&clusters, "").0 == 0)
        .unwrap_or_else(|_| panic!("{:?}", check(&clusters, "")));
    linked.settle().unwrap();
}

/// Waits until a check finds what says `text`, and shows it.
fn found(clusters: &Clusters, text: &str) -> Value {
    let mut found = None;
    let _ = process::until(PATIENCE, || {
        found = check(clusters, text).1;
        found.is_some()
    });
    let found = found.unwrap_or_else(|| {
        let nodes = "for c in cluster1 cluster2; do for p in $(kubectl --context $c -n istio-system get pods -l app=causeway -o name); do \
                     kubectl --context $c get --raw /api/v1/namespaces/istio-system/pods/${p#pod/}:15020/proxy/reach; echo; \
                     kubectl --context $c -n istio-system exec ${p#pod/} -- /usr/local/bin/causeway services; done; done";
        let said = |line: &str| String::from_utf8_lossy(&clusters.try_shell(line).unwrap().stdout).into_owned();
        panic!("{text:?} is not found: {}\nwhat nodes can reach: {}", said(CHECK), said(nodes))
    });
    println!("{}\n  where  {}\n  why    {}\n  repair {}", found["what"], found["where"], found["why"], found["repair"]);
    found
}

/// Waits until no check finds what says `text`; every finding says nothing, too.
fn gone(clusters: &Clusters, text: &str) {
    process::until(PATIENCE, || check(clusters, text).1.is_none())
        .unwrap_or_else(|_| panic!("{text:?} is still found: {:?}", check(clusters, text).1));
}

fn repair(clusters: &Clusters, finding: &Value) -> String {
    clusters.shell(finding["repair"].as_str().unwrap()).unwrap()
}

/// A name with an address that exists in the mesh alone, and nobody behind it.
const NOWHERE: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: nowhere, namespace: shop}
spec:
  hosts: [nowhere.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  workloadSelector: {labels: {app: nowhere}}
";

/// Somebody behind it.
const SOMEBODY: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: nowhere, namespace: shop, labels: {app: nowhere}}
spec: {address: 172.29.0.1, network: network1}
";

/// In every pod's namespace of a node, no datagram leaves a socket.
const SILENCE: &str = "for ns in /run/netns/*; do nsenter --net=$ns nft 'table inet silence { chain output { \
    type filter hook output priority 0; meta l4proto udp drop; }; }'; done";
/// As before.
const SPEECH: &str = "for ns in /run/netns/*; do nsenter --net=$ns nft delete table inet silence; done";

#[test]
fn what_nodes_lack_is_found_on_them() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let linked = Linked::make(&clusters).unwrap();
    gone(&clusters, "");

    // A program that somebody else detached: it lives by its pin alone.
    let pin = "set -- /sys/fs/bpf/causeway/*/*/links/outbound4; rm $1";
    clusters.exec("c1n1", &["sh", "-c", pin]).unwrap();
    let finding = found(&clusters, "somebody detached programs: outbound4");
    repair(&clusters, &finding);
    gone(&clusters, "");

    // A service whose port the other cluster calls otherwise: its gateway refuses the CONNECT, and says why.
    let port = |port: u16| {
        format!(
            "kubectl --context cluster2 -n shop patch service db --type json \
             -p '[{{\"op\":\"replace\",\"path\":\"/spec/ports/0/port\",\"value\":{port}}}]'"
        )
    };
    clusters.shell(&port(81)).unwrap();
    let finding = found(&clusters, "db.shop.svc.cluster.local:80 cannot be reached through the entry point");
    assert!(finding["what"].as_str().unwrap().contains(": connect: "), "{finding}");
    let said = repair(&clusters, &finding);
    assert!(said.contains("direction=gateway") && said.contains("db.shop.svc.cluster.local:80"), "{said}");
    let finding = found(&clusters, "ports are 5432/TCP, 80/TCP in cluster1");
    repair(&clusters, &finding);
    gone(&clusters, "");

    // An address of 240.0.0.0/4 that leads nowhere. An istiod from which a link was taken publishes no new service entry, also
    // once it is linked again, until it is started again.
    let istiod = "kubectl --context cluster1 -n istio-system rollout";
    clusters
        .shell(&format!("{istiod} restart deployment/istiod && {istiod} status deployment/istiod --timeout=60s"))
        .unwrap();
    gone(&clusters, "");
    clusters.apply(1, NOWHERE).unwrap();
    let address = "{.status.addresses[*].value}";
    let allotted = || clusters.field(1, "shop", "serviceentry/nowhere", address);
    process::until(PATIENCE, || allotted().is_ok_and(|found| found.contains("240.240.")))
        .unwrap_or_else(|error| panic!("istiod allots no address: {error}: {:?}", allotted()));
    let finding = found(&clusters, "nowhere.example.com has the allotted address 240.240.");
    let said = repair(&clusters, &finding);
    assert!(said.contains("nowhere.example.com"), "{said}");
    clusters.apply(1, SOMEBODY).unwrap();
    gone(&clusters, "");
    clusters.shell("kubectl --context cluster1 -n shop delete serviceentry,workloadentry nowhere").unwrap();

    // Names that nobody answers in the pods of a node.
    clusters.exec("c1n1", &["sh", "-c", SILENCE]).unwrap();
    let finding = found(&clusters, "DNS in cluster1//Pod/shop/");
    clusters.exec("c1n1", &["sh", "-c", SPEECH]).unwrap();
    println!("{finding}");
    gone(&clusters, "");

    // istiod gone to sleep.
    clusters.shell("kubectl --context cluster2 -n istio-system scale deployment istiod --replicas=0").unwrap();
    found(&clusters, "no connection to the control plane at");
    let finding = found(&clusters, "0 of 1 pods of istiod are ready");
    repair(&clusters, &finding);
    gone(&clusters, "");
    linked.settle().unwrap();
}
