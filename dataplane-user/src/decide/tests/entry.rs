//! Where connections to node ports go.

use super::*;
use crate::state::{IpFamilies, NodePort, NodePortTarget};

const MESH: &str = r#"
workloads:
- {uid: here, name: here, namespace: ns, serviceAccount: web, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE, node: n1, network: net1, clusterId: c1, services: {ns/web.ns.svc: {}, ns/fronted.ns.svc: {}}}
- {uid: there, name: there, namespace: ns, serviceAccount: web, workloadIps: [10.0.0.2], protocol: HBONE, node: n2, network: net1, clusterId: c1, services: {ns/web.ns.svc: {}}}
- {uid: namesake, name: namesake, namespace: ns, serviceAccount: web, workloadIps: [10.0.0.3], protocol: HBONE, node: n1, network: net1, clusterId: c9, services: {ns/far.ns.svc: {}}}
- {uid: waypoint, namespace: ns, serviceAccount: waypoint, workloadIps: [10.0.0.4], node: n2, network: net1, clusterId: c1}
- uid: net2/SplitHorizonWorkload/gw/gw/172.30.2.1/ns/global.ns.svc
  namespace: ns
  workloadIps: []
  protocol: HBONE
  network: net2
  networkGateway: {destination: net2/172.30.2.1, hboneMtlsPort: 15008}
  services: {ns/global.ns.svc: {80: 0}}
- {uid: NetworkGateway/net2/172.30.2.1/15008, namespace: gw, serviceAccount: gw, workloadIps: [172.30.2.1], network: net2}
services:
- {name: web, namespace: ns, hostname: web.ns.svc, vips: [net1/10.96.0.1], ports: {80: 8080}}
- {name: far, namespace: ns, hostname: far.ns.svc, vips: [net1/10.96.0.2], ports: {80: 8080}}
- {name: fronted, namespace: ns, hostname: fronted.ns.svc, vips: [net1/10.96.0.3], ports: {80: 8080}, waypoint: {destination: net1/10.0.0.4}, ingressUseWaypoint: true}
- {name: global, namespace: ns, hostname: global.ns.svc, vips: [net1/10.96.0.5], ports: {80: 8080}, subjectAltNames: ["spiffe://td/ns/ns/sa/remote"]}
"#;
const ENTRY: &str = "  entry: {identity: spiffe://td/ns/i/sa/entry}\n";

fn node_port(service: &str, local: bool) -> NodePort {
    let target = NodePortTarget::Service { key: format!("ns/{service}.ns.svc").into(), port: 80 };
    NodePort { port: 30080, target, local, health_check: None, families: IpFamilies::Dual }
}

fn reached(model: &Model, service: &str, local: bool, caller: Caller, v4: bool) -> Vec<String> {
    let source = &model.node.entry.as_ref().unwrap().workload;
    let mut found: Vec<String> = (1..40)
        .map(|seed| {
            let port = node_port(service, local);
            match entry(model, source, &port, (caller, v4), &[], &NoLoad, &mut rng(seed)) {
                Ok(Outbound::Hbone(route)) => {
                    let near = if route.same_node { " near" } else { "" };
                    let through = if route.waypoint { " waypoint" } else { "" };
                    format!("hbone {} {}{near}{through}", route.to, route.authority)
                }
                Ok(Outbound::Nested(route)) => format!("nested {} {}", route.network, route.authority),
                Ok(other) => format!("{other:?}"),
                Err(error) => error.to_string(),
            }
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn table() {
    let model = model_with(MESH, ENTRY);
    let near = "hbone 10.0.0.1:15008 10.0.0.1:8080 near";
    let near6 = "hbone [fd00::1]:15008 [fd00::1]:8080 near";
    let far = "hbone 10.0.0.2:15008 10.0.0.2:8080";
    let none = "no healthy upstream for ns/far.ns.svc port 80: no endpoint is on this node, and externalTrafficPolicy is Local";
    for (service, local, caller, v4, expected, why) in [
        ("web", false, Caller::Outside, true, vec![near, far], "any endpoint"),
        ("web", true, Caller::Outside, true, vec![near], "only those of this node"),
        ("web", true, Caller::Outside, false, vec![near6], "of the client's family"),
        ("web", true, Caller::Inside, true, vec![near, far], "callers on the node reach all"),
        ("far", true, Caller::Outside, true, vec![none], "a node of that name in another cluster is another node"),
        ("global", false, Caller::Outside, true, vec!["nested net2 global.ns.svc:80"], "across networks"),
        (
            "fronted",
            false,
            Caller::Outside,
            true,
            vec!["hbone 10.0.0.4:15008 10.96.0.3:80 waypoint"],
            "through a waypoint that wants what comes in",
        ),
    ] {
        assert_eq!(reached(&model, service, local, caller, v4), expected, "{service}: {why}");
    }
    let unknown = reached(&model, "nobody", false, Caller::Outside, true);
    assert!(unknown[0].contains("the mesh model does not know it"), "{unknown:?}");
}

#[test]
fn a_node_counts_its_own_endpoints() {
    let model = model_with(MESH, ENTRY);
    for (service, count) in [("web", 1), ("far", 0), ("global", 0), ("nobody", 0)] {
        assert_eq!(local_endpoints(&model, &format!("ns/{service}.ns.svc")), count, "{service}");
    }
}

#[test]
fn a_client_is_who_a_trusted_entry_says_and_else_the_other_end() {
    let trust = "  trustedEntries: {identities: [spiffe://td/ns/i/sa/entry], podRanges: [10.244.0.0/16]}\n";
    let model = model_with(MESH, trust);
    let id = |account: &str| crate::identity::SpiffeId::new("td", "i", account).unwrap();
    let from = address("172.30.2.1:4444");
    for (peer, told, expected, why) in [
        ("entry", Some("203.0.113.7:999"), "203.0.113.7:999", "an outside client"),
        ("entry", Some("[2001:db8::7]:999"), "[2001:db8::7]:999", "over IPv6"),
        ("other", Some("203.0.113.7:999"), "172.30.2.1:0", "of somebody who is not believed"),
        ("entry", Some("10.244.1.2:999"), "172.30.2.1:0", "an address of the pods' range"),
        ("entry", Some("10.0.0.1:999"), "172.30.2.1:0", "an address of a workload outside that range"),
        ("entry", None, "172.30.2.1:0", "nothing told"),
    ] {
        let got = client(&model, &id(peer), told.map(address), from);
        assert_eq!(got, address(expected), "{why}");
    }
}
