//! Pods of headless services in other networks, by name: at the source, at the gateway, at the destination.

use super::*;
use crate::hbone::Authority;
use crate::identity::SpiffeId;
use crate::state::PodName;

/// Both ends of the same mesh in one model: the source is of `net1`, gateway and destination are looked at as of `net2`.
const MESH: &str = r#"
workloads:
- {uid: client, name: client, namespace: ns, workloadIps: [10.0.0.1], protocol: HBONE, network: net1}
- {uid: stranger, name: stranger, namespace: other, workloadIps: [10.0.0.2], protocol: HBONE, network: net1}
- {uid: db-0, name: db-0, namespace: ns, workloadIps: ["fd00::10", 10.0.0.10], protocol: HBONE, network: net1, services: {ns/db.ns.svc.cluster.local: {}}}
- {uid: db-5, name: db-5, namespace: ns, workloadIps: [10.0.0.15], protocol: HBONE, network: net1, status: Unhealthy, services: {ns/db.ns.svc.cluster.local: {}}}
- {uid: clash, name: clash, namespace: ns, workloadIps: [240.254.9.9], protocol: HBONE, network: net1}
- {uid: far-1, name: db-1, namespace: ns, workloadIps: [10.0.0.11], protocol: HBONE, network: net2, services: {ns/db.ns.svc.cluster.local: {5432: 6432}, ns/private.ns.svc.cluster.local: {}}}
- {uid: far-2, name: db-2, namespace: ns, workloadIps: [10.0.0.12], protocol: HBONE, network: net2, status: Unhealthy, services: {ns/db.ns.svc.cluster.local: {}}}
- {uid: far-3, name: db-3, namespace: ns, workloadIps: [10.0.0.13], network: net2, services: {ns/db.ns.svc.cluster.local: {}}}
- {uid: far-4, name: db-4, namespace: ns, workloadIps: [10.0.0.14], protocol: HBONE, network: net2, waypoint: {destination: net2/10.0.0.20}, services: {ns/db.ns.svc.cluster.local: {}}}
- {uid: web, name: web-0, namespace: ns, workloadIps: [10.0.0.20], protocol: HBONE, network: net2, services: {ns/web.ns.svc.cluster.local: {}}}
- uid: net2/SplitHorizonWorkload/gw/gw/172.30.2.1/ns/db
  namespace: ns
  workloadIps: []
  protocol: HBONE
  network: net2
  capacity: 4
  networkGateway: {destination: net2/172.30.2.1}
  services: {ns/db.ns.svc.cluster.local: {}, ns/hidden.ns.svc.cluster.local: {}}
- {uid: NetworkGateway/net2/172.30.2.1/15008, namespace: gw, workloadIps: [172.30.2.1], network: net2}
services:
- {name: db, namespace: ns, hostname: db.ns.svc.cluster.local, vips: [], ports: {5432: 5432, 80: 8080, 81: 0}, subjectAltNames: ["spiffe://td/ns/ns/sa/db"]}
- {name: private, namespace: ns, hostname: private.ns.svc.cluster.local, vips: [], ports: {80: 8080}}
- {name: hidden, namespace: ns, hostname: hidden.ns.svc.cluster.local, vips: [], ports: {80: 8080}, visibility: Namespace, subjectAltNames: ["spiffe://td/ns/ns/sa/db"]}
- {name: web, namespace: ns, hostname: web.ns.svc.cluster.local, vips: [net1/10.96.0.1, net2/10.97.0.1], ports: {80: 8080}}
"#;

const DB: &str = "ns/db.ns.svc.cluster.local";

fn pod(service: &str, pod: &str, network: &str) -> Option<PodName> {
    Some(PodName { service: service.into(), pod: pod.into(), network: network.into() })
}

fn from(uid: &str, to: &str, name: Option<&PodName>, avoid: &[Arc<str>]) -> Result<Outbound, DecideError> {
    let model = model(MESH);
    reserved(&model, &workload(&model, uid), (address(to), name), avoid, &NoLoad, &mut rng(1))
}

fn told(result: Result<Outbound, DecideError>) -> String {
    match result {
        Ok(Outbound::Nested(route)) => format!(
            "nested {} {} {} {} of {}",
            route.network,
            route.authority,
            route.expected,
            route.pod.unwrap_or_default(),
            route.capacity
        ),
        Ok(Outbound::Hbone(route)) => format!("hbone {} {}", route.to, route.authority),
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("error {error}"),
    }
}

#[test]
fn a_reserved_address_leads_to_the_pod_it_stands_for_or_nowhere() {
    let at = "240.254.1.1:5432";
    let rows = [
        (
            "client",
            at,
            pod(DB, "db-1", "net2"),
            "nested net2 db-1.db.ns.svc.cluster.local:5432 spiffe://td/ns/ns/sa/db db-1 of 1",
            "the full name of the pod, identities of the service, one pod",
        ),
        ("client", at, pod(DB, "db-9", "net2"), "nested net2 db-9.db", "only the gateway knows which pods are there"),
        ("client", at, pod(DB, "db-0", "net2"), "hbone 10.0.0.10:15008 10.0.0.10:5432", "a local pod of the name wins"),
        ("client", at, pod(DB, "db-5", "net2"), "error pod db-5 of ns/db", "also when it is not ready"),
        ("client", at, None, "error 240.254.1.1 is kept for pods", "an address that stands for nothing"),
        (
            "client",
            at,
            pod("ns/gone.ns.svc", "x", "net2"),
            "error pod x of ns/gone.ns.svc: its service",
            "service is gone",
        ),
        (
            "client",
            at,
            pod(DB, "db-1", "net3"),
            "error pod db-1 of ns/db.ns.svc.cluster.local: network net3",
            "network is gone",
        ),
        (
            "client",
            at,
            pod("ns/web.ns.svc.cluster.local", "web-0", "net2"),
            "error pod web-0 of ns/web",
            "the service has addresses of its own by now",
        ),
        (
            "stranger",
            at,
            pod("ns/hidden.ns.svc.cluster.local", "x", "net2"),
            "error pod x of ns/hidden",
            "a service that this namespace may not see",
        ),
        (
            "client",
            "240.254.9.9:80",
            pod(DB, "db-1", "net2"),
            "hbone 240.254.9.9:15008",
            "what the mesh itself uses is that",
        ),
        (
            "client",
            "[::ffff:240.254.1.1]:80",
            None,
            "error 240.254.1.1 is kept for pods",
            "the same as a mapped address",
        ),
    ];
    for (uid, to, name, expected, why) in rows {
        let result = told(from(uid, to, name.as_ref(), &[]));
        assert!(result.starts_with(expected), "{why}: {result}, expected {expected}");
    }
    let tried = [Arc::from("net2/SplitHorizonWorkload/gw/gw/172.30.2.1/ns/db")];
    let result = told(from("client", at, pod(DB, "db-1", "net2").as_ref(), &tried));
    assert!(result.starts_with("error pod db-1"), "tried once is enough: {result}");
}

/// The mesh as a node of the other network sees it.
fn other_side() -> Model {
    let node = "causeway: {node: n2, cluster: c2, network: net2, trustDomain: td, identity: {caDirectory: certs}, exports: [ns/db.ns.svc.cluster.local, ns/web.ns.svc.cluster.local, ns/hidden.ns.svc.cluster.local]}\n";
    file::parse(&format!("{MESH}{node}"), Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_gateway_finds_exported_pods_by_name_and_no_others() {
    let model = other_side();
    let peer = SpiffeId::parse("spiffe://td/ns/ns/sa/client").unwrap();
    /// Authority, endpoint or status and words, why.
    type Row = (&'static str, Result<&'static str, (u16, &'static str)>, &'static str);
    let rows: [Row; 14] = [
        ("db-1.db.ns.svc.cluster.local:6432", Ok("far-1"), "the pod's own port"),
        ("db-1.db.ns.svc.cluster.local:5432", Ok("far-1"), "a port of the service stands for it"),
        ("DB-1.db.ns.svc.cluster.local.:8080", Ok("far-1"), "names in any case"),
        ("db-1.db.ns.svc.cluster.local:9999", Err((503, "offers no port 9999")), "no port that the service has"),
        ("db-1.db.ns.svc.cluster.local:81", Err((503, "offers no port 81")), "a port without a target at this pod"),
        ("db-9.db.ns.svc.cluster.local:5432", Err((404, "no such pod at net2")), "no pod of that name"),
        ("db-0.db.ns.svc.cluster.local:5432", Err((404, "no such pod at net2")), "a pod of another network"),
        ("db-2.db.ns.svc.cluster.local:5432", Err((404, "is not ready")), "not ready"),
        ("db-3.db.ns.svc.cluster.local:5432", Err((503, "speaks no HBONE")), "never past the tunnel's port"),
        ("db-4.db.ns.svc.cluster.local:5432", Err((503, "behind a waypoint")), "its policies would not run"),
        (
            "db-1.private.ns.svc.cluster.local:80",
            Err((404, "no headless service of that name is exported")),
            "not exported",
        ),
        ("db-1.hidden.ns.svc.cluster.local:80", Err((404, "no headless service")), "for its namespace alone"),
        ("db-1.none.ns.svc.cluster.local:80", Err((404, "no headless service")), "unknown, with the same answer"),
        (
            "web-0.web.ns.svc.cluster.local:80",
            Err((404, "no headless service")),
            "pods of other services have no names",
        ),
    ];
    for (authority, expected, why) in rows {
        let authority = Authority::parse(authority).unwrap();
        let result = gateway(&model, &authority, &peer, &NoLoad, &mut rng(1));
        match (result, expected) {
            (Ok(target), Ok(uid)) => {
                let found: Vec<&str> = target.candidates.iter().map(|(_, workload)| &*workload.uid).collect();
                assert_eq!(found, [uid], "{why}: one name, one pod");
                assert!(target.candidates.iter().all(|(to, _)| to.port() == 15008), "{why}");
                assert_eq!(still_exported(&model, &authority), Ok(()), "{why}");
            }
            (Err(refusal), Err((status, words))) => {
                assert_eq!(refusal.status, status, "{why}: {refusal}");
                assert!(refusal.reason.contains(words) && refusal.reason.contains(peer.as_str()), "{why}: {refusal}");
            }
            (result, _) => panic!("{why}: {authority}: {result:?}, expected {expected:?}"),
        }
    }
    let private = Authority::parse("db-1.private.ns.svc.cluster.local:80").unwrap();
    assert!(still_exported(&model, &private).is_err());
}

#[test]
fn a_pod_answers_to_its_own_name_only() {
    let model = other_side();
    let own = workload(&model, "far-1");
    let rows = [
        ("db-1.db.ns.svc.cluster.local:6432", Ok(6432), "its own port"),
        ("db-1.db.ns.svc.cluster.local:5432", Ok(6432), "the service's port, by its own mapping"),
        ("db-1.db.ns.svc.cluster.local:80", Ok(8080), "the service's port, by the service's mapping"),
        ("db-1.private.ns.svc.cluster.local:8080", Ok(8080), "any headless service it belongs to"),
        ("db-1.db.ns.svc.cluster.local:9999", Err(503), "no port that the service has"),
        ("db-2.db.ns.svc.cluster.local:6432", Err(503), "another pod's name"),
        ("db-1.web.ns.svc.cluster.local:8080", Err(503), "a service it does not belong to"),
        ("db-1.x.db.ns.svc.cluster.local:6432", Err(503), "a name of another form"),
    ];
    for (authority, expected, why) in rows {
        let authority = Authority::parse(authority).unwrap();
        let result = inbound(&model, &own, address("10.0.0.11:15008"), &authority, None);
        assert_eq!(
            result.as_ref().map(|target| target.port).map_err(|refusal| refusal.status),
            expected,
            "{why}: {result:?}"
        );
    }
}

#[test]
fn one_route_into_each_other_network_is_tried() {
    let model = model(MESH);
    let routes = abroad(&model, &workload(&model, "client"));
    let told: Vec<String> = routes.iter().map(|route| format!("{} {}", route.network, route.authority)).collect();
    assert_eq!(told, ["net2 db.ns.svc.cluster.local:80"], "the first by key of those with an endpoint there");
    assert!(abroad(&model, &workload(&model, "far-1")).is_empty(), "the own network is none of them");
}

#[test]
fn allotted_addresses_lead_somewhere_or_say_why_not() {
    let mesh = r#"
workloads:
- {uid: client, name: client, namespace: ns, workloadIps: [10.0.0.1], protocol: HBONE, network: net1}
- {uid: outside, name: outside, namespace: ns, workloadIps: [192.0.2.1], network: net1, services: {ns/api.example.com: {}}}
services:
- {name: api, namespace: ns, hostname: api.example.com, vips: [net1/240.240.0.1, "net1/2001:2::1"], ports: {443: 443}}
- {name: gone, namespace: ns, hostname: gone.example.com, vips: [net1/240.240.0.2], ports: {443: 443}}
- {name: other, namespace: ns, hostname: other.example.com, vips: [net2/240.240.0.3], ports: {443: 443}}
- {name: wild, namespace: ns, hostname: "*.example.com", vips: [net1/240.240.0.4], ports: {443: 443}}
- {name: near, namespace: ns, hostname: near.ns.svc.cluster.local, vips: [net1/10.96.0.1], ports: {80: 80}}
- {name: private, namespace: other, hostname: private.example.com, vips: [net1/240.240.0.5], ports: {443: 443}, visibility: Namespace}
"#;
    let model = model(mesh);
    let found = allotted(&model, &workload(&model, "client"), 9);
    let names: Vec<&str> = found.iter().map(|one| &*one.hostname).collect();
    assert_eq!(names, ["api.example.com", "gone.example.com"]);
    assert_eq!(found[0].routed, Ok(()));
    assert!(found[1].routed.as_ref().is_err_and(|why| why.contains("no healthy endpoint")), "{:?}", found[1]);
    let first = allotted(&model, &workload(&model, "client"), 1);
    assert_eq!(first.iter().map(|one| &*one.hostname).collect::<Vec<_>>(), ["api.example.com"]);
}
