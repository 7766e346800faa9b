//! The keys about node ports.

use std::net::IpAddr;

use super::*;
use crate::state::{IpFamilies, NodePortTarget};

/// Lines below `causeway`, then the field and words of the answer.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("  nodePorts: [{gateway: true, nodePort: 30080}]\n", "causeway.nodePorts", "no entry says in whose name"),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e}\n  nodePorts: [{nodePort: 30080}]\n",
        "causeway.nodePorts[0]",
        "needs either service and port, or gateway",
    ),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e}\n  nodePorts: [{gateway: true, nodePort: 0}]\n",
        "causeway.nodePorts[0].nodePort",
        "0 is no port",
    ),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e}\n  nodePorts: [{gateway: true, nodePort: 30080}, {gateway: true, nodePort: 30080}]\n",
        "causeway.nodePorts[1].nodePort",
        "already used by",
    ),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e}\n  nodePorts: [{gateway: true, nodePort: 30080, healthCheckNodePort: 30081}]\n",
        "causeway.nodePorts[0].healthCheckNodePort",
        "which nobody needs to know",
    ),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e}\n  nodePorts: [{gateway: true, nodePort: 30080, externalTrafficPolicy: Near}]\n",
        "causeway.nodePorts[0].externalTrafficPolicy",
        "unknown variant `Near`",
    ),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e}\n  nodePorts: [{service: default/wob.local, port: 80, nodePort: 30080}]\n",
        "causeway.nodePorts[0].service",
        "no service",
    ),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e}\n  nodePorts: [{service: default/web.default.svc.cluster.local, port: 81, nodePort: 30080}]\n",
        "causeway.nodePorts[0].port",
        "has no port 81",
    ),
    ("  entry: {identity: spiffe://else/ns/i/sa/e}\n", "causeway.entry.identity", "not of the own trust domain"),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e, addresses: [here]}\n",
        "causeway.entry.addresses[0]",
        "not a usable address",
    ),
    (
        "  entry: {identity: spiffe://cluster.local/ns/i/sa/e, uplinks: [a/b]}\n",
        "causeway.entry.uplinks[0]",
        "is no name of a device",
    ),
    (
        "  trustedEntries: {identities: [spiffe://cluster.local/ns/i/sa/e]}\n",
        "causeway.trustedEntries.podRanges",
        "could pass a client off as any pod",
    ),
];

fn with(lines: &str) -> String {
    GOOD.replacen("  node: c1n1\n", &format!("  node: c1n1\n{lines}"), 1)
}

#[test]
fn each_mistake_about_node_ports_is_answered_with_its_place() {
    for (lines, field, words) in MISTAKES {
        let error = read(&with(lines)).expect_err(lines);
        let problem = error.problems.iter().find(|problem| problem.field == *field);
        let problem = problem.unwrap_or_else(|| panic!("{lines}: expected a problem at {field}, got {error}"));
        assert!(problem.message.contains(words), "{lines}: {error}");
        assert!(problem.line > 0 && problem.column > 0, "{lines}: no place: {error}");
    }
}

#[test]
fn node_ports_are_read() {
    let text = with(concat!(
        "  entry: {identity: spiffe://cluster.local/ns/istio-system/sa/causeway, uplinks: [eth0], netns: host}\n",
        "  nodePorts:\n",
        "  - {service: default/web.default.svc.cluster.local, port: 80, nodePort: 30080, externalTrafficPolicy: Local,\n",
        "     healthCheckNodePort: 30081, families: [IPv6]}\n",
        "  - {gateway: true, nodePort: 31508}\n",
        "  trustedEntries: {identities: [\"spiffe://cluster.local/ns/istio-system/*\"], podRanges: [10.244.0.0/16]}\n",
    ));
    let node = read(&text).unwrap_or_else(|error| panic!("{error}")).node;
    let entry = node.entry.as_ref().unwrap();
    assert_eq!(entry.netns.as_deref(), Some(Path::new("/etc/causeway/host")));
    let workload = &entry.workload;
    assert_eq!((&*workload.node, &*workload.cluster, &*workload.network), ("c1n1", "cluster1", "network1"));
    assert_eq!(workload.identity.as_str(), "spiffe://cluster.local/ns/istio-system/sa/causeway");
    let [web, gateway] = node.node_ports.as_slice() else { panic!("{:?}", node.node_ports) };
    assert_eq!((web.port, web.local, web.health_check, web.families), (30080, true, Some(30081), IpFamilies::V6));
    assert!(matches!(&web.target, NodePortTarget::Service { port: 80, .. }));
    assert_eq!((&gateway.target, gateway.local, gateway.families), (&NodePortTarget::Gateway, false, IpFamilies::Dual));
    assert!(node.trusted_entries.believed(&workload.identity, "203.0.113.7".parse().unwrap()));
}

#[test]
fn the_entry_of_a_file_without_one_is_that_of_the_environment() {
    let entry = EntryDefaults {
        account: ("istio-system".to_owned(), "causeway".to_owned()),
        netns: "/host/proc/1/ns/net".to_owned(),
        uplinks: vec!["bond0".to_owned()],
        internal: vec!["172.29.1.1".to_owned(), "fd00::1".to_owned()],
        pod_ranges: vec!["10.244.0.0/16".to_owned()],
    };
    let defaults = Defaults { entry: Some(entry), trust_domain: "td".to_owned(), ..Defaults::default() };
    let read = |more: &str| {
        let text = format!("causeway: {{node: n, identity: {{caDirectory: x}}{more}}}");
        parse_with(&text, Path::new("/etc/m.yaml"), &defaults).unwrap_or_else(|error| panic!("{error}")).node
    };
    let node = read("");
    let entry = node.entry.as_ref().unwrap();
    assert_eq!(entry.workload.identity.as_str(), "spiffe://td/ns/istio-system/sa/causeway");
    assert_eq!(entry.netns.as_deref(), Some(Path::new("/host/proc/1/ns/net")));
    assert_eq!((entry.uplinks.as_slice(), entry.addresses.as_slice()), (&["bond0".to_owned()][..], &[][..]));
    let internal: Vec<IpAddr> = vec!["172.29.1.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    assert_eq!(entry.internal, internal);
    let believed = |node: &crate::state::NodeConfig, client: &str| {
        let identity = &node.entry.as_ref().unwrap().workload.identity;
        node.trusted_entries.believed(identity, client.parse().unwrap())
    };
    assert!(believed(&node, "203.0.113.7") && !believed(&node, "10.244.1.2"));
    // What a file says of its entry counts; what it leaves out is filled in.
    let node = read(
        ", entry: {identity: spiffe://td/ns/i/sa/e, uplinks: [eth7]}, trustedEntries: {identities: [spiffe://td/ns/i/sa/other], podRanges: [10.0.0.0/8]}",
    );
    let entry = node.entry.as_ref().unwrap();
    assert_eq!(
        (entry.workload.identity.as_str(), entry.uplinks.as_slice()),
        ("spiffe://td/ns/i/sa/e", &["eth7".to_owned()][..])
    );
    assert_eq!(entry.netns.as_deref(), Some(Path::new("/host/proc/1/ns/net")));
    assert!(!believed(&node, "203.0.113.7"));
}
