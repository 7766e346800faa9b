//! What the gateway role forwards.

use std::collections::BTreeSet;

use super::*;
use crate::hbone::Authority;
use crate::identity::SpiffeId;
use crate::state::{Service, SourceMatch};

const MESH: &str = r#"
workloads:
- {uid: a, namespace: ns, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE, network: net1, services: {ns/web.ns.svc: {}, ns/private.ns.svc: {}, ns/mixed.ns.svc: {}}}
- {uid: b, namespace: ns, workloadIps: [10.0.0.2], protocol: HBONE, network: net1, services: {ns/web.ns.svc: {}, ns/fronted.ns.svc: {}, ns/lost.ns.svc: {}}}
- {uid: p, namespace: ns, workloadIps: [10.0.0.3], network: net1, services: {ns/plain.ns.svc: {}, ns/mixed.ns.svc: {}}}
- {uid: w, namespace: ns, workloadIps: [10.0.0.4], network: net1, services: {ns/waypoint.ns.svc: {}}}
- {uid: lonely, namespace: ns, workloadIps: [10.0.0.5], protocol: HBONE, network: net1}
- uid: remote
  namespace: ns
  workloadIps: []
  protocol: HBONE
  network: net2
  networkGateway: {destination: net2/172.30.2.1}
  services: {ns/web.ns.svc: {}, ns/remote.ns.svc: {}}
- {uid: NetworkGateway/net2/172.30.2.1/15008, namespace: gw, workloadIps: [172.30.2.1], network: net2}
services:
- {name: web, namespace: ns, hostname: web.ns.svc, vips: [net1/10.96.0.1, net2/10.97.0.1], ports: {80: 8080}}
- {name: private, namespace: ns, hostname: private.ns.svc, vips: [net1/10.96.0.2], ports: {80: 8080}}
- {name: mixed, namespace: ns, hostname: mixed.ns.svc, vips: [], ports: {80: 8080}}
- {name: plain, namespace: ns, hostname: plain.ns.svc, vips: [], ports: {80: 8080}}
- {name: remote, namespace: ns, hostname: remote.ns.svc, vips: [], ports: {80: 8080}}
- {name: waypoint, namespace: ns, hostname: waypoint.ns.svc, vips: [], ports: {15008: 15008}}
- {name: fronted, namespace: ns, hostname: fronted.ns.svc, vips: [], ports: {80: 8080}, waypoint: {destination: ns/waypoint.ns.svc}}
- {name: lost, namespace: ns, hostname: lost.ns.svc, vips: [], ports: {80: 8080}, waypoint: {destination: net1/10.0.0.5}}
- {name: empty, namespace: ns, hostname: empty.ns.svc, vips: [], ports: {80: 8080}}
- {name: hidden, namespace: ns, hostname: hidden.ns.svc, vips: [], ports: {80: 8080}, visibility: Namespace}
"#;

const EXPORTS: &str = r#"
  exports: [ns/web.ns.svc, ns/mixed.ns.svc, ns/plain.ns.svc, ns/remote.ns.svc, ns/fronted.ns.svc, ns/lost.ns.svc, ns/empty.ns.svc, ns/hidden.ns.svc]
"#;

fn peer() -> SpiffeId {
    SpiffeId::parse("spiffe://td/ns/ns/sa/client").unwrap()
}

fn forward(model: &Model, authority: &str, source: SourceKind) -> Result<BTreeSet<String>, Refusal> {
    let authority = Authority::parse(authority).unwrap();
    let target = gateway_from(model, &authority, &peer(), source, &NoLoad, &mut rng(5))?;
    for (to, workload) in &target.candidates {
        assert_eq!(to.port(), 15008, "never another port");
        assert!(workload.ips.contains(&to.ip()));
        assert_eq!(&*workload.network, "net1", "never another network");
    }
    Ok(target.candidates.iter().map(|(_, workload)| workload.uid.to_string()).collect())
}

/// Gateway role: what is accepted, what must be refused, picking a destination.
#[test]
fn what_is_forwarded_and_what_is_refused() {
    let model = model_with(MESH, EXPORTS);
    let absent = SourceKind::Absent;
    /// Authority, kind of sender, endpoints or words of the refusal, why.
    type Row = (&'static str, SourceKind, Result<&'static [&'static str], &'static str>, &'static str);
    let rows: [Row; 19] = [
        ("web.ns.svc:80", absent, Ok(&["a", "b"]), "all HBONE endpoints of our network, the remote one not"),
        ("WEB.NS.SVC.:80", absent, Ok(&["a", "b"]), "names in any case"),
        ("10.96.0.1:80", absent, Ok(&["a", "b"]), "VIP of our network"),
        ("10.97.0.1:80", absent, Err("no service that is exported"), "VIP of another network"),
        ("10.96.0.2:80", absent, Err("no service that is exported"), "VIP of a service that is not exported"),
        ("10.0.0.1:8080", absent, Err("no service that is exported"), "pod address"),
        ("127.0.0.1:80", absent, Err("no service that is exported"), "loopback"),
        ("169.254.169.254:80", absent, Err("no service that is exported"), "metadata address"),
        ("private.ns.svc:80", absent, Err("no service that is exported"), "not exported"),
        ("hidden.ns.svc:80", absent, Err("no service that is exported"), "namespace-only services never leave"),
        ("unknown.ns.svc:80", absent, Err("no service that is exported"), "unknown name"),
        ("web.ns.svc:8080", absent, Err("has no port 8080"), "target port instead of service port"),
        ("web.ns.svc:15008", absent, Err("has no port 15008"), "HBONE port itself"),
        ("mixed.ns.svc:80", absent, Ok(&["a"]), "endpoints without HBONE are left out"),
        ("plain.ns.svc:80", absent, Err("none speaks HBONE"), "only endpoints without HBONE"),
        (
            "remote.ns.svc:80",
            absent,
            Err("no usable endpoint here"),
            "only endpoints elsewhere: never through two gateways",
        ),
        ("empty.ns.svc:80", absent, Err("no healthy endpoint"), "no endpoint"),
        ("fronted.ns.svc:80", absent, Ok(&["w"]), "waypoint first, though its record does not say HBONE"),
        ("lost.ns.svc:80", absent, Err("is no service known here"), "waypoint that cannot be found is not bypassed"),
    ];
    for (authority, source, expected, why) in rows {
        match (forward(&model, authority, source), expected) {
            (Ok(found), Ok(wanted)) => {
                assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), wanted, "{why}");
            }
            (Err(refusal), Err(words)) => {
                assert_eq!(refusal.status, 503, "{why}");
                assert!(refusal.reason.contains(words), "{why}: {refusal}");
                assert!(refusal.reason.contains(peer().as_str()), "{refusal}");
            }
            (result, _) => panic!("{why}: {authority}: {result:?}, expected {expected:?}"),
        }
    }
}

/// Gateway role, picking a destination, step 2.
#[test]
fn waypoint_is_skipped_for_those_that_ran_it() {
    let model = model_with(MESH, EXPORTS);
    let rows = [
        (SourceKind::Absent, "w"),
        (SourceKind::Sidecar, "w"),
        (SourceKind::Gateway, "b"),
        (SourceKind::Waypoint, "b"),
    ];
    for (source, expected) in rows {
        let found = forward(&model, "fronted.ns.svc:80", source).unwrap();
        assert_eq!(found, BTreeSet::from([expected.to_owned()]), "{source:?}");
    }
}

/// The header that says what kind of proxy sends.
#[test]
fn claims_count_from_those_believed_only() {
    let exact = SourceMatch::Exact(peer());
    let prefix = SourceMatch::Prefix("spiffe://td/ns/ns/".into());
    let other = SourceMatch::Prefix("spiffe://td/ns/other/".into());
    /// Header, those believed, what counts.
    type Row<'a> = (Option<&'a [u8]>, &'a [SourceMatch], SourceKind);
    let rows: [Row<'_>; 8] = [
        (Some(b"waypoint"), std::slice::from_ref(&exact), SourceKind::Waypoint),
        (Some(b"gateway"), std::slice::from_ref(&prefix), SourceKind::Gateway),
        (Some(b"sidecar"), &[SourceMatch::Any], SourceKind::Sidecar),
        (Some(b"waypoint"), std::slice::from_ref(&other), SourceKind::Absent),
        (Some(b"waypoint"), &[], SourceKind::Absent),
        (Some(b"Waypoint"), &[SourceMatch::Any], SourceKind::Absent),
        (Some(b"\xff"), &[SourceMatch::Any], SourceKind::Absent),
        (None, &[SourceMatch::Any], SourceKind::Absent),
    ];
    for (value, trusted, expected) in rows {
        assert_eq!(SourceKind::claimed(value, &peer(), trusted), expected, "{value:?} {trusted:?}");
    }
}

/// Gateway role, picking a destination, step 2: what comes from an ingress gateway.
#[test]
fn ingress_uses_the_waypoint_of_a_service_that_wants_it() {
    let read = model_with(MESH, EXPORTS);
    let services = read.services().map(|service| Service { ingress_use_waypoint: true, ..(**service).clone() });
    let workloads = read.workloads().map(|workload| (**workload).clone());
    let model = Model::new(read.node.clone(), workloads.collect(), services.collect(), Vec::new());
    for (source, expected) in [(SourceKind::Gateway, "w"), (SourceKind::Waypoint, "b")] {
        let found = forward(&model, "fronted.ns.svc:80", source).unwrap();
        assert_eq!(found, BTreeSet::from([expected.to_owned()]), "{source:?}");
    }
}

#[test]
fn star_exports_every_public_service_and_nothing_is_exported_by_default() {
    let all = model_with(MESH, "  exports: [\"*\"]\n");
    assert!(forward(&all, "private.ns.svc:80", SourceKind::Absent).is_ok());
    assert!(forward(&all, "hidden.ns.svc:80", SourceKind::Absent).is_err());
    assert!(forward(&model(MESH), "web.ns.svc:80", SourceKind::Absent).is_err());
}

#[test]
fn every_endpoint_is_first_about_as_often_as_its_capacity_says() {
    let model = model_with(&MESH.replace("{uid: a,", "{uid: a, capacity: 3,"), EXPORTS);
    let authority = Authority::parse("web.ns.svc:80").unwrap();
    let mut random = rng(9);
    let mut first = 0;
    for _ in 0..4000 {
        let target = gateway(&model, &authority, &peer(), &NoLoad, &mut random).unwrap();
        assert_eq!(target.candidates.len(), 2, "the other one is the fallback");
        first += u32::from(&*target.candidates[0].1.uid == "a");
    }
    assert!((2850..3150).contains(&first), "{first} of 4000");
}
