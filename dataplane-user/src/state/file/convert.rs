//! From raw structures to the model's types: the frame and the small conversions shared by all objects.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::locate::Place;
use super::{Problems, convert_mesh, convert_node, raw};
use crate::identity::SpiffeId;
use crate::state::{Cidr, Destination, GatewayAddress, GatewayRef, Model, NetworkAddress, normal_host};

/// Converts everything. Nothing comes back only when this node's own part is unusable; other problems are collected.
pub(super) fn model(file: &raw::File, base: &Path, problems: &mut Problems) -> Option<Model> {
    let node = convert_node::node(&file.causeway, base, problems)?;
    let mut workloads = Vec::new();
    let mut services = Vec::new();
    let mut policies = Vec::new();
    let trust_domain = &node.identity.trust_domain;
    let (w, s, p) = (Place::root().key("workloads"), Place::root().key("services"), Place::root().key("policies"));
    for (index, raw) in file.workloads.iter().enumerate() {
        workloads.extend(convert_mesh::workload(raw, trust_domain, &w.index(index), problems));
    }
    for (index, raw) in file.services.iter().enumerate() {
        services.push(convert_mesh::service(raw, &s.index(index), problems));
    }
    for (index, raw) in file.policies.iter().enumerate() {
        policies.push(convert_mesh::policy(raw, &p.index(index), problems));
    }
    let mut uids = Unique::default();
    for (index, raw) in file.workloads.iter().enumerate() {
        uids.check(&raw.uid, &w.index(index).key("uid"), "workload uid", problems);
    }
    let mut keys = Unique::default();
    for (index, service) in services.iter().enumerate() {
        keys.check(&service.key, &s.index(index).key("hostname"), "service", problems);
    }
    let mut keys = Unique::default();
    for (index, policy) in policies.iter().enumerate() {
        keys.check(&policy.key, &p.index(index).key("name"), "policy", problems);
    }
    unique_vips(file, problems);
    Some(Model::new(node, workloads, services, policies))
}

/// Finds second uses of what must be unique.
pub(super) struct Unique<T> {
    seen: HashMap<T, Place>,
}

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self { seen: HashMap::new() }
    }
}

impl<T: Hash + Eq + Clone + std::fmt::Display> Unique<T> {
    pub(super) fn check(&mut self, value: &T, place: &Place, what: &str, problems: &mut Problems) {
        match self.seen.get(value) {
            Some(first) => problems.add(
                place,
                format!("{what} {value} is already used by {first}"),
                "each must be unique: change or remove one of them",
            ),
            None => {
                self.seen.insert(value.clone(), place.clone());
            }
        }
    }
}

fn unique_vips(file: &raw::File, problems: &mut Problems) {
    let mut vips: HashMap<NetworkAddress, (usize, Place)> = HashMap::new();
    let services = Place::root().key("services");
    for (index, service) in file.services.iter().enumerate() {
        for (position, text) in service.vips.iter().enumerate() {
            let place = services.index(index).key("vips").index(position);
            // Unreadable ones have been reported.
            let Some(vip) = network_address(text) else {
                continue;
            };
            let name = |index: usize| {
                file.services.get(index).map_or_else(String::new, |s| format!("{}/{}", s.namespace, s.hostname))
            };
            match vips.get(&vip) {
                Some((other, first)) => problems.add(
                    &place,
                    format!("VIP {text} overlaps with {first} of service {}", name(*other)),
                    "a VIP belongs to one service within a network: give one of them another address",
                ),
                None => {
                    vips.insert(vip, (index, place));
                }
            }
        }
    }
}

/// Text that must not be empty.
pub(super) fn required(text: &str, place: &Place, problems: &mut Problems) -> Arc<str> {
    if text.is_empty() {
        problems.add(place, "is empty", "write a name here");
    }
    text.into()
}

/// An address as the model keeps it.
pub(super) fn ip(text: &str, place: &Place, problems: &mut Problems) -> Option<IpAddr> {
    let parsed =
        IpAddr::from_str(text).ok().map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified() && !ip.is_multicast());
    if parsed.is_none() {
        problems.add(
            place,
            format!("{text:?} is not a usable address"),
            "write an IPv4 or IPv6 address, as 10.244.1.2 or fd00::2",
        );
    }
    parsed
}

pub(super) fn cidr(text: &str, place: &Place, problems: &mut Problems) -> Option<Cidr> {
    text.parse()
        .inspect_err(|_| {
            problems.add(
                place,
                format!("{text:?} is not an address range"),
                "write an address or a range, as 10.0.0.0/8 or fd00::/8",
            );
        })
        .ok()
}

pub(super) fn socket(text: &str, place: &Place, problems: &mut Problems) -> Option<SocketAddr> {
    let parsed = SocketAddr::from_str(text).ok().filter(|a| a.port() != 0);
    if parsed.is_none() {
        problems.add(
            place,
            format!("{text:?} is not an address with a port"),
            "write ip:port, as 172.30.2.1:15008 or [fd00::1]:15008",
        );
    }
    parsed.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))
}

pub(super) fn gateway_address(text: &str, place: &Place, problems: &mut Problems) -> Option<GatewayAddress> {
    if let Ok(address) = SocketAddr::from_str(text)
        && address.port() != 0
    {
        let ip = address.ip().to_canonical();
        return Some(GatewayAddress::Ip(SocketAddr::new(ip, address.port())));
    }
    let named = text.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse().ok().filter(|port| *port != 0)?;
        is_host(host).then(|| GatewayAddress::Host(normal_host(host), port))
    });
    if named.is_none() {
        problems.add(
            place,
            format!("{text:?} is not a gateway address"),
            "write ip:port or host:port, as 172.30.2.1:15008 or gateway.example.com:15008",
        );
    }
    named
}

pub(super) fn identity(text: &str, place: &Place, problems: &mut Problems) -> Option<SpiffeId> {
    SpiffeId::parse(text).inspect_err(|error| problems.add(place, error.to_string(), "")).ok()
}

/// `network/ip`; the network may be empty.
pub(super) fn network_address(text: &str) -> Option<NetworkAddress> {
    let (network, ip) = text.split_once('/')?;
    Some(NetworkAddress { network: network.into(), ip: IpAddr::from_str(ip).ok()?.to_canonical() })
}

/// `network/ip` or `namespace/hostname`.
pub(super) fn gateway_ref(raw: &raw::GatewayRef, place: &Place, problems: &mut Problems) -> Option<GatewayRef> {
    if raw.hbone_mtls_port == 0 {
        problems.add(
            &place.key("hboneMtlsPort"),
            "port 0 cannot be dialled",
            "write the HBONE port of the gateway, usually 15008",
        );
    }
    let text = &raw.destination;
    let destination = match (network_address(text), text.split_once('/')) {
        (Some(address), _) => Destination::Address { network: address.network, ip: address.ip },
        (None, Some((namespace, hostname))) if !namespace.is_empty() && is_host(hostname) => {
            Destination::Hostname { namespace: namespace.into(), hostname: normal_host(hostname).into() }
        }
        _ => {
            problems.add(
                &place.key("destination"),
                format!("{text:?} is neither network/address nor namespace/hostname"),
                "write it as \"network2/172.30.2.1\" or \"istio-system/gateway.example.com\"",
            );
            return None;
        }
    };
    Some(GatewayRef { destination, port: raw.hbone_mtls_port })
}

/// `namespace/hostname` as the model keys services.
pub(super) fn service_key(text: &str, place: &Place, problems: &mut Problems) -> Option<Arc<str>> {
    match text.split_once('/') {
        Some((namespace, hostname)) if !namespace.is_empty() && is_host(hostname) => {
            Some(format!("{namespace}/{}", normal_host(hostname)).into())
        }
        _ => {
            problems.add(
                place,
                format!("{text:?} is not namespace/hostname"),
                "write it as \"default/web.default.svc.cluster.local\"",
            );
            None
        }
    }
}

/// Whether a text can be a host name; `*` is allowed as a label for wildcard hosts of ServiceEntries.
pub(super) fn is_host(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    !text.is_empty()
        && text.len() <= 253
        && text.split('.').all(|label| {
            label == "*"
                || (!label.is_empty()
                    && label.len() <= 63
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'))
        })
}
