//! The model's objects as a control plane would publish them.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use causeway::istio::wds::{self, ADDRESS_TYPE, AddressType, Any, GatewayDestination, UInt32Value};
use causeway::istio::wds_policy::{self as raw, AUTHORIZATION_TYPE, MatchType};
use causeway::istio::xds_proto::Resource;
use causeway::state::{
    Action, Cidr, Destination, GatewayRef, IpFamilies, LoadBalancingMode, Match, Model, Policy, PolicyScope, Ports,
    Protocol, Scope, Service, StringMatch, TunnelKind, Visibility, Workload,
};
use prost::Message;

/// Everything in a model: addresses, then policies.
pub fn resources(model: &Model) -> Vec<Resource> {
    let workloads = model.workloads().map(|workload| workload_resource(workload));
    let services = model.services().map(|service| service_resource(service));
    workloads.chain(services).chain(model.policies().map(|policy| policy_resource(policy))).collect()
}

fn resource(name: &str, type_url: &str, body: &impl Message, versioned: bool) -> Resource {
    let value = body.encode_to_vec();
    // A version need only differ when the content does.
    let hash = value
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    Resource {
        version: if versioned { format!("{hash:016x}") } else { String::new() },
        resource: Some(Any { type_url: type_url.to_owned(), value: value.into() }),
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn gateway(gateway: &GatewayRef) -> wds::GatewayAddress {
    let destination = match &gateway.destination {
        Destination::Address { network, ip } => GatewayDestination::Address(wds::NetworkAddress {
            network: network.to_string(),
            address: octets(*ip).into(),
            length: None,
        }),
        Destination::Hostname { namespace, hostname } => GatewayDestination::Hostname(wds::NamespacedHostname {
            namespace: namespace.to_string(),
            hostname: hostname.to_string(),
        }),
    };
    wds::GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.port.into() }
}

fn ports(ports: &Ports) -> Vec<wds::Port> {
    let port = |(service, target): (&u16, &u16)| wds::Port {
        service_port: (*service).into(),
        target_port: (*target).into(),
        app_protocol: 4,
    };
    ports.iter().map(port).collect()
}

/// A workload as a resource.
pub fn workload_resource(workload: &Workload) -> Resource {
    let kinds = ["deployment", "cronjob", "pod", "job"];
    let kind = kinds.iter().position(|kind| *kind == &*workload.workload_type).unwrap_or(0);
    let body = wds::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.ips.iter().map(|ip| octets(*ip).into()).collect(),
        hostname: workload.hostname.to_string(),
        network: workload.network.to_string(),
        tunnel_protocol: (workload.protocol == Protocol::Hbone).into(),
        trust_domain: workload.trust_domain.to_string(),
        service_account: workload.service_account.to_string(),
        waypoint: workload.waypoint.as_deref().map(gateway),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: i32::try_from(kind).unwrap_or_default(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        authorization_policies: workload.policies.iter().map(ToString::to_string).collect(),
        status: (!workload.healthy).into(),
        cluster_id: workload.cluster.to_string(),
        network_gateway: workload.network_gateway.as_deref().map(gateway),
        services: workload
            .services
            .iter()
            .map(|(key, mapping)| (key.to_string(), wds::PortList { ports: ports(mapping) }))
            .collect(),
        application_tunnel: workload.application_tunnel.map(|tunnel| wds::ApplicationTunnel {
            protocol: (tunnel.kind == TunnelKind::Proxy).into(),
            port: tunnel.port.unwrap_or(0).into(),
        }),
        locality: Some(wds::Locality {
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
            subzone: workload.locality.subzone.to_string(),
        }),
        network_mode: workload.host_network.into(),
        extensions: Vec::new(),
        capacity: Some(UInt32Value { value: workload.capacity }),
    };
    let body = wds::Address { kind: Some(AddressType::Workload(body)) };
    resource(&workload.uid, ADDRESS_TYPE, &body, true)
}

/// A service as a resource.
pub fn service_resource(service: &Service) -> Resource {
    let exact = service.vips.iter().map(|vip| wds::NetworkAddress {
        network: vip.network.to_string(),
        address: octets(vip.ip).into(),
        length: None,
    });
    let ranges = service.cidr_vips.iter().map(|vip| wds::NetworkAddress {
        network: vip.network.to_string(),
        address: octets(vip.range.address()).into(),
        length: Some(vip.range.prefix().into()),
    });
    let weighted = service
        .weighted_waypoints
        .iter()
        .map(|entry| wds::WeightedWaypoint { destination: Some(gateway(&entry.waypoint)), weight: entry.weight });
    let body = wds::Service {
        name: service.name.to_string(),
        namespace: service.namespace.to_string(),
        hostname: service.hostname.to_string(),
        addresses: exact.chain(ranges).collect(),
        ports: ports(&service.ports),
        subject_alt_names: service.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: service.waypoint.as_ref().map(gateway),
        load_balancing: Some(wds::LoadBalancing {
            routing_preference: service.load_balancing.preferences.iter().map(|scope| scope_number(*scope)).collect(),
            mode: match service.load_balancing.mode {
                LoadBalancingMode::Standard => 0,
                LoadBalancingMode::Strict => 1,
                LoadBalancingMode::Failover => 2,
                LoadBalancingMode::Passthrough => 3,
            },
            health_policy: service.load_balancing.allow_unhealthy.into(),
        }),
        ip_families: match service.ip_families {
            IpFamilies::Automatic => 0,
            IpFamilies::V4 => 1,
            IpFamilies::V6 => 2,
            IpFamilies::Dual => 3,
        },
        extensions: Vec::new(),
        canonical: service.canonical,
        ingress_use_waypoint: service.ingress_use_waypoint,
        weighted_waypoints: weighted.collect(),
        visibility: (service.visibility == Visibility::Namespace).into(),
    };
    let body = wds::Address { kind: Some(AddressType::Service(body)) };
    resource(&service.key, ADDRESS_TYPE, &body, true)
}

fn scope_number(scope: Scope) -> i32 {
    match scope {
        Scope::Region => 1,
        Scope::Zone => 2,
        Scope::Subzone => 3,
        Scope::Node => 4,
        Scope::Cluster => 5,
        Scope::Network => 6,
    }
}

/// A policy as a resource; as istiod does it, without a version.
pub fn policy_resource(policy: &Policy) -> Resource {
    let clause = |matches: &Vec<Match>| raw::Clause { matches: matches.iter().map(entry).collect() };
    let rule = |clauses: &Vec<Vec<Match>>| raw::Rule { clauses: clauses.iter().map(clause).collect() };
    let body = raw::Authorization {
        name: policy.name.to_string(),
        namespace: policy.namespace.to_string(),
        scope: match policy.scope {
            PolicyScope::Global => 0,
            PolicyScope::Namespace => 1,
            PolicyScope::WorkloadSelector => 2,
            PolicyScope::Unreadable => 99,
        },
        action: (policy.action == Action::Deny).into(),
        rules: policy.rules.iter().map(rule).collect(),
        dry_run: policy.dry_run,
        extensions: Vec::new(),
    };
    resource(&policy.key, AUTHORIZATION_TYPE, &body, false)
}

fn entry(entry: &Match) -> raw::Match {
    let texts = |texts: &[StringMatch]| texts.iter().map(text).collect();
    let ranges = |ranges: &[Cidr]| ranges.iter().map(range).collect();
    let ports = |ports: &[u16]| ports.iter().map(|port| u32::from(*port)).collect();
    let accounts = |accounts: &[causeway::state::ServiceAccountMatch]| {
        let account = |account: &causeway::state::ServiceAccountMatch| raw::ServiceAccountMatch {
            namespace: account.namespace.to_string(),
            service_account: account.service_account.to_string(),
        };
        accounts.iter().map(account).collect()
    };
    raw::Match {
        namespaces: texts(&entry.namespaces),
        not_namespaces: texts(&entry.not_namespaces),
        principals: texts(&entry.principals),
        not_principals: texts(&entry.not_principals),
        source_ips: ranges(&entry.source_ips),
        not_source_ips: ranges(&entry.not_source_ips),
        destination_ips: ranges(&entry.destination_ips),
        not_destination_ips: ranges(&entry.not_destination_ips),
        destination_ports: ports(&entry.destination_ports),
        not_destination_ports: ports(&entry.not_destination_ports),
        service_accounts: accounts(&entry.service_accounts),
        not_service_accounts: accounts(&entry.not_service_accounts),
        extensions: Vec::new(),
    }
}

fn text(text: &StringMatch) -> raw::StringMatch {
    let match_type = match text {
        StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
        StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
        StringMatch::Presence => MatchType::Presence(raw::Empty {}),
    };
    raw::StringMatch { match_type: Some(match_type) }
}

fn range(range: &Cidr) -> raw::Range {
    raw::Range { address: octets(range.address()).into(), length: range.prefix().into() }
}

/// Seconds since 1970, for nonces.
pub(super) fn clock() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos()
}
