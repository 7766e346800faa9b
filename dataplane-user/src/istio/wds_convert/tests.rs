//! One row per field of the messages: what it becomes, or why it is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use super::super::wds::*;
use super::*;
use crate::state;

fn raw_workload() -> wds::Workload {
    wds::Workload { uid: "u".into(), namespace: "ns".into(), ..Default::default() }
}

fn workload_with(change: impl FnOnce(&mut wds::Workload)) -> Result<state::Workload, Refusal> {
    let mut raw = raw_workload();
    change(&mut raw);
    workload(raw, &mut Intern::default())
}

fn service_with(change: impl FnOnce(&mut wds::Service)) -> Result<state::Service, Refusal> {
    let mut raw = wds::Service { namespace: "ns".into(), hostname: "web.ns.svc".into(), ..Default::default() };
    change(&mut raw);
    service(raw, &mut Intern::default())
}

fn by_address(network: &str, address: &[u8]) -> wds::GatewayAddress {
    let address = wds::NetworkAddress { network: network.into(), address: address.to_vec().into(), length: None };
    wds::GatewayAddress { destination: Some(GatewayDestination::Address(address)), hbone_mtls_port: 15008 }
}

fn named(hostname: &str) -> wds::GatewayAddress {
    let name = NamespacedHostname { namespace: "ns".into(), hostname: hostname.into() };
    wds::GatewayAddress { destination: Some(GatewayDestination::Hostname(name)), hbone_mtls_port: 0 }
}

#[test]
fn workload_defaults_are_those_istiod_leaves_out() {
    let workload = workload_with(|_| {}).unwrap();
    assert_eq!(workload.identity.as_str(), "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!((&*workload.cluster, workload.capacity, workload.healthy), ("Kubernetes", 1, true));
    assert_eq!((workload.protocol, workload.host_network), (Protocol::Tcp, false));
}

#[test]
fn workload_fields_become_what_they_mean() {
    type Row = (&'static str, fn(&mut wds::Workload), fn(&state::Workload) -> bool);
    let rows: [Row; 16] = [
        (
            "addresses, 4 bytes",
            |w| w.addresses = vec![vec![10, 0, 0, 1].into()],
            |w| w.ips == ["10.0.0.1".parse::<IpAddr>().unwrap()],
        ),
        ("addresses, 16 bytes", |w| w.addresses = vec![vec![0; 16].into()], |w| w.ips[0].is_ipv6()),
        ("hostname", |w| w.hostname = "VM.example.com.".into(), |w| &*w.hostname == "vm.example.com"),
        ("tunnel_protocol HBONE", |w| w.tunnel_protocol = 1, |w| w.protocol == Protocol::Hbone),
        ("trust_domain", |w| w.trust_domain = "td".into(), |w| w.identity.trust_domain() == "td"),
        ("service_account", |w| w.service_account = "sa".into(), |w| w.identity.service_account() == "sa"),
        (
            "waypoint by address",
            |w| w.waypoint = Some(by_address("n", &[1, 2, 3, 4])),
            |w| w.waypoint.as_ref().unwrap().destination.to_string() == "n/1.2.3.4",
        ),
        (
            "waypoint without port",
            |w| w.waypoint = Some(named("W.ns.svc")),
            |w| {
                let waypoint = w.waypoint.as_ref().unwrap();
                waypoint.port == 15008 && waypoint.destination.to_string() == "ns/w.ns.svc"
            },
        ),
        ("network_gateway", |w| w.network_gateway = Some(named("gw")), |w| w.network_gateway.is_some()),
        ("workload_type CRONJOB", |w| w.workload_type = 1, |w| &*w.workload_type == "cronjob"),
        ("native_tunnel", |w| w.native_tunnel = true, |w| w.native_tunnel),
        ("status UNHEALTHY", |w| w.status = 1, |w| !w.healthy),
        ("network_mode HOST_NETWORK", |w| w.network_mode = 1, |w| w.host_network),
        (
            "application_tunnel PROXY without port",
            |w| {
                w.application_tunnel = Some(wds::ApplicationTunnel { protocol: 1, port: 0 });
            },
            |w| w.application_tunnel.unwrap() == state::ApplicationTunnel { kind: TunnelKind::Proxy, port: None },
        ),
        ("capacity 0", |w| w.capacity = Some(UInt32Value { value: 0 }), |w| w.capacity == 0),
        (
            "extensions stay as they came",
            |w| {
                let config = Any { type_url: "t".into(), value: vec![0xff, 0].into() };
                w.extensions = vec![wds::Extension { name: "x".into(), config: Some(config) }];
            },
            |w| *w.extensions[0].config == [0xff, 0],
        ),
    ];
    for (name, change, holds) in rows {
        assert!(holds(&workload_with(change).unwrap()), "{name}");
    }
}

#[test]
fn workload_fields_that_cannot_be_understood_refuse_it_by_name() {
    type Row = (&'static str, fn(&mut wds::Workload));
    let rows: [Row; 15] = [
        ("uid", |w| w.uid.clear()),
        ("addresses", |w| w.addresses = vec![vec![1, 2, 3].into()]),
        ("tunnel_protocol: LEGACY", |w| w.tunnel_protocol = 2),
        ("tunnel_protocol: unknown value 3", |w| w.tunnel_protocol = 3),
        ("tunnel_protocol: unknown value -1", |w| w.tunnel_protocol = -1),
        ("status", |w| w.status = 2),
        ("network_mode", |w| w.network_mode = 2),
        ("workload_type", |w| w.workload_type = 4),
        ("waypoint: names no destination", |w| w.waypoint = Some(wds::GatewayAddress::default())),
        ("network_gateway: an address", |w| w.network_gateway = Some(by_address("n", &[]))),
        ("application_tunnel.protocol", |w| {
            w.application_tunnel = Some(wds::ApplicationTunnel { protocol: 2, port: 1 })
        }),
        ("application_tunnel.port", |w| {
            w.application_tunnel = Some(wds::ApplicationTunnel { protocol: 0, port: 65_536 })
        }),
        ("services: \"no-slash\"", |w| drop(w.services.insert("no-slash".into(), PortList::default()))),
        ("services.ports", |w| {
            let port = Port { service_port: 70_000, target_port: 1, app_protocol: 0 };
            w.services.insert("ns/h".into(), PortList { ports: vec![port] });
        }),
        ("namespace, service_account", |w| w.service_account = "a/b".into()),
    ];
    for (reason, change) in rows {
        let refusal = workload_with(change).unwrap_err();
        assert!(refusal.starts_with(reason), "{refusal:?} instead of {reason}");
    }
}

#[test]
fn service_fields_become_what_they_mean() {
    type Row = (&'static str, fn(&mut wds::Service), fn(&state::Service) -> bool);
    let rows: [Row; 12] = [
        (
            "addresses",
            |s| {
                s.addresses =
                    vec![wds::NetworkAddress { network: "n".into(), address: vec![10, 0, 0, 1].into(), length: None }]
            },
            |s| s.vips.len() == 1,
        ),
        (
            "addresses of full length",
            |s| {
                s.addresses = vec![wds::NetworkAddress {
                    network: "n".into(),
                    address: vec![10, 0, 0, 1].into(),
                    length: Some(32),
                }]
            },
            |s| s.vips.len() == 1,
        ),
        (
            "addresses with a length",
            |s| {
                s.addresses = vec![wds::NetworkAddress {
                    network: "n".into(),
                    address: vec![10, 1, 0, 0].into(),
                    length: Some(16),
                }]
            },
            |s| s.vips.is_empty() && s.cidr_vips[0].range.to_string() == "10.1.0.0/16",
        ),
        (
            "ports, target named",
            |s| s.ports = vec![Port { service_port: 80, target_port: 0, app_protocol: 77 }],
            |s| s.ports.get(&80) == Some(&0),
        ),
        (
            "subject_alt_names",
            |s| s.subject_alt_names = vec!["spiffe://td/ns/n/sa/s".into(), "dns.example.com".into()],
            |s| s.identities.len() == 1 && s.subject_alt_names.len() == 2,
        ),
        (
            "load_balancing",
            |s| {
                s.load_balancing =
                    Some(wds::LoadBalancing { routing_preference: vec![6, 1, 5], mode: 2, health_policy: 1 })
            },
            |s| {
                s.load_balancing.preferences == [Scope::Network, Scope::Region, Scope::Cluster]
                    && s.load_balancing.mode == LoadBalancingMode::Failover
                    && s.load_balancing.allow_unhealthy
            },
        ),
        (
            "load_balancing PASSTHROUGH",
            |s| s.load_balancing = Some(wds::LoadBalancing { mode: 3, ..Default::default() }),
            |s| s.load_balancing.mode == LoadBalancingMode::Passthrough,
        ),
        ("ip_families DUAL", |s| s.ip_families = 3, |s| s.ip_families == IpFamilies::Dual),
        ("canonical", |s| s.canonical = true, |s| s.canonical),
        ("ingress_use_waypoint", |s| s.ingress_use_waypoint = true, |s| s.ingress_use_waypoint),
        (
            "weighted_waypoints",
            |s| s.weighted_waypoints = vec![wds::WeightedWaypoint { destination: Some(named("w")), weight: 3 }],
            |s| s.weighted_waypoints[0].weight == 3,
        ),
        ("visibility unknown is the namespace's own", |s| s.visibility = 9, |s| s.visibility == Visibility::Namespace),
    ];
    for (name, change, holds) in rows {
        assert!(holds(&service_with(change).unwrap()), "{name}");
    }
}

#[test]
fn service_fields_that_cannot_be_understood_refuse_it_by_name() {
    type Row = (&'static str, fn(&mut wds::Service));
    let rows: [Row; 10] = [
        ("namespace", |s| s.namespace.clear()),
        ("hostname", |s| s.hostname.clear()),
        ("addresses: 10.0.0.0/33", |s| {
            s.addresses = vec![wds::NetworkAddress {
                network: String::new(),
                address: vec![10, 0, 0, 0].into(),
                length: Some(33),
            }]
        }),
        ("ports: service_port is 0", |s| s.ports = vec![Port { service_port: 0, target_port: 1, app_protocol: 0 }]),
        ("subject_alt_names", |s| s.subject_alt_names = vec!["spiffe://td/x".into()]),
        ("load_balancing.routing_preference: unknown value 0", |s| {
            s.load_balancing = Some(wds::LoadBalancing { routing_preference: vec![0], ..Default::default() })
        }),
        ("load_balancing.mode", |s| s.load_balancing = Some(wds::LoadBalancing { mode: 4, ..Default::default() })),
        ("load_balancing.health_policy", |s| {
            s.load_balancing = Some(wds::LoadBalancing { health_policy: 2, ..Default::default() })
        }),
        ("ip_families", |s| s.ip_families = 4),
        ("weighted_waypoints.destination", |s| {
            s.weighted_waypoints = vec![wds::WeightedWaypoint { destination: None, weight: 1 }]
        }),
    ];
    for (reason, change) in rows {
        let refusal = service_with(change).unwrap_err();
        assert!(refusal.starts_with(reason), "{refusal:?} instead of {reason}");
    }
}
