//! Destinations outside the mesh: `outbound` and `outboundAllowed`, of the node and of enrolments.

use super::*;

const MESH: &str = r#"
workloads:
- {uid: a, namespace: ns, workloadIps: [10.0.0.1], network: net1, node: n1}
- {uid: free, namespace: ns, workloadIps: [10.0.0.2], network: net1, node: n1}
- {uid: tight, namespace: ns, workloadIps: [10.0.0.3], network: net1, node: n1}
- {uid: web, namespace: ns, workloadIps: [10.0.0.4], network: net1, services: {ns/web.ns.svc: {}}}
services:
- {name: web, namespace: ns, hostname: web.ns.svc, vips: [net1/10.96.0.1], ports: {80: 8080}}
- {name: pass, namespace: ns, hostname: pass.ns.svc, vips: [net1/10.96.0.2], ports: {80: 8080}, loadBalancer: {mode: Passthrough}}
"#;

const ENROL: &str = r#"
  enrol:
  - {workload: a, netns: a}
  - {workload: free, netns: b, outbound: allow-any}
  - {workload: tight, netns: c, outboundAllowed: [{cidr: 198.51.100.7, ports: [25]}]}
"#;

const RESTRICTED: &str = r#"
  outbound: registry-only
  outboundAllowed: [{cidr: 203.0.113.0/24, ports: [443, 8443]}, {cidr: "2001:db8::/32"}]
"#;

#[test]
fn egress_outside_the_mesh_is_what_node_and_enrolment_say() {
    let model = model_with(MESH, &format!("{ENROL}{RESTRICTED}"));
    let rows = [
        ("a", "203.0.113.9:443", true, "listed range and port"),
        ("a", "[::ffff:203.0.113.9]:8443", true, "the same as a mapped address"),
        ("a", "203.0.113.9:80", false, "listed range, another port"),
        ("a", "203.0.114.9:443", false, "outside of the range"),
        ("a", "[2001:db8::1]:1", true, "a range without ports allows all"),
        ("a", "[2001:db9::1]:1", false, "another range"),
        ("a", "10.96.0.1:80", true, "a service of the mesh"),
        ("a", "10.96.0.2:80", true, "a service that is passed through is known all the same"),
        ("a", "10.0.0.4:9999", true, "a workload of the mesh, any port"),
        ("free", "203.0.114.9:443", true, "the enrolment allows all"),
        ("tight", "198.51.100.7:25", true, "the enrolment's own list"),
        ("tight", "203.0.113.9:443", false, "instead of the node's"),
    ];
    for (from, to, passes, why) in rows {
        let result = outbound(&model, &workload(&model, from), address(to), &[], &NoLoad, &mut rng(1));
        match (&result, passes) {
            (Ok(_), true) => {}
            (Err(error @ DecideError::Egress { .. }), false) => {
                let whose = if from == "tight" { "of the enrolment of tight" } else { "of this node" };
                let text = error.to_string();
                assert!(text.contains(whose) && text.contains("outbound: registry-only"), "{why}: {text}");
            }
            _ => panic!("{why}: {from} to {to}: {result:?}"),
        }
    }
    let open = model_with(MESH, ENROL.replace("outboundAllowed", "outbound: registry-only, outboundAllowed").as_str());
    let decide = |from: &str| outbound(&open, &workload(&open, from), address("9.9.9.9:9"), &[], &NoLoad, &mut rng(1));
    assert!(matches!(decide("a"), Ok(Outbound::Passthrough { .. })), "all passes unless somebody says otherwise");
    assert!(decide("tight").is_err(), "an enrolment may be stricter than its node");
}
