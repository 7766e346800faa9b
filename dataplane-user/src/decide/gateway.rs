//! What the gateway role forwards, and where to.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balance::{Vantage, Wanted, choose, eligible};
use super::waypoint::{self, Named};
use super::{HBONE_PORT, LoadView, Refusal, remote_pod};
use crate::hbone::Authority;
use crate::identity::SpiffeId;
use crate::state::{Model, NamedPod, Protocol, Service, SourceMatch, Visibility, Workload};

/// Fallbacks beyond this many would outlast the client's patience.
const MAX_CANDIDATES: usize = 8;

/// Where the gateway forwards a stream.
#[derive(Debug, Clone)]
pub struct GatewayTarget {
    /// The service that was named.
    pub service: Arc<Service>,
    /// Endpoints with the address of their HBONE listener, the best first; at least one.
    pub candidates: Vec<(SocketAddr, Arc<Workload>)>,
}

/// What kind of proxy says it sent the stream (`x-istio-source`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SourceKind {
    /// Nobody said.
    #[default]
    Absent,
    /// A waypoint: its policies have run.
    Waypoint,
    /// An ingress gateway.
    Gateway,
    /// A sidecar.
    Sidecar,
}

impl SourceKind {
    /// What a peer claims in `x-istio-source`, if it is one of those believed; from anybody else the claim counts as absent,
    /// so that L7 policy runs twice rather than never.
    #[must_use]
    pub fn claimed(value: Option<&[u8]>, peer: &SpiffeId, trusted: &[SourceMatch]) -> Self {
        let claim = match value {
            Some(b"waypoint") => Self::Waypoint,
            Some(b"gateway") => Self::Gateway,
            Some(b"sidecar") => Self::Sidecar,
            _ => Self::Absent,
        };
        let believed = trusted.iter().any(|source| source.matches(peer));
        if believed { claim } else { Self::Absent }
    }
}

/// [`gateway_from`] for a stream whose sender says nothing about itself.
///
/// # Errors
/// The status to answer with.
pub fn gateway(
    model: &Model,
    authority: &Authority,
    peer: &SpiffeId,
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<GatewayTarget, Refusal> {
    gateway_from(model, authority, peer, SourceKind::Absent, load, rng)
}

/// Decides where the gateway forwards a stream for `authority` from `peer`.
///
/// Only exported services with HBONE endpoints of the own network are reachable; never a pod, never another network, never
/// another port.
///
/// # Errors
/// The status to answer with.
pub fn gateway_from(
    model: &Model,
    authority: &Authority,
    peer: &SpiffeId,
    source: SourceKind,
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<GatewayTarget, Refusal> {
    let refuse = |reason: String| Refusal::new(503, "connect", format!("{reason} (asked by {peer})"));
    let service = match (exported_service(model, authority), authority) {
        (Ok(service), _) => service,
        (Err(reason), Authority::Host { name, port }) => {
            let Some((pod, host)) = remote_pod::parts(model, name) else {
                return Err(refuse(reason));
            };
            return named_pod(model, pod, host, *port, source)
                .map_err(|refusal| Refusal { reason: format!("{} (asked by {peer})", refusal.reason), ..refusal });
        }
        (Err(reason), Authority::Ip(_)) => return Err(refuse(reason)),
    };
    let port = authority.port();
    if !service.ports.contains_key(&port) {
        return Err(refuse(format!("service {} has no port {port}", service.key)));
    }
    let candidates = match waypoint_ref(model, service, source, rng).map_err(refuse)? {
        Some((waypoint, port)) => members(model, waypoint, port, true, load, rng),
        None => members(model, service, port, false, load, rng),
    };
    let candidates = candidates
        .map_err(|reason| refuse(format!("service {} has no usable endpoint here: {reason}", service.key)))?;
    Ok(GatewayTarget { service: service.clone(), candidates })
}

/// Whether a stream that was forwarded to `authority` may go on.
///
/// # Errors
/// Why not, in words.
pub fn still_exported(model: &Model, authority: &Authority) -> Result<(), String> {
    let of_pod =
        |name: &str| remote_pod::services(model, remote_pod::parts(model, name)?.1).find(|s| is_exported(model, s));
    match (exported_service(model, authority), authority) {
        (Err(_), Authority::Host { name, .. }) if of_pod(name).is_some() => Ok(()),
        (found, _) => found.map(drop),
    }
}

/// Whether a service may be reached from other networks.
fn is_exported(model: &Model, service: &Service) -> bool {
    service.visibility == Visibility::Public && model.node.exports.contains(&service.key)
}

/// The one pod that is asked for by its name. Whether its service is unknown or not exported is not for others to know.
fn named_pod(model: &Model, pod: &str, host: &str, port: u16, source: SourceKind) -> Result<GatewayTarget, Refusal> {
    let network = &model.node.network;
    let missing =
        |reason: String| Refusal::new(404, "connect", format!("no such pod at {network}: {pod}.{host}: {reason}"));
    let Some(service) = remote_pod::services(model, host).find(|service| is_exported(model, service)) else {
        return Err(missing("no headless service of that name is exported here".to_owned()));
    };
    let workload = match model.named_pod(service, pod, network) {
        Some(NamedPod::Ready(workload)) => workload,
        Some(NamedPod::NotReady) => return Err(missing("it is not ready".to_owned())),
        None => return Err(missing("the service has no such pod here".to_owned())),
    };
    let unusable = |reason: &str| Refusal::new(503, "connect", format!("pod {pod} of {} {reason}", service.key));
    if remote_pod::port(service, workload.services.get(&service.key), port).is_none() {
        return Err(unusable(&format!("offers no port {port}")));
    }
    if workload.protocol != Protocol::Hbone {
        return Err(unusable("speaks no HBONE"));
    }
    // Its policies would not run; a waypoint knows no names of pods.
    if workload.waypoint.is_some() && source != SourceKind::Waypoint {
        return Err(unusable("is behind a waypoint and cannot be reached by its own name from another network"));
    }
    let Some(ip) = workload.ips.iter().find(|ip| ip.is_ipv4()).or(workload.ips.first()) else {
        return Err(unusable("has no address"));
    };
    let candidates = vec![(SocketAddr::new(*ip, HBONE_PORT), workload.clone())];
    Ok(GatewayTarget { service: service.clone(), candidates })
}

/// The service that an authority names, if it may be reached from other networks.
fn exported_service<'a>(model: &'a Model, authority: &Authority) -> Result<&'a Arc<Service>, String> {
    let exported = |service: &&Arc<Service>| is_exported(model, service);
    let found = match authority {
        Authority::Host { name, .. } => model.services_by_host(name).iter().find(exported),
        Authority::Ip(address) => model.service_with_vip(&model.node.network, address.ip()).filter(exported),
    };
    found.ok_or_else(|| format!("{authority} names no service that is exported here"))
}

/// The waypoint's service and port, if the stream has to go through it first.
fn waypoint_ref<'a>(
    model: &'a Model,
    service: &Service,
    source: SourceKind,
    rng: &mut impl FnMut() -> u64,
) -> Result<Option<(&'a Arc<Service>, u16)>, String> {
    // An ingress gateway has run its own policies; the waypoint's run as well where the service wants that.
    if source == SourceKind::Waypoint || source == SourceKind::Gateway && !service.ingress_use_waypoint {
        return Ok(None);
    }
    let Some(waypoint) = waypoint::of_service(service, rng) else {
        return Ok(None);
    };
    match waypoint::find(model, &waypoint.destination) {
        Some(Named::Service(found)) => Ok(Some((found, waypoint.port))),
        // Never bypassed: its policies would not run.
        _ => Err(format!("waypoint {} of service {} is no service known here", waypoint.destination, service.key)),
    }
}

/// Endpoints of the own network that speak HBONE, drawn one after the other.
fn members(
    model: &Model,
    service: &Service,
    port: u16,
    waypoint: bool,
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<Vec<(SocketAddr, Arc<Workload>)>, String> {
    let vantage = Vantage::here(model);
    let wanted = Wanted { service, port, asked: None, other_networks: false, names: false, waypoint };
    let mut left = eligible(model, &vantage, &wanted)?;
    // The records of waypoints do not say that they speak HBONE, yet all do.
    left.retain(|candidate| waypoint || candidate.workload.protocol == Protocol::Hbone);
    if left.is_empty() {
        return Err("none speaks HBONE".into());
    }
    let mut members = Vec::new();
    while members.len() < MAX_CANDIDATES && !left.is_empty() {
        let chosen = match choose(left.clone(), &vantage, service, &[], load, rng) {
            Ok(chosen) => chosen,
            Err(reason) if members.is_empty() => return Err(reason),
            Err(_) => break,
        };
        left.retain(|candidate| candidate.workload.uid != chosen.workload.uid);
        if let Some(ip) = chosen.ip {
            members.push((SocketAddr::new(ip, HBONE_PORT), chosen.workload));
        }
    }
    if members.is_empty() {
        return Err("none has an address".into());
    }
    Ok(members)
}
