//! What a CONNECT request to an enrolled workload reaches.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{OWN_PORTS, Refusal, remote_pod, waypoint};
use crate::hbone::Authority;
use crate::identity::SpiffeId;
use crate::state::{GatewayRef, Model, Service, TunnelKind, Workload};

/// Where an accepted CONNECT request is delivered.
#[derive(Debug, Clone)]
pub struct InboundTarget {
    /// The workload's own address.
    pub address: IpAddr,
    /// The application's port.
    pub port: u16,
    /// The service that was named.
    pub service: Option<Arc<Service>>,
    /// Whether the application wants a PROXY protocol header first.
    pub proxy_header: bool,
}

/// Decides what a CONNECT request for `authority`, arrived on `local` (the socket's own address), reaches. Whether `peer`
/// may reach it is for [`super::policy()`] to say.
///
/// # Errors
/// The status to answer with.
pub fn inbound(
    model: &Model,
    own: &Arc<Workload>,
    local: SocketAddr,
    authority: &Authority,
    peer: Option<&SpiffeId>,
) -> Result<InboundTarget, Refusal> {
    let refuse = |status, reason: String| {
        let peer = peer.map_or_else(|| "an unknown peer".to_owned(), ToString::to_string);
        Refusal::new(status, "connect", format!("{reason} (asked by {peer})"))
    };
    let address = local.ip().to_canonical();
    let (port, service) = match authority {
        Authority::Ip(target) => {
            if target.ip() != address && !serves_other_addresses(model, own, target.ip()) {
                return Err(refuse(
                    400,
                    format!("authority {authority} is not the address of {} ({address})", own.uid),
                ));
            }
            let service = model.service_by_vip(&own.network, target.ip(), &own.namespace);
            (target.port(), service.cloned())
        }
        Authority::Host { name, port } => {
            let (target, service) = match named_service(model, own, name) {
                Some(service) => {
                    let mapped = own.services.get(&service.key).and_then(|map| map.get(port));
                    let known = [mapped, service.ports.get(port)].into_iter().flatten().copied();
                    (known.into_iter().find(|target| *target != 0), service)
                }
                None => {
                    let service = own_name(model, own, name).ok_or_else(|| {
                        refuse(503, format!("{} is no member of a service {name} and has no such name", own.uid))
                    })?;
                    (remote_pod::port(service, own.services.get(&service.key), *port), service)
                }
            };
            let target = target.ok_or_else(|| refuse(503, format!("{name} has no target for port {port}")))?;
            (target, Some(service.clone()))
        }
    };
    // Before the application tunnel: its port is our own configuration, this one is a stranger's wish.
    if OWN_PORTS.contains(&port) {
        return Err(refuse(503, format!("port {port} is a listener of ours")));
    }
    let tunnel = own.application_tunnel;
    Ok(InboundTarget {
        address,
        port: tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port),
        service,
        proxy_header: tunnel.is_some_and(|tunnel| tunnel.kind == TunnelKind::Proxy),
    })
}

/// Whether traffic for another address may end here: the application takes everything, or we are the waypoint of whatever
/// has that address.
fn serves_other_addresses(model: &Model, own: &Workload, target: IpAddr) -> bool {
    if own.application_tunnel.is_some() {
        return true;
    }
    let is_ours = |waypoint: &GatewayRef| waypoint::is(model, waypoint, own);
    let workload = model.workload_by_ip(&own.network, target);
    let service = model.service_by_vip(&own.network, target, &own.namespace);
    workload.and_then(|w| w.waypoint.as_deref()).is_some_and(is_ours)
        || service.is_some_and(|service| fronts(model, own, service))
}

fn fronts(model: &Model, own: &Workload, service: &Service) -> bool {
    service
        .waypoint
        .iter()
        .chain(service.weighted_waypoints.iter().map(|entry| &entry.waypoint))
        .any(|waypoint| waypoint::is(model, waypoint, own))
}

/// The service of that name this workload belongs to. Without this check any authenticated peer could name any service and
/// reach the same port here.
fn named_service<'a>(model: &'a Model, own: &Workload, name: &str) -> Option<&'a Arc<Service>> {
    let member = |service: &Service| own.services.contains_key(&service.key) || fronts(model, own, service);
    model.service_by_host(name, &own.namespace).filter(|service| member(service)).or_else(|| {
        // Two namespaces may publish one host name; only one of them may count us as a member.
        model
            .services_by_host(name)
            .iter()
            .filter(|service| service.visible_to(&own.namespace))
            .find(|service| member(service))
    })
}

/// The headless service as whose pod this workload has that name.
fn own_name<'a>(model: &'a Model, own: &Workload, name: &str) -> Option<&'a Arc<Service>> {
    let (pod, host) = remote_pod::parts(model, name)?;
    remote_pod::services(model, host).find(|service| pod == &*own.name && own.services.contains_key(&service.key))
}
