//! From messages to the model's workloads and services.
//!
//! Nothing is guessed: what cannot be understood refuses the resource and names the field. The one exception is a service's
//! visibility: an unknown value reads as "its own namespace only". To refuse the service would make its addresses unknown,
//! and traffic to an unknown address passes in the clear.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::wds;
use crate::identity::SpiffeId;
use crate::state::{
    ApplicationTunnel, Cidr, CidrVip, Destination, Extension, GatewayRef, Intern, IpFamilies, LoadBalancing,
    LoadBalancingMode, Locality, Memberships, NetworkAddress, Ports, Protocol, Scope, Service, TunnelKind, Visibility,
    WeightedWaypoint, Workload, normal_host,
};

/// Why a resource is refused: the field and what is wrong with it.
pub type Refusal = String;

/// What istiod means when it leaves these out.
const TRUST_DOMAIN: &str = "cluster.local";
const SERVICE_ACCOUNT: &str = "default";
const CLUSTER: &str = "Kubernetes";
const HBONE_PORT: u16 = 15008;

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

pub(super) fn required(field: &str, text: &str) -> Result<(), Refusal> {
    if text.is_empty() { Err(format!("{field}: is empty")) } else { Ok(()) }
}

pub(super) fn unknown(field: &str, number: i32) -> Refusal {
    format!("{field}: unknown value {number}")
}

/// An address of 4 or 16 bytes.
pub(super) fn ip(field: &str, bytes: &[u8]) -> Result<IpAddr, Refusal> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6).to_canonical()),
        Err(_) => Err(format!("{field}: an address has 4 or 16 bytes, this has {}", bytes.len())),
    }
}

pub(super) fn port(field: &str, number: u32) -> Result<u16, Refusal> {
    u16::try_from(number).map_err(|_| format!("{field}: {number} is not a port"))
}

pub(super) fn extensions(raw: Vec<wds::Extension>) -> Box<[Extension]> {
    let extensions = raw.into_iter().map(|extension| {
        let config = extension.config.unwrap_or_default();
        // A copy: the message it came in must not be kept for a few bytes.
        Extension {
            name: extension.name.into(),
            type_url: config.type_url.into(),
            config: config.value.to_vec().into(),
        }
    });
    extensions.collect()
}

/// A workload.
///
/// # Errors
/// The field that cannot be understood.
pub fn workload(raw: wds::Workload, intern: &mut Intern) -> Result<Workload, Refusal> {
    required("uid", &raw.uid)?;
    let namespace = intern.text(&raw.namespace);
    let service_account = intern.text(or(&raw.service_account, SERVICE_ACCOUNT));
    let trust_domain = intern.text(or(&raw.trust_domain, TRUST_DOMAIN));
    let identity = intern
        .identity(&trust_domain, &namespace, &service_account)
        .map_err(|error| format!("namespace, service_account, trust_domain: {error}"))?;
    let ips: Result<Box<[IpAddr]>, Refusal> = raw.addresses.iter().map(|bytes| ip("addresses", bytes)).collect();
    let name: Arc<str> = raw.name.as_str().into();
    let workload_name = if *raw.workload_name == *name { name.clone() } else { intern.text(&raw.workload_name) };
    Ok(Workload {
        uid: raw.uid.into(),
        identity,
        ips: ips?.into_vec(),
        hostname: if raw.hostname.is_empty() { intern.text("") } else { normal_host(&raw.hostname).into() },
        protocol: match raw.tunnel_protocol {
            0 => Protocol::Tcp,
            1 => Protocol::Hbone,
            2 => return Err("tunnel_protocol: LEGACY_ISTIO_MTLS is not supported".into()),
            other => return Err(unknown("tunnel_protocol", other)),
        },
        waypoint: gateway("waypoint", raw.waypoint, intern)?.map(|gateway| intern.gateway(gateway)),
        network_gateway: gateway("network_gateway", raw.network_gateway, intern)?
            .map(|gateway| intern.gateway(gateway)),
        application_tunnel: raw.application_tunnel.map(tunnel).transpose()?,
        policies: raw.authorization_policies.iter().map(|key| intern.text(key)).collect(),
        healthy: match raw.status {
            0 => true,
            1 => false,
            other => return Err(unknown("status", other)),
        },
        locality: locality(raw.locality.unwrap_or_default(), intern),
        capacity: raw.capacity.map_or(1, |capacity| capacity.value),
        host_network: match raw.network_mode {
            0 => false,
            1 => true,
            other => return Err(unknown("network_mode", other)),
        },
        services: memberships(raw.services, intern)?,
        workload_type: intern.text(match raw.workload_type {
            0 => "deployment",
            1 => "cronjob",
            2 => "pod",
            3 => "job",
            other => return Err(unknown("workload_type", other)),
        }),
        namespace,
        service_account,
        trust_domain,
        network: intern.text(&raw.network),
        cluster: intern.text(or(&raw.cluster_id, CLUSTER)),
        node: intern.text(&raw.node),
        name,
        workload_name,
        canonical_name: intern.text(&raw.canonical_name),
        canonical_revision: intern.text(&raw.canonical_revision),
        native_tunnel: raw.native_tunnel,
        extensions: extensions(raw.extensions),
    })
}

fn locality(raw: wds::Locality, intern: &mut Intern) -> Locality {
    intern.locality(&raw.region, &raw.zone, &raw.subzone)
}

fn tunnel(raw: wds::ApplicationTunnel) -> Result<ApplicationTunnel, Refusal> {
    let kind = match raw.protocol {
        0 => TunnelKind::None,
        1 => TunnelKind::Proxy,
        other => return Err(unknown("application_tunnel.protocol", other)),
    };
    Ok(ApplicationTunnel { kind, port: Some(port("application_tunnel.port", raw.port)?).filter(|port| *port != 0) })
}

fn memberships(raw: BTreeMap<String, wds::PortList>, intern: &mut Intern) -> Result<Memberships, Refusal> {
    let mut services = BTreeMap::new();
    for (key, list) in raw {
        let Some((namespace, hostname)) = key.split_once('/') else {
            return Err(format!("services: {key:?} is not namespace/hostname"));
        };
        let key = intern.text(&format!("{namespace}/{}", normal_host(hostname)));
        services.insert(key, ports("services.ports", &list.ports, intern)?);
    }
    Ok(services.into())
}

fn ports(field: &str, raw: &[wds::Port], intern: &mut Intern) -> Result<Ports, Refusal> {
    let mut ports = BTreeMap::new();
    for entry in raw {
        let service = port(field, entry.service_port)?;
        if service == 0 {
            return Err(format!("{field}: service_port is 0"));
        }
        ports.insert(service, port(field, entry.target_port)?);
    }
    Ok(intern.ports(ports))
}

fn gateway(field: &str, raw: Option<wds::GatewayAddress>, intern: &mut Intern) -> Result<Option<GatewayRef>, Refusal> {
    let Some(raw) = raw else {
        return Ok(None);
    };
    let destination = match raw.destination {
        None => return Err(format!("{field}: names no destination")),
        Some(wds::GatewayDestination::Address(address)) => {
            Destination::Address { network: intern.text(&address.network), ip: ip(field, &address.address)? }
        }
        Some(wds::GatewayDestination::Hostname(name)) => {
            required(&format!("{field}.hostname"), &name.hostname)?;
            let hostname = intern.text(&normal_host(&name.hostname));
            Destination::Hostname { namespace: intern.text(&name.namespace), hostname }
        }
    };
    let port = match port(&format!("{field}.hbone_mtls_port"), raw.hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(Some(GatewayRef { destination, port }))
}

/// A service.
///
/// # Errors
/// The field that cannot be understood.
pub fn service(raw: wds::Service, intern: &mut Intern) -> Result<Service, Refusal> {
    required("namespace", &raw.namespace)?;
    required("hostname", &raw.hostname)?;
    let hostname = intern.text(&normal_host(&raw.hostname));
    let (vips, cidr_vips) = addresses(raw.addresses, intern)?;
    let subject_alt_names: Vec<Arc<str>> = raw.subject_alt_names.iter().map(|name| intern.text(name)).collect();
    let mut identities = Vec::new();
    for name in subject_alt_names.iter().filter(|name| name.starts_with("spiffe:")) {
        identities.push(SpiffeId::parse(name).map_err(|error| format!("subject_alt_names: {error}"))?);
    }
    let mut weighted_waypoints = Vec::new();
    for entry in raw.weighted_waypoints {
        let waypoint = gateway("weighted_waypoints.destination", entry.destination, intern)?
            .ok_or("weighted_waypoints.destination: is not set")?;
        weighted_waypoints.push(WeightedWaypoint { waypoint, weight: entry.weight });
    }
    Ok(Service {
        key: intern.text(&format!("{}/{hostname}", raw.namespace)),
        name: intern.text(&raw.name),
        namespace: intern.text(&raw.namespace),
        hostname,
        vips,
        cidr_vips,
        ports: ports("ports", &raw.ports, intern)?,
        subject_alt_names,
        identities,
        waypoint: gateway("waypoint", raw.waypoint, intern)?,
        weighted_waypoints,
        load_balancing: raw.load_balancing.map(load_balancing).transpose()?.unwrap_or_default(),
        ip_families: match raw.ip_families {
            0 => IpFamilies::Automatic,
            1 => IpFamilies::V4,
            2 => IpFamilies::V6,
            3 => IpFamilies::Dual,
            other => return Err(unknown("ip_families", other)),
        },
        canonical: raw.canonical,
        visibility: if raw.visibility == 0 { Visibility::Public } else { Visibility::Namespace },
        ingress_use_waypoint: raw.ingress_use_waypoint,
        extensions: extensions(raw.extensions),
    })
}

type Addresses = (Vec<NetworkAddress>, Vec<CidrVip>);

fn addresses(raw: Vec<wds::NetworkAddress>, intern: &mut Intern) -> Result<Addresses, Refusal> {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for address in raw {
        let network = intern.text(&address.network);
        let ip = ip("addresses", &address.address)?;
        let full = if ip.is_ipv4() { 32 } else { 128 };
        match address.length {
            Some(length) if length != full => {
                let range = u8::try_from(length).ok().and_then(|length| Cidr::new(ip, length));
                let range = range.ok_or_else(|| format!("addresses: {ip}/{length} is not a range"))?;
                ranges.push(CidrVip { network, range });
            }
            _ => vips.push(NetworkAddress { network, ip }),
        }
    }
    Ok((vips, ranges))
}

fn load_balancing(raw: wds::LoadBalancing) -> Result<LoadBalancing, Refusal> {
    let scope = |number: &i32| match number {
        1 => Ok(Scope::Region),
        2 => Ok(Scope::Zone),
        3 => Ok(Scope::Subzone),
        4 => Ok(Scope::Node),
        5 => Ok(Scope::Cluster),
        6 => Ok(Scope::Network),
        other => Err(unknown("load_balancing.routing_preference", *other)),
    };
    Ok(LoadBalancing {
        preferences: raw.routing_preference.iter().map(scope).collect::<Result<_, _>>()?,
        mode: match raw.mode {
            0 => LoadBalancingMode::Standard,
            1 => LoadBalancingMode::Strict,
            2 => LoadBalancingMode::Failover,
            3 => LoadBalancingMode::Passthrough,
            other => return Err(unknown("load_balancing.mode", other)),
        },
        allow_unhealthy: match raw.health_policy {
            0 => false,
            1 => true,
            other => return Err(unknown("load_balancing.health_policy", other)),
        },
    })
}

#[cfg(test)]
mod tests;
