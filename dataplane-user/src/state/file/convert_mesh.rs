//! Workloads, services and policies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::convert::{cidr, gateway_ref, ip, is_host, network_address, required, service_key};
use super::locate::Place;
use super::{Problems, raw};
use crate::identity::SpiffeId;
use crate::state::{
    Action, ApplicationTunnel, Cidr, CidrVip, IpFamilies, LoadBalancing, LoadBalancingMode, Locality, Match,
    Memberships, NetworkAddress, Policy, PolicyScope, Ports, Protocol, Scope, Service, ServiceAccountMatch,
    StringMatch, TunnelKind, Visibility, WeightedWaypoint, Workload, normal_host,
};

pub(super) fn workload(
    raw: &raw::Workload,
    own_trust_domain: &str,
    place: &Place,
    problems: &mut Problems,
) -> Option<Workload> {
    let or = |text: &str, default: &str| -> Arc<str> { if text.is_empty() { default } else { text }.into() };
    let namespace = required(&raw.namespace, &place.key("namespace"), problems);
    let service_account = or(&raw.service_account, "default");
    let trust_domain = or(&raw.trust_domain, own_trust_domain);
    let identity = SpiffeId::new(&trust_domain, &namespace, &service_account)
        .inspect_err(|error| {
            problems.add(
                place,
                format!("its names make no identity: {error}"),
                "correct namespace, serviceAccount or trustDomain",
            );
        })
        .ok();
    let uid = required(&raw.uid, &place.key("uid"), problems);
    if !raw.hostname.is_empty() && !is_host(&raw.hostname) {
        problems.add(&place.key("hostname"), format!("{:?} is not a host name", raw.hostname), "write a DNS name");
    }
    let gateway = |field: &str, raw: &Option<raw::GatewayRef>, problems: &mut Problems| {
        gateway_ref(raw.as_ref()?, &place.key(field), problems).map(Arc::new)
    };
    Some(Workload {
        uid,
        name: raw.name.as_str().into(),
        namespace,
        service_account,
        trust_domain,
        identity: identity?,
        network: raw.network.as_str().into(),
        cluster: raw.cluster_id.as_str().into(),
        node: raw.node.as_str().into(),
        ips: ips(&raw.workload_ips, &place.key("workloadIps"), problems),
        hostname: normal_host(&raw.hostname).into(),
        protocol: match raw.protocol {
            raw::Protocol::Tcp => Protocol::Tcp,
            raw::Protocol::Hbone => Protocol::Hbone,
        },
        waypoint: gateway("waypoint", &raw.waypoint, problems),
        network_gateway: gateway("networkGateway", &raw.network_gateway, problems),
        application_tunnel: raw.application_tunnel.map(tunnel),
        policies: raw.authorization_policies.iter().map(|key| key.as_str().into()).collect(),
        healthy: raw.status == raw::Status::Healthy,
        locality: locality(&raw.locality),
        capacity: raw.capacity,
        host_network: raw.network_mode == raw::NetworkMode::HostNetwork,
        services: memberships(&raw.services, &place.key("services"), problems),
        workload_name: raw.workload_name.as_str().into(),
        workload_type: raw.workload_type.to_ascii_lowercase().into(),
        canonical_name: raw.canonical_name.as_str().into(),
        canonical_revision: raw.canonical_revision.as_str().into(),
        native_tunnel: raw.native_tunnel,
        extensions: Box::default(),
    })
}

fn ips(raw: &[String], place: &Place, problems: &mut Problems) -> Vec<IpAddr> {
    raw.iter().enumerate().filter_map(|(index, text)| ip(text, &place.index(index), problems)).collect()
}

fn memberships(raw: &BTreeMap<String, raw::Ports>, place: &Place, problems: &mut Problems) -> Memberships {
    let services = raw.iter().filter_map(|(key, ports)| {
        let key = service_key(key, &place.key(key), problems)?;
        Some((key, Ports::from(ports.0.clone())))
    });
    services.collect::<BTreeMap<_, _>>().into()
}

fn tunnel(raw: raw::ApplicationTunnel) -> ApplicationTunnel {
    ApplicationTunnel {
        kind: match raw.protocol {
            raw::TunnelKind::None => TunnelKind::None,
            raw::TunnelKind::Proxy => TunnelKind::Proxy,
        },
        port: raw.port.filter(|port| *port != 0),
    }
}

fn locality(raw: &raw::Locality) -> Locality {
    Locality::new(raw.region.as_str().into(), raw.zone.as_str().into(), raw.subzone.as_str().into())
}

pub(super) fn service(raw: &raw::Service, place: &Place, problems: &mut Problems) -> Service {
    let namespace = required(&raw.namespace, &place.key("namespace"), problems);
    if !is_host(&raw.hostname) {
        problems.add(
            &place.key("hostname"),
            format!("{:?} is not a host name", raw.hostname),
            "write the service's full name, as web.default.svc.cluster.local",
        );
    }
    let hostname: Arc<str> = normal_host(&raw.hostname).into();
    let waypoint = raw.waypoint.as_ref().and_then(|waypoint| gateway_ref(waypoint, &place.key("waypoint"), problems));
    Service {
        key: format!("{namespace}/{hostname}").into(),
        name: required(&raw.name, &place.key("name"), problems),
        namespace,
        hostname,
        vips: vips(&raw.vips, &place.key("vips"), problems),
        cidr_vips: cidr_vips(&raw.cidr_vips, &place.key("cidrVips"), problems),
        ports: raw.ports.0.clone().into(),
        subject_alt_names: raw.subject_alt_names.iter().map(|san| san.as_str().into()).collect(),
        identities: sans(&raw.subject_alt_names, &place.key("subjectAltNames"), problems),
        waypoint,
        weighted_waypoints: weighted(&raw.weighted_waypoints, &place.key("weightedWaypoints"), problems),
        load_balancing: load_balancing(raw.load_balancer.as_ref()),
        ip_families: match raw.ip_families {
            None => IpFamilies::Automatic,
            Some(raw::IpFamilies::V4) => IpFamilies::V4,
            Some(raw::IpFamilies::V6) => IpFamilies::V6,
            Some(raw::IpFamilies::Dual) => IpFamilies::Dual,
        },
        canonical: raw.canonical,
        visibility: match raw.visibility {
            raw::Visibility::Public => Visibility::Public,
            raw::Visibility::Namespace => Visibility::Namespace,
        },
        ingress_use_waypoint: raw.ingress_use_waypoint,
        extensions: Box::default(),
    }
}

fn vips(raw: &[String], place: &Place, problems: &mut Problems) -> Vec<NetworkAddress> {
    let mut vips = Vec::new();
    for (index, text) in raw.iter().enumerate() {
        match network_address(text).filter(|vip| !vip.ip.is_unspecified()) {
            Some(vip) => vips.push(vip),
            None => problems.add(
                &place.index(index),
                format!("{text:?} is not network/address"),
                "write it as \"network1/10.96.0.10\" (\"/10.96.0.10\" for a network without a name)",
            ),
        }
    }
    vips
}

fn cidr_vips(raw: &[raw::CidrVip], place: &Place, problems: &mut Problems) -> Vec<CidrVip> {
    let vips = raw.iter().enumerate().filter_map(|(index, vip)| {
        let range = cidr(&vip.cidr, &place.index(index).key("cidr"), problems)?;
        Some(CidrVip { network: vip.network.as_str().into(), range })
    });
    vips.collect()
}

fn weighted(raw: &[raw::WeightedWaypoint], place: &Place, problems: &mut Problems) -> Vec<WeightedWaypoint> {
    let waypoints = raw.iter().enumerate().filter_map(|(index, entry)| {
        let place = place.index(index).key("destination");
        let waypoint = gateway_ref(&entry.destination, &place, problems)?;
        Some(WeightedWaypoint { waypoint, weight: entry.weight })
    });
    waypoints.collect()
}

fn sans(raw: &[String], place: &Place, problems: &mut Problems) -> Vec<SpiffeId> {
    let mut identities = Vec::new();
    for (index, text) in raw.iter().enumerate() {
        match SpiffeId::parse(text) {
            Ok(id) => identities.push(id),
            // Others (DNS names of ServiceEntries) are kept as text and never match.
            Err(error) if text.starts_with("spiffe:") => problems.add(&place.index(index), error.to_string(), ""),
            Err(_) => {}
        }
    }
    identities
}

fn load_balancing(raw: Option<&raw::LoadBalancer>) -> LoadBalancing {
    let Some(raw) = raw else {
        return LoadBalancing::default();
    };
    LoadBalancing {
        preferences: raw
            .routing_preferences
            .iter()
            .map(|scope| match scope {
                raw::Scope::Region => Scope::Region,
                raw::Scope::Zone => Scope::Zone,
                raw::Scope::Subzone => Scope::Subzone,
                raw::Scope::Node => Scope::Node,
                raw::Scope::Cluster => Scope::Cluster,
                raw::Scope::Network => Scope::Network,
            })
            .collect(),
        mode: match raw.mode {
            raw::Mode::Standard => LoadBalancingMode::Standard,
            raw::Mode::Strict => LoadBalancingMode::Strict,
            raw::Mode::Failover => LoadBalancingMode::Failover,
            raw::Mode::Passthrough => LoadBalancingMode::Passthrough,
        },
        allow_unhealthy: raw.health_policy == raw::HealthPolicy::AllowAll,
    }
}

pub(super) fn policy(raw: &raw::Policy, place: &Place, problems: &mut Problems) -> Policy {
    let name = required(&raw.name, &place.key("name"), problems);
    let mut rules = Vec::new();
    for (r, rule) in raw.rules.iter().enumerate() {
        let rule_place = place.key("rules").index(r);
        let mut clauses = Vec::new();
        for (c, clause) in rule.iter().enumerate() {
            let clause_place = rule_place.index(c);
            let matches =
                clause.iter().enumerate().map(|(m, entry)| policy_match(entry, &clause_place.index(m), problems));
            clauses.push(matches.collect());
        }
        rules.push(clauses);
    }
    Policy {
        key: format!("{}/{name}", raw.namespace).into(),
        name,
        namespace: raw.namespace.as_str().into(),
        scope: match raw.scope {
            raw::PolicyScope::Global => PolicyScope::Global,
            raw::PolicyScope::Namespace => PolicyScope::Namespace,
            raw::PolicyScope::WorkloadSelector => PolicyScope::WorkloadSelector,
        },
        action: match raw.action {
            raw::Action::Allow => Action::Allow,
            raw::Action::Deny => Action::Deny,
        },
        dry_run: raw.dry_run,
        rules,
        extensions: Box::default(),
        unreadable: None,
    }
}

fn policy_match(raw: &raw::Match, place: &Place, problems: &mut Problems) -> Match {
    let mut texts = |field: &str, raw: &[raw::StringMatch]| texts(raw, &place.key(field), problems);
    let (namespaces, not_namespaces) =
        (texts("namespaces", &raw.namespaces), texts("notNamespaces", &raw.not_namespaces));
    let (principals, not_principals) =
        (texts("principals", &raw.principals), texts("notPrincipals", &raw.not_principals));
    let mut ranges = |field: &str, raw: &[String]| ranges(raw, &place.key(field), problems);
    Match {
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        service_accounts: accounts(&raw.service_accounts),
        not_service_accounts: accounts(&raw.not_service_accounts),
        source_ips: ranges("sourceIps", &raw.source_ips),
        not_source_ips: ranges("notSourceIps", &raw.not_source_ips),
        destination_ips: ranges("destinationIps", &raw.destination_ips),
        not_destination_ips: ranges("notDestinationIps", &raw.not_destination_ips),
        destination_ports: raw.destination_ports.clone(),
        not_destination_ports: raw.not_destination_ports.clone(),
    }
}

fn texts(raw: &[raw::StringMatch], place: &Place, problems: &mut Problems) -> Vec<StringMatch> {
    let mut texts = Vec::new();
    for (index, entry) in raw.iter().enumerate() {
        let text = |text: &String| Arc::<str>::from(text.as_str());
        let set = [
            entry.exact.as_ref().map(|t| StringMatch::Exact(text(t))),
            entry.prefix.as_ref().map(|t| StringMatch::Prefix(text(t))),
            entry.suffix.as_ref().map(|t| StringMatch::Suffix(text(t))),
            entry.presence.map(|_| StringMatch::Presence),
        ];
        let mut set = set.into_iter().flatten();
        // An entry that says nothing must not vanish: the constraint would vanish with it.
        match (set.next(), set.next()) {
            (Some(one), None) => texts.push(one),
            _ => problems.add(
                &place.index(index),
                "needs exactly one of Exact, Prefix, Suffix and Presence",
                "write it as {Exact: value}",
            ),
        }
    }
    texts
}

fn ranges(raw: &[String], place: &Place, problems: &mut Problems) -> Vec<Cidr> {
    raw.iter().enumerate().filter_map(|(index, text)| cidr(text, &place.index(index), problems)).collect()
}

fn accounts(raw: &[raw::ServiceAccountMatch]) -> Vec<ServiceAccountMatch> {
    raw.iter()
        .map(|entry| ServiceAccountMatch {
            namespace: entry.namespace.as_str().into(),
            service_account: entry.service_account.as_str().into(),
        })
        .collect()
}
