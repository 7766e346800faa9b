//! The keys about node ports.

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
