//! The whole state as JSON, in the shape that `istioctl ztunnel-config` reads.

use std::{collections::BTreeMap, net::SocketAddr, time::SystemTime};

use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    access_log::{Direction, Side},
    connections::Connection,
};
use crate::{
    identity::Credential,
    state::{
        Action, ApplicationTunnel, GatewayRef, LoadBalancingMode, Match, Model, Policy, PolicyScope, Protocol, Scope,
        Service, StringMatch, TunnelKind, Visibility, Workload,
    },
};

/// Workloads, services and policies of a model.
#[must_use]
pub fn model(model: &Model) -> Map<String, Value> {
    let mut dump = Map::new();
    let workloads: Vec<Value> = model.workloads().map(|known| workload(known)).collect();
    let services: Vec<Value> = model.services().map(|known| service(model, known)).collect();
    let policies: Vec<Value> = model.policies().map(|known| policy(known)).collect();
    dump.insert("workloads".to_owned(), workloads.into());
    dump.insert("services".to_owned(), services.into());
    dump.insert("policies".to_owned(), policies.into());
    dump
}

fn gateway(reference: &GatewayRef) -> Value {
    json!({"destination": reference.destination.to_string(), "hboneMtlsPort": reference.port})
}

fn tunnel(tunnel: &ApplicationTunnel) -> Value {
    let kind = match tunnel.kind {
        TunnelKind::None => "NONE",
        TunnelKind::Proxy => "PROXY",
    };
    json!({"protocol": kind, "port": tunnel.port})
}

/// One workload.
#[must_use]
pub fn workload(workload: &Workload) -> Value {
    let protocol = match workload.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Hbone => "HBONE",
    };
    let mut dump = json!({
        "uid": workload.uid,
        "name": workload.name,
        "namespace": workload.namespace,
        "serviceAccount": workload.service_account,
        "trustDomain": workload.trust_domain,
        "workloadIps": workload.ips,
        "protocol": protocol,
        "node": workload.node,
        "network": workload.network,
        "clusterId": workload.cluster,
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "hostname": workload.hostname,
        "status": if workload.healthy { "Healthy" } else { "Unhealthy" },
        "capacity": workload.capacity,
        "networkMode": if workload.host_network { "HostNetwork" } else { "Standard" },
        "authorizationPolicies": workload.policies,
        "services": workload.services.keys().collect::<Vec<_>>(),
        "locality": {
            "region": workload.locality.region,
            "zone": workload.locality.zone,
            "subzone": workload.locality.subzone,
        },
    });
    if let Some(dump) = dump.as_object_mut() {
        let optional = [
            ("waypoint", workload.waypoint.as_deref().map(gateway)),
            ("networkGateway", workload.network_gateway.as_deref().map(gateway)),
            ("applicationTunnel", workload.application_tunnel.as_ref().map(tunnel)),
        ];
        dump.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }
    dump
}

fn ports<'a>(ports: impl Iterator<Item = (&'a u16, &'a u16)>) -> Map<String, Value> {
    ports.map(|(port, target)| (port.to_string(), json!(target))).collect()
}

/// One service with its endpoints.
#[must_use]
pub fn service(model: &Model, service: &Service) -> Value {
    let endpoints: Map<String, Value> = model
        .members(service)
        .iter()
        .map(|member| {
            let (workload, own) = (&member.workload, &member.ports);
            let mapped: BTreeMap<u16, u16> =
                service.ports.iter().map(|(port, target)| (*port, *own.get(port).unwrap_or(target))).collect();
            let status = if workload.healthy { "Healthy" } else { "Unhealthy" };
            let endpoint = json!({"workloadUid": workload.uid, "port": ports(mapped.iter()), "status": status});
            (workload.uid.to_string(), endpoint)
        })
        .collect();
    let vips: Vec<String> = service.vips.iter().map(|vip| format!("{}/{}", vip.network, vip.ip)).collect();
    let ranges: Vec<String> = service.cidr_vips.iter().map(|vip| format!("{}/{}", vip.network, vip.range)).collect();
    let mut dump = json!({
        "name": service.name,
        "namespace": service.namespace,
        "hostname": service.hostname,
        "vips": vips,
        "cidrVips": ranges,
        "ports": ports(service.ports.iter()),
        "subjectAltNames": service.subject_alt_names,
        "canonical": service.canonical,
        "visibility": match service.visibility { Visibility::Public => "Public", Visibility::Namespace => "Namespace" },
        "endpoints": endpoints,
    });
    if let Some(dump) = dump.as_object_mut() {
        if let Some(waypoint) = &service.waypoint {
            dump.insert("waypoint".to_owned(), gateway(waypoint));
        }
        if !service.weighted_waypoints.is_empty() {
            let weighted = service
                .weighted_waypoints
                .iter()
                .map(|one| json!({"destination": gateway(&one.waypoint), "weight": one.weight}));
            dump.insert("weightedWaypoints".to_owned(), weighted.collect());
        }
        let balancing = &service.load_balancing;
        let mode = match balancing.mode {
            LoadBalancingMode::Standard => "Standard",
            LoadBalancingMode::Strict => "Strict",
            LoadBalancingMode::Failover => "Failover",
            LoadBalancingMode::Passthrough => "Passthrough",
        };
        let scope = |scope: &Scope| match scope {
            Scope::Region => "Region",
            Scope::Zone => "Zone",
            Scope::Subzone => "Subzone",
            Scope::Node => "Node",
            Scope::Cluster => "Cluster",
            Scope::Network => "Network",
        };
        let health = if balancing.allow_unhealthy { "AllowAll" } else { "OnlyHealthy" };
        let preferences: Vec<&str> = balancing.preferences.iter().map(scope).collect();
        let value = json!({"routingPreferences": preferences, "mode": mode, "healthPolicy": health});
        dump.insert("loadBalancer".to_owned(), value);
    }
    dump
}

/// One policy.
#[must_use]
pub fn policy(policy: &Policy) -> Value {
    let rules: Vec<Value> = policy
        .rules
        .iter()
        .map(|clauses| clauses.iter().map(|matches| matches.iter().map(match_).collect::<Value>()).collect::<Value>())
        .collect();
    json!({
        "name": policy.name,
        "namespace": policy.namespace,
        "scope": match policy.scope {
            PolicyScope::Global => "Global",
            PolicyScope::Namespace => "Namespace",
            PolicyScope::WorkloadSelector => "WorkloadSelector",
            PolicyScope::Unreadable => "Unreadable",
        },
        "action": match policy.action { Action::Allow => "Allow", Action::Deny => "Deny" },
        "dryRun": policy.dry_run,
        "rules": rules,
    })
}

fn match_(one: &Match) -> Value {
    let texts = |texts: &[StringMatch]| -> Vec<Value> {
        let text = |text: &StringMatch| match text {
            StringMatch::Exact(text) => json!({ "Exact": text }),
            StringMatch::Prefix(text) => json!({ "Prefix": text }),
            StringMatch::Suffix(text) => json!({ "Suffix": text }),
            StringMatch::Presence => json!({"Presence": {}}),
        };
        texts.iter().map(text).collect()
    };
    let ranges = |ranges: &[crate::state::Cidr]| ranges.iter().map(|range| json!(range.to_string())).collect();
    let accounts = |accounts: &[crate::state::ServiceAccountMatch]| -> Vec<Value> {
        accounts.iter().map(|one| json!(format!("{}/{}", one.namespace, one.service_account))).collect()
    };
    let numbers = |ports: &[u16]| ports.iter().map(|port| json!(port)).collect();
    let fields: [(&str, Vec<Value>); 12] = [
        ("namespaces", texts(&one.namespaces)),
        ("notNamespaces", texts(&one.not_namespaces)),
        ("principals", texts(&one.principals)),
        ("notPrincipals", texts(&one.not_principals)),
        ("serviceAccounts", accounts(&one.service_accounts)),
        ("notServiceAccounts", accounts(&one.not_service_accounts)),
        ("sourceIps", ranges(&one.source_ips)),
        ("notSourceIps", ranges(&one.not_source_ips)),
        ("destinationIps", ranges(&one.destination_ips)),
        ("notDestinationIps", ranges(&one.not_destination_ips)),
        ("destinationPorts", numbers(&one.destination_ports)),
        ("notDestinationPorts", numbers(&one.not_destination_ports)),
    ];
    fields
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| (name.to_owned(), values))
        .collect()
}

/// One certificate with its chain.
#[must_use]
pub fn certificate(credential: &Credential) -> Value {
    let chain: Vec<Value> = credential.chain().iter().filter_map(|der| one_certificate(der)).collect();
    json!({
        "identity": credential.id.to_string(),
        "state": "Available",
        "certChain": chain,
        "rootCerts": [],
    })
}

fn one_certificate(der: &[u8]) -> Option<Value> {
    use base64::Engine as _;
    let (_, parsed) = x509_parser::parse_x509_certificate(der).ok()?;
    let validity = parsed.validity();
    let stamp =
        |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|at| at.format(&Rfc3339).ok());
    let engine = base64::engine::general_purpose::STANDARD;
    let lines: Vec<String> =
        engine.encode(der).as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
    Some(json!({
        "pem": engine.encode(pem),
        "serialNumber": parsed.tbs_certificate.serial.to_string(),
        "validFrom": stamp(validity.not_before.timestamp()),
        "expirationTime": stamp(validity.not_after.timestamp()),
    }))
}

/// One open connection in our own words.
#[must_use]
pub fn connection(connection: &Connection) -> Value {
    let record = &connection.record;
    let side = |side: &Side| {
        json!({
            "addr": side.address,
            "workload": side.workload.as_ref().map(|workload| &workload.name),
            "namespace": side.workload.as_ref().map(|workload| &workload.namespace),
            "identity": side.identity.as_ref().map(ToString::to_string),
            "cluster": side.cluster(),
        })
    };
    let (sent, received) = connection.bytes();
    let legs: Map<String, Value> =
        record.legs.walked().map(|(leg, micros)| (leg.name().to_owned(), json!(f64::from(micros) / 1000.0))).collect();
    json!({
        "direction": record.direction.name(),
        "src": side(&record.source),
        "dst": side(&record.destination),
        "service": record.service.as_ref().map(|service| &service.hostname),
        "authority": record.hbone,
        "seconds": connection.since.elapsed().as_secs(),
        "legMillis": legs,
        "bytesSent": sent,
        "bytesReceived": received,
    })
}

/// Open connections of one pod, as `workloadState` has them.
#[must_use]
pub fn pod_connections(all: &[std::sync::Arc<Connection>], uid: &str) -> Value {
    let of = |side: &Side| side.workload.as_ref().is_some_and(|workload| *workload.uid == *uid);
    let text = |address: Option<SocketAddr>| address.map(|address| address.to_string());
    let entry = |connection: &Connection| {
        let record = &connection.record;
        let nested = record.direction == Direction::Outbound
            && record
                .destination
                .workload
                .as_ref()
                .zip(record.source.workload.as_ref())
                .is_some_and(|(to, from)| to.network != from.network);
        let protocol = if nested {
            "DOUBLEHBONE"
        } else if record.hbone.is_some() {
            "HBONE"
        } else {
            "TCP"
        };
        json!({
            "src": text(record.source.address),
            "originalDst": record.service.as_ref().map(|service| &service.hostname),
            "actualDst": record.hbone.clone().or_else(|| text(record.destination.address)),
            "protocol": protocol,
        })
    };
    let inbound: Vec<Value> = all
        .iter()
        .filter(|one| one.record.direction == Direction::Inbound && of(&one.record.destination))
        .map(|one| entry(one))
        .collect();
    let outbound: Vec<Value> = all
        .iter()
        .filter(|one| one.record.direction == Direction::Outbound && of(&one.record.source))
        .map(|one| entry(one))
        .collect();
    json!({"inbound": inbound, "outbound": outbound})
}

/// Seconds since 1970.
#[must_use]
pub fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
