//! What CONNECT requests reach: WIRE 8.1.

use super::*;
use crate::hbone::Authority;
use crate::identity::SpiffeId;

const MESH: &str = r#"
workloads:
- {uid: own, namespace: ns, serviceAccount: own, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE, network: net1, services: {ns/web.ns.svc: {80: 8081}, ns/bare.ns.svc: {}}}
- {uid: other, namespace: ns, serviceAccount: other, workloadIps: [10.0.0.2], protocol: HBONE, network: net1, services: {ns/foreign.ns.svc: {}}}
- {uid: waypoint, namespace: ns, serviceAccount: waypoint, workloadIps: [10.0.0.3], protocol: HBONE, network: net1}
- {uid: fronted, namespace: ns, workloadIps: [10.0.0.4], protocol: HBONE, network: net1, waypoint: {destination: net1/10.0.0.3}}
- {uid: tunnel, namespace: ns, workloadIps: [10.0.0.5], protocol: HBONE, network: net1, applicationTunnel: {protocol: PROXY, port: 9999}}
- {uid: any, namespace: ns, workloadIps: [10.0.0.6], protocol: HBONE, network: net1, applicationTunnel: {protocol: NONE}}
services:
- {name: web, namespace: ns, hostname: web.ns.svc, vips: [net1/10.96.0.1], ports: {80: 8080, 81: 0}}
- {name: bare, namespace: ns, hostname: bare.ns.svc, vips: [], ports: {80: 8080, 15: 15008}}
- {name: foreign, namespace: ns, hostname: foreign.ns.svc, vips: [net1/10.96.0.2], ports: {80: 8080}}
- {name: fronted, namespace: ns, hostname: fronted.ns.svc, vips: [net1/10.96.0.3], ports: {80: 8080}, waypoint: {destination: net1/10.0.0.3}}
- {name: web, namespace: secret, hostname: web2.secret.svc, vips: [], ports: {80: 8080}, visibility: Namespace}
"#;

/// WIRE 8.1, steps 3 to 7.
#[test]
fn authorities_and_answers() {
    let model = model(MESH);
    let peer = SpiffeId::parse("spiffe://td/ns/ns/sa/client").unwrap();
    /// Workload, own socket, authority, port or status, why.
    type Row = (&'static str, &'static str, &'static str, Result<u16, u16>, &'static str);
    let rows: [Row; 23] = [
        ("own", "10.0.0.1:15008", "10.0.0.1:8080", Ok(8080), "own address, any port"),
        ("own", "[fd00::1]:15008", "[fd00::1]:1", Ok(1), "own IPv6 address"),
        ("own", "[::ffff:10.0.0.1]:15008", "10.0.0.1:8080", Ok(8080), "socket of a mapped address"),
        ("own", "10.0.0.1:15008", "10.0.0.2:8080", Err(400), "another pod's address"),
        ("own", "10.0.0.1:15008", "10.96.0.1:80", Err(400), "a VIP without being its waypoint"),
        ("own", "10.0.0.1:15008", "10.0.0.1:15008", Err(503), "our HBONE listener"),
        ("own", "10.0.0.1:15008", "10.0.0.1:15001", Err(503), "our outbound listener"),
        ("own", "10.0.0.1:15008", "10.0.0.1:15006", Err(503), "our plaintext listener"),
        ("own", "10.0.0.1:15008", "web.ns.svc:80", Ok(8081), "own mapping of the service port"),
        ("own", "10.0.0.1:15008", "WEB.ns.svc.:80", Ok(8081), "names in any case, one trailing dot"),
        ("own", "10.0.0.1:15008", "bare.ns.svc:80", Ok(8080), "target port of the service"),
        ("own", "10.0.0.1:15008", "bare.ns.svc:15", Err(503), "a service port that means our listener"),
        ("own", "10.0.0.1:15008", "web.ns.svc:81", Err(503), "target port 0 without a mapping"),
        ("own", "10.0.0.1:15008", "web.ns.svc:82", Err(503), "no such service port"),
        ("own", "10.0.0.1:15008", "nobody.ns.svc:80", Err(503), "unknown name"),
        ("own", "10.0.0.1:15008", "foreign.ns.svc:80", Err(503), "a service we are no endpoint of"),
        ("own", "10.0.0.1:15008", "web2.secret.svc:80", Err(503), "a service hidden from us"),
        ("waypoint", "10.0.0.3:15008", "10.0.0.4:80", Ok(80), "address of a pod we are the waypoint of"),
        ("waypoint", "10.0.0.3:15008", "10.96.0.3:80", Ok(80), "VIP of a service we are the waypoint of"),
        ("waypoint", "10.0.0.3:15008", "fronted.ns.svc:80", Ok(8080), "name of a service we are the waypoint of"),
        ("waypoint", "10.0.0.3:15008", "10.96.0.2:80", Err(400), "VIP of a service with another waypoint"),
        ("tunnel", "10.0.0.5:15008", "10.77.0.1:80", Ok(9999), "an application tunnel takes all, on its port"),
        ("any", "10.0.0.6:15008", "10.77.0.1:80", Ok(80), "an application tunnel without a port"),
    ];
    for (uid, local, authority, expected, why) in rows {
        let authority = Authority::parse(authority).unwrap();
        let own = workload(&model, uid);
        let result = inbound(&model, &own, address(local), &authority, Some(&peer));
        match (&result, expected) {
            (Ok(target), Ok(port)) => {
                assert_eq!(target.port, port, "{why}");
                assert_eq!(target.address, address(local).ip().to_canonical(), "{why}: always the own address");
                assert_eq!(target.proxy_header, uid == "tunnel", "{why}");
            }
            (Err(refusal), Err(status)) => {
                assert_eq!((refusal.status, refusal.leg), (status, "connect"), "{why}: {refusal}");
                assert!(refusal.reason.contains(peer.as_str()), "{refusal}");
            }
            _ => panic!("{why}: {uid} {authority}: {result:?}, expected {expected:?}"),
        }
    }
}

/// WIRE 8.1, steps 7 and 8: policy is asked about the port at which the connection really arrives.
#[test]
fn policy_decides_about_the_final_port() {
    let text = MESH.replace("- {uid: other,", "- {uid: guarded, namespace: ns, workloadIps: [10.0.0.7], protocol: HBONE, network: net1, applicationTunnel: {protocol: PROXY, port: 9999}, services: {ns/web.ns.svc: {80: 8081}}}\n- {uid: other,");
    let deny = |port: u16| {
        let rules = format!("[[[{{destinationPorts: [{port}]}}]]]");
        format!(
            "{text}policies:\n- {{name: p, namespace: ns, scope: Namespace, action: Deny, dryRun: false, rules: {rules}}}\n"
        )
    };
    let peer = SpiffeId::parse("spiffe://td/ns/ns/sa/client").unwrap();
    let rows = [
        ("own", "10.0.0.1:15008", 80, true, "the port of the service"),
        ("own", "10.0.0.1:15008", 8081, false, "the port it means here"),
        ("guarded", "10.0.0.7:15008", 8081, true, "the port behind the application tunnel"),
        ("guarded", "10.0.0.7:15008", 9999, false, "the application tunnel's own"),
    ];
    for (uid, local, port, allowed, why) in rows {
        let model = model(&deny(port));
        let own = workload(&model, uid);
        let authority = Authority::parse("web.ns.svc:80").unwrap();
        let target = inbound(&model, &own, address(local), &authority, Some(&peer)).unwrap();
        let context = PolicyContext {
            identity: Some(&peer),
            source_ip: "10.0.0.9".parse().unwrap(),
            destination_ip: target.address,
            destination_port: target.port,
        };
        assert_eq!(policy(&model, &own, &context).allowed, allowed, "{why}");
    }
}

#[test]
fn the_service_that_was_named_is_told() {
    let model = model(MESH);
    let own = workload(&model, "own");
    let named = |text: &str| {
        let authority = Authority::parse(text).unwrap();
        let target = inbound(&model, &own, address("10.0.0.1:15008"), &authority, None).unwrap();
        target.service.map(|service| service.key.to_string())
    };
    assert_eq!(named("web.ns.svc:80").as_deref(), Some("ns/web.ns.svc"));
    assert_eq!(named("10.0.0.1:80"), None);
}
