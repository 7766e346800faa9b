//! Where connections of enrolled workloads go: WIRE 8.3, with the lookups of WIRE 10.1, the waypoints of WIRE 10.4 and the
//! beginning of WIRE 5.

use super::*;

const MESH: &str = r#"
workloads:
- {uid: client, name: client, namespace: ns, serviceAccount: client, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE, node: n1, network: net1, clusterId: c1}
- {uid: web1, namespace: ns, serviceAccount: web, workloadIps: [10.0.0.2, "fd00::2"], protocol: HBONE, node: n1, network: net1, clusterId: c1, services: {ns/web.ns.svc: {}}}
- {uid: plain, namespace: ns, workloadIps: [10.0.0.3], node: n2, network: net1, clusterId: c1, services: {ns/plain.ns.svc: {80: 9090}}}
- {uid: waypoint, namespace: ns, serviceAccount: waypoint, workloadIps: [10.0.0.4], node: n2, network: net1, clusterId: c1, services: {ns/waypoint.ns.svc: {}}}
- {uid: fronted, namespace: ns, serviceAccount: fronted, workloadIps: [10.0.0.5], protocol: HBONE, node: n2, network: net1, clusterId: c1, waypoint: {destination: net1/10.0.0.4}, services: {ns/fronted.ns.svc: {}}}
- {uid: host, namespace: ns, workloadIps: [192.168.0.1], network: net1, networkMode: HostNetwork, services: {ns/host.ns.svc: {}}}
- uid: net2/SplitHorizonWorkload/gw/gw/172.30.2.1/ns/global.ns.svc
  namespace: ns
  workloadIps: []
  protocol: HBONE
  network: net2
  capacity: 3
  networkGateway: {destination: net2/172.30.2.1, hboneMtlsPort: 15008}
  services: {ns/global.ns.svc: {80: 0}, ns/nosan.ns.svc: {80: 0}}
- {uid: NetworkGateway/net2/172.30.2.1/0, namespace: gw, serviceAccount: gw, workloadIps: [172.30.2.1], network: net2}
- {uid: NetworkGateway/net2/172.30.2.2/31008, namespace: gw, serviceAccount: gw, workloadIps: [172.30.2.2], network: net2}
- {uid: orphan, namespace: ns, workloadIps: [10.9.0.1], protocol: HBONE, network: net1, services: {ns/empty.ns.svc: {}}, status: Unhealthy}
- {uid: impostor, namespace: ns, serviceAccount: waypoint, workloadIps: [10.0.0.40], node: n2, network: net1}
- {uid: shared, namespace: ns, workloadIps: [10.96.0.9], protocol: HBONE, network: net1, waypoint: {destination: net1/10.0.0.4}}
services:
- {name: web, namespace: ns, hostname: web.ns.svc, vips: [net1/10.96.0.1, "net1/fd00:96::1"], ports: {80: 8080}, subjectAltNames: ["spiffe://td/ns/ns/sa/web2", not-spiffe]}
- {name: plain, namespace: ns, hostname: plain.ns.svc, vips: [net1/10.96.0.2], ports: {80: 8080}}
- {name: waypoint, namespace: ns, hostname: waypoint.ns.svc, vips: [net1/10.96.0.3], ports: {15008: 15008}, subjectAltNames: ["spiffe://td/ns/ns/sa/waypoint"]}
- {name: fronted, namespace: ns, hostname: fronted.ns.svc, vips: [net1/10.96.0.4], ports: {80: 8080}, waypoint: {destination: ns/waypoint.ns.svc}}
- {name: global, namespace: ns, hostname: global.ns.svc, vips: [net1/10.96.0.5], ports: {80: 8080}, subjectAltNames: ["spiffe://td/ns/ns/sa/remote"]}
- {name: nosan, namespace: ns, hostname: nosan.ns.svc, vips: [net1/10.96.0.6], ports: {80: 8080}}
- {name: empty, namespace: ns, hostname: empty.ns.svc, vips: [net1/10.96.0.7], ports: {80: 8080}}
- {name: pass, namespace: ns, hostname: pass.ns.svc, vips: [net1/10.96.0.8], ports: {80: 8080}, loadBalancer: {routingPreferences: [], mode: Passthrough, healthPolicy: OnlyHealthy}}
- {name: shared, namespace: ns, hostname: shared.ns.svc, vips: [net1/10.96.0.9], ports: {80: 8080}}
- {name: hidden, namespace: other, hostname: hidden.other.svc, vips: [net1/10.96.0.10], ports: {80: 8080}, visibility: Namespace}
- {name: range, namespace: ns, hostname: range.ns.svc, vips: [], cidrVips: [{network: net1, cidr: 10.97.0.0/16}], ports: {80: 8080}, loadBalancer: {mode: Passthrough}}
- {name: host, namespace: ns, hostname: host.ns.svc, vips: [net1/10.96.0.11], ports: {80: 8080}}
- {name: exact, namespace: ns, hostname: exact.ns.svc, vips: [net1/10.97.0.1], ports: {80: 8080}}
- {name: shaped, namespace: ns, hostname: shaped.ns.svc, vips: [net1/10.96.0.12], ports: {80: 8080}, loadBalancer: {mode: Passthrough}, waypoint: {destination: net1/10.0.0.4}}
"#;

fn short(result: Result<Outbound, DecideError>) -> String {
    match result {
        Ok(Outbound::Passthrough { to }) => format!("passthrough {to}"),
        Ok(Outbound::Plain { to, workload, .. }) => format!("plain {to} {}", workload.uid),
        Ok(Outbound::Named(route)) => format!("named {}:{}", route.workload.hostname, route.port),
        Ok(Outbound::Hbone(route)) => format!(
            "hbone {} {}{}{}",
            route.to,
            route.authority,
            if route.waypoint { " waypoint" } else { "" },
            if route.same_node { " same-node" } else { "" }
        ),
        Ok(Outbound::Nested(route)) => format!("nested {} {}", route.network, route.authority),
        Err(error) => format!("error {error}"),
    }
}

fn decide(model: &Model, from: &str, to: &str) -> Result<Outbound, DecideError> {
    outbound(model, &workload(model, from), address(to), &[], &NoLoad, &mut rng(7))
}

/// WIRE 8.3, steps 1 to 7.
#[test]
fn order_of_decisions() {
    let model = model(MESH);
    let rows = [
        ("client", "127.0.0.1:15001", "error 127.0.0.1:15001 is a listener of ours", "own listener on loopback"),
        ("client", "127.0.0.1:15006", "error 127.0.0.1:15006 is a listener of ours", "each of them"),
        ("client", "[::1]:15008", "error [::1]:15008 is a listener of ours", "in both families"),
        ("client", "127.0.0.1:8080", "passthrough 127.0.0.1:8080", "other loopback"),
        (
            "client",
            "10.0.0.2:15008",
            "hbone 10.0.0.2:15008 10.0.0.2:15008 same-node",
            "on another address it is anybody's",
        ),
        ("client", "8.8.8.8:53", "passthrough 8.8.8.8:53", "unknown address"),
        ("client", "10.96.0.1:80", "hbone 10.0.0.2:15008 10.0.0.2:8080 same-node", "service to its target port"),
        ("client", "[fd00:96::1]:80", "hbone [fd00::2]:15008 [fd00::2]:8080 same-node", "family of the VIP"),
        ("client", "[::ffff:10.96.0.1]:80", "hbone 10.0.0.2:15008 10.0.0.2:8080 same-node", "mapped address is IPv4"),
        ("client", "10.96.0.1:81", "error no healthy upstream for ns/web.ns.svc port 81", "port the service has not"),
        ("client", "10.0.0.2:4444", "hbone 10.0.0.2:15008 10.0.0.2:4444 same-node", "pod by its address, any port"),
        ("client", "10.0.0.3:4444", "plain 10.0.0.3:4444 plain", "pod without HBONE"),
        ("client", "10.96.0.2:80", "plain 10.0.0.3:9090 plain", "the endpoint's own mapping wins"),
        (
            "client",
            "10.96.0.4:80",
            "hbone 10.0.0.4:15008 10.96.0.4:80 waypoint",
            "service waypoint gets the dialled address",
        ),
        (
            "client",
            "10.0.0.5:80",
            "hbone 10.0.0.4:15008 10.0.0.5:80 waypoint",
            "workload waypoint gets the dialled address",
        ),
        ("waypoint", "10.0.0.5:80", "hbone 10.0.0.5:15008 10.0.0.5:80 same-node", "the waypoint skips itself"),
        ("waypoint", "10.96.0.4:80", "hbone 10.0.0.5:15008 10.0.0.5:8080 same-node", "also when it names the service"),
        (
            "impostor",
            "10.0.0.5:80",
            "hbone 10.0.0.4:15008 10.0.0.5:80 waypoint",
            "its identity at another address is not it",
        ),
        (
            "client",
            "10.96.0.12:80",
            "hbone 10.0.0.4:15008 10.96.0.12:80 waypoint",
            "a waypoint before mode PASSTHROUGH",
        ),
        ("client", "10.96.0.5:80", "nested net2 global.ns.svc:80", "endpoint in another network"),
        ("client", "10.96.0.6:80", "error ns/nosan.ns.svc has endpoints in network net2", "nobody may answer there"),
        ("client", "172.30.2.1:15008", "passthrough 172.30.2.1:15008", "addresses of other networks mean nothing here"),
        ("client", "10.96.0.7:80", "error no healthy upstream for ns/empty.ns.svc port 80", "only unhealthy endpoints"),
        ("client", "10.96.0.8:80", "passthrough 10.96.0.8:80", "mode PASSTHROUGH"),
        ("client", "10.97.3.4:80", "passthrough 10.97.3.4:80", "address range"),
        (
            "client",
            "10.97.0.1:80",
            "error no healthy upstream for ns/exact.ns.svc",
            "an exact address before the range it is in",
        ),
        (
            "client",
            "10.96.0.9:80",
            "error no healthy upstream for ns/shared.ns.svc",
            "VIP before workload when both are meant",
        ),
        ("client", "10.96.0.10:80", "passthrough 10.96.0.10:80", "a service hidden from this namespace is unknown"),
        ("client", "192.168.0.1:80", "passthrough 192.168.0.1:80", "a host-network address names no workload"),
        ("client", "10.96.0.11:80", "plain 192.168.0.1:8080 host", "but it can be an endpoint"),
    ];
    for (from, to, expected, why) in rows {
        let result = short(decide(&model, from, to));
        assert!(result.starts_with(expected), "{why}: {from} to {to}: {result}, expected {expected}");
    }
}

/// WIRE 3.3: who must be who, the client's side.
#[test]
fn who_may_answer() {
    let model = model(MESH);
    let expected = |to: &str| match decide(&model, "client", to).unwrap() {
        Outbound::Hbone(route) => route.expected.to_string(),
        Outbound::Nested(route) => route.expected.to_string(),
        other => panic!("{to}: {other:?}"),
    };
    let td = |names: &[&str]| {
        let ids: Vec<_> = names.iter().map(|name| format!("spiffe://td/ns/ns/sa/{name}")).collect();
        match ids.as_slice() {
            [one] => one.clone(),
            many => format!("one of {}: {}", many.len(), many.join(", ")),
        }
    };
    let rows = [
        ("10.0.0.2:1", td(&["web"]), "pod: its identity"),
        ("10.96.0.1:80", td(&["web", "web2"]), "service: also its alternative names"),
        ("10.96.0.4:80", td(&["waypoint"]), "waypoint of a service"),
        ("10.0.0.5:80", td(&["waypoint"]), "waypoint of a workload"),
        ("10.96.0.5:80", td(&["remote"]), "other network: the alternative names only"),
    ];
    for (to, who, why) in rows {
        assert_eq!(expected(to), who, "{why}");
    }
}

/// WIRE 5.2, step 1: gateways.
#[test]
fn nested_route_knows_all_entry_points_and_trust_domains() {
    let extra = r#"
  trust: [{network: net2, trustDomains: [{name: td2, roots: r.pem}]}]
  gateways: [{network: net2, addresses: ["172.30.2.3:15008", "gw.example.com:443"], identities: ["spiffe://td2/ns/gw/sa/other"]}]
"#;
    let model = model_with(MESH, extra);
    let Outbound::Nested(route) = decide(&model, "client", "10.96.0.5:80").unwrap() else { panic!("not nested") };
    let addresses: Vec<_> = route.gateways.iter().map(|gateway| gateway.address.to_string()).collect();
    let known = ["172.30.2.1:15008", "172.30.2.2:31008", "172.30.2.3:15008", "gw.example.com:443"];
    assert_eq!(addresses, known, "the named one first, then the rest");
    let id = |text: &str| crate::identity::SpiffeId::parse(text).unwrap();
    assert!(route.gateways[0].expected.matches(&id("spiffe://td/ns/gw/sa/gw")));
    assert!(route.gateways[0].expected.matches(&id("spiffe://td2/ns/gw/sa/gw")), "trust domain of that network");
    assert!(!route.gateways[0].expected.matches(&id("spiffe://td3/ns/gw/sa/gw")));
    assert!(!route.gateways[2].expected.matches(&id("spiffe://td/ns/gw/sa/gw")), "configured identities only");
    assert!(route.expected.matches(&id("spiffe://td2/ns/ns/sa/remote")));
    assert_eq!(route.capacity, 3);
}

/// Replaces the gateway records by one service or workload; the record names it by `destination`.
fn entry_points(gateway: &str, destination: &str) -> Result<Vec<String>, DecideError> {
    let head = MESH
        .replace("- {uid: NetworkGateway/net2/172.30.2.1/0, namespace: gw, serviceAccount: gw, workloadIps: [172.30.2.1], network: net2}\n", gateway)
        .replace("- {uid: NetworkGateway/net2/172.30.2.2/31008, namespace: gw, serviceAccount: gw, workloadIps: [172.30.2.2], network: net2}\n", "")
        .replace("net2/172.30.2.1, hboneMtlsPort", &format!("{destination}, hboneMtlsPort"));
    let text = format!(
        "{head}- {{name: gw, namespace: gw, hostname: gw.gw.svc, vips: [net2/172.30.2.9], ports: {{15008: 15018}}, subjectAltNames: [\"spiffe://td/ns/gw/sa/gwsan\"]}}\n"
    );
    let model = model(&text);
    decide(&model, "client", "10.96.0.5:80").map(|route| match route {
        Outbound::Nested(route) => route.gateways.iter().map(|g| format!("{} {}", g.address, g.expected)).collect(),
        other => panic!("{other:?}"),
    })
}

/// WIRE 5.2, step 1: the gateway that a record names.
#[test]
fn gateway_of_a_record_is_found_in_every_form() {
    let workload = "- {uid: g, namespace: gw, serviceAccount: gw, workloadIps: [172.30.2.1], network: net2, hostname: gw.example.com}\n";
    let member = "- {uid: g, namespace: gw, serviceAccount: gw, workloadIps: [172.30.2.1], network: net2, services: {gw/gw.gw.svc: {}}}\n";
    let named =
        "- {uid: g, namespace: gw, serviceAccount: gw, workloadIps: [], network: net2, hostname: gw.example.com}\n";
    let own = "spiffe://td/ns/gw/sa/gw";
    let both = "one of 2: spiffe://td/ns/gw/sa/gw, spiffe://td/ns/gw/sa/gwsan";
    let rows = [
        (workload, "net2/172.30.2.1", format!("172.30.2.1:15008 {own}"), "workload by address"),
        (named, "gw/gw.example.com", format!("gw.example.com:15008 {own}"), "workload by host name"),
        (member, "gw/gw.gw.svc", format!("172.30.2.1:15018 {both}"), "service by host name, target port"),
        (member, "net2/172.30.2.9", format!("172.30.2.1:15018 {both}"), "service by address"),
    ];
    for (gateway, destination, expected, why) in rows {
        assert_eq!(entry_points(gateway, destination).unwrap(), [expected], "{why}");
    }
    // A service without endpoints describes no gateway.
    let error = entry_points("", "gw/gw.gw.svc").unwrap_err();
    assert!(matches!(error, DecideError::NoGateway { .. }), "{error}");
}

#[test]
fn endpoints_already_tried_are_not_chosen_again() {
    let model = model(MESH);
    let client = workload(&model, "client");
    let tried = [Arc::<str>::from("web1")];
    let result = outbound(&model, &client, address("10.96.0.1:80"), &tried, &NoLoad, &mut rng(1));
    assert!(matches!(result, Err(DecideError::NoUpstream { .. })), "{result:?}");
}

/// WIRE 10.3, choice of the address: endpoints with a host name alone.
#[test]
fn endpoints_known_by_their_host_name_are_resolved_to_the_family_that_was_dialled() {
    let endpoint = |protocol: &str| {
        format!(
            "- {{uid: named, namespace: ns, serviceAccount: ext, workloadIps: [], hostname: ext.example.com, protocol: {protocol}, network: net1, services: {{ns/ext.ns.svc: {{}}}}}}\n- {{uid: orphan,"
        )
    };
    let service = "- {name: ext, namespace: ns, hostname: ext.ns.svc, vips: [net1/10.96.0.30, \"net1/fd00:96::30\"], ports: {443: 8443}FAMILIES}\n- {name: hidden,";
    let found: Vec<std::net::IpAddr> = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap()).into();
    let rows = [
        ("TCP", "", "10.96.0.30:443", "plain 192.0.2.1:8443 named", "the family dialled"),
        ("TCP", "", "[fd00:96::30]:443", "plain [2001:db8::1]:8443 named", "the family dialled"),
        ("TCP", ", ipFamilies: IPv6", "10.96.0.30:443", "plain [2001:db8::1]:8443 named", "the family allowed"),
        ("HBONE", "", "10.96.0.30:443", "hbone 192.0.2.1:15008 192.0.2.1:8443", "in a tunnel where it speaks HBONE"),
    ];
    for (protocol, families, to, expected, why) in rows {
        let text = MESH.replace("- {uid: orphan,", &endpoint(protocol));
        let model = model(&text.replace("- {name: hidden,", &service.replace("FAMILIES", families)));
        let Ok(Outbound::Named(route)) = decide(&model, "client", to) else { panic!("{why}") };
        assert_eq!((&*route.workload.hostname, route.port), ("ext.example.com", 8443), "{why}");
        let ip = route.choose(&found, &mut rng(1)).unwrap();
        assert_eq!(short(Ok(route.resolved(ip))), expected, "{why}");
        assert_eq!(route.choose(&[], &mut rng(1)), None, "{why}");
    }
}

/// WIRE 8.3, step 3: a waypoint is never bypassed.
#[test]
fn waypoint_that_is_gone_is_an_error_and_never_bypassed() {
    // The waypoint's only endpoint is unhealthy.
    let text = MESH.replace("{ns/waypoint.ns.svc: {}}}", "{ns/waypoint.ns.svc: {}}, status: Unhealthy}");
    let model = model(&text);
    let result = decide(&model, "client", "10.96.0.4:80");
    assert!(matches!(result, Err(DecideError::Waypoint { .. })), "{result:?}");
}

#[test]
fn another_instance_of_a_waypoint_is_tried_when_one_fails() {
    let text = MESH.replace(
        "- {uid: fronted,",
        "- {uid: waypoint2, namespace: ns, serviceAccount: waypoint, workloadIps: [10.0.0.44], node: n2, network: net1, clusterId: c1, services: {ns/waypoint.ns.svc: {}}}\n- {uid: fronted,",
    );
    let model = model(&text);
    let client = workload(&model, "client");
    for (tried, expected) in [("waypoint", "10.0.0.44:15008"), ("waypoint2", "10.0.0.4:15008")] {
        let result = outbound(&model, &client, address("10.96.0.4:80"), &[tried.into()], &NoLoad, &mut rng(1)).unwrap();
        let Outbound::Hbone(route) = result else { panic!("{result:?}") };
        assert_eq!(route.to.to_string(), expected);
    }
}

/// WIRE 8.3, steps 3, 5 and 6: waypoints of other networks.
#[test]
fn waypoints_of_other_networks_are_reached_through_services_alone() {
    let record = |service: &str| {
        format!(
            "- {{uid: net2/SplitHorizonWorkload/{service}, namespace: ns, workloadIps: [], protocol: HBONE, network: net2, \
             networkGateway: {{destination: net2/172.30.2.1}}, services: {{ns/{service}.ns.svc: {{}}}}}}\n"
        )
    };
    let text = MESH.replace("- {uid: orphan,", &format!("{}- {{uid: orphan,", record("farway")));
    let text = text.replace(
        "- {name: hidden,",
        "- {name: farway, namespace: ns, hostname: farway.ns.svc, vips: [], ports: {15008: 15008}, subjectAltNames: [\"spiffe://td/ns/ns/sa/farway\"]}\n- {name: behind, namespace: ns, hostname: behind.ns.svc, vips: [net1/10.96.0.20], ports: {80: 8080}, subjectAltNames: [\"spiffe://td/ns/ns/sa/behind\"], waypoint: {destination: ns/farway.ns.svc}}\n- {name: hidden,",
    );
    let text = text.replace(
        "- {uid: shared,",
        "- {uid: alone, namespace: ns, workloadIps: [10.0.0.66], protocol: HBONE, network: net1, waypoint: {destination: ns/farway.ns.svc}}\n- {uid: shared,",
    );
    let model = model(&text);
    let Ok(Outbound::Nested(route)) = decide(&model, "client", "10.96.0.20:80") else { panic!() };
    let told = (route.authority.as_str(), route.expected.to_string(), &*route.workload.uid);
    let wanted = ("behind.ns.svc:80", "spiffe://td/ns/ns/sa/farway".to_owned(), "net2/SplitHorizonWorkload/farway");
    assert_eq!(told, wanted, "the service is named, the waypoint answers");
    let result = decide(&model, "client", "10.0.0.66:80");
    assert!(matches!(result, Err(DecideError::ForeignWithoutService(_))), "{result:?}");
}

/// WIRE 10.4: waypoints by weight.
#[test]
fn weighted_waypoints_share_connections_by_weight() {
    let text = MESH.replace(
        "waypoint: {destination: ns/waypoint.ns.svc}}",
        "waypoint: {destination: ns/waypoint.ns.svc}, weightedWaypoints: [{destination: {destination: net1/10.0.0.4, hboneMtlsPort: 1}, weight: 9}, {destination: {destination: net1/10.0.0.4, hboneMtlsPort: 2}, weight: 1}, {destination: {destination: net1/10.0.0.4, hboneMtlsPort: 3}, weight: 0}]}",
    );
    let model = model(&text);
    let client = workload(&model, "client");
    let mut random = rng(3);
    let mut count = [0_u32; 4];
    for _ in 0..2000 {
        let result = outbound(&model, &client, address("10.96.0.4:80"), &[], &NoLoad, &mut random).unwrap();
        let Outbound::Hbone(route) = result else { panic!("{result:?}") };
        count[usize::from(route.to.port())] += 1;
    }
    assert!((1700..1900).contains(&count[1]) && (100..300).contains(&count[2]) && count[3] == 0, "{count:?}");
}
