//! Routes to one pod of another network, by its name.
//!
//! DNS gives such a pod an address that stands for its name. What this adds to Istio's rules is ours alone: the authority of
//! the tunnels is the pod's full name, and the gateway and the pod itself know that name.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{DecideError, LoadView, NestedRoute, Outbound, nested, outbound};
use crate::state::{Model, NamedPod, PodName, Ports, Service, Workload};

/// Decides where a connection to an address goes that is kept for names of pods; `name` is what it was given out for.
///
/// # Errors
/// If there is nowhere it may go. An address that stands for nothing leads nowhere, least of all past the mesh.
pub fn reserved(
    model: &Model,
    source: &Arc<Workload>,
    (destination, name): (SocketAddr, Option<&PodName>),
    avoid: &[Arc<str>],
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<Outbound, DecideError> {
    let ip = destination.ip().to_canonical();
    // A mesh that uses the address itself means something else by it.
    if model.workload_by_ip(&source.network, ip).is_some() || model.service_with_vip(&source.network, ip).is_some() {
        return outbound(model, source, destination, avoid, load, rng);
    }
    let name = name.ok_or(DecideError::Reserved(ip))?;
    let service = model
        .service_by_key(&name.service)
        .filter(|service| service.visible_to(&source.namespace) && service.is_headless())
        .ok_or_else(|| gone(name, "its service is not in the mesh any more"))?;
    match model.named_pod(service, &name.pod, &source.network) {
        // It has come since its name was asked for; its own address counts.
        Some(NamedPod::Ready(pod)) => {
            let ip = pod.ips.iter().find(|ip| ip.is_ipv4()).or(pod.ips.first());
            let ip = *ip.ok_or_else(|| gone(name, "the pod of this network has no address"))?;
            outbound(model, source, SocketAddr::new(ip, destination.port()), avoid, load, rng)
        }
        Some(NamedPod::NotReady) => Err(gone(name, "the pod of that name in this network is not ready")),
        None => remote(model, service, name, destination.port(), avoid).map(Outbound::Nested),
    }
}

fn gone(name: &PodName, reason: &str) -> DecideError {
    DecideError::Pod { pod: name.pod.to_string(), service: name.service.to_string(), reason: reason.to_owned() }
}

fn remote(
    model: &Model,
    service: &Arc<Service>,
    name: &PodName,
    port: u16,
    avoid: &[Arc<str>],
) -> Result<NestedRoute, DecideError> {
    let record = model
        .endpoints(service)
        .iter()
        .map(|endpoint| &endpoint.workload)
        .find(|workload| workload.network == name.network && workload.is_split_horizon())
        .ok_or_else(|| gone(name, &format!("network {} has no endpoint of it any more", name.network)))?;
    if avoid.contains(&record.uid) {
        return Err(gone(name, &format!("the way to network {} was tried", name.network)));
    }
    let route = nested::route(model, record, service, port, None)?;
    // One name, one pod: no tunnel to another one may serve it.
    Ok(NestedRoute {
        authority: format!("{}.{}:{port}", name.pod, service.hostname),
        pod: Some(name.pod.clone()),
        capacity: 1,
        ..route
    })
}

/// The pod and its service's host name in a name of the form `<pod>.<service>.<namespace>.svc.<domain>`.
pub(super) fn parts<'a>(model: &Model, host: &'a str) -> Option<(&'a str, &'a str)> {
    let inside = host.strip_suffix(&*model.node.cluster_domain)?.strip_suffix(".svc.")?;
    let (pod, service) = host.split_once('.')?;
    (inside.split('.').count() == 3).then_some((pod, service))
}

/// The headless services of a host name.
pub(super) fn services<'a>(model: &'a Model, host: &str) -> impl Iterator<Item = &'a Arc<Service>> {
    model.services_by_host(host).iter().filter(|service| service.is_headless())
}

/// The port of a pod that is meant by `asked`. As at a pod's own address it is the application's; a port of the service stands
/// for its target, because clients write that too.
pub(super) fn port(service: &Service, own: Option<&Ports>, asked: u16) -> Option<u16> {
    let target = |port: u16| {
        let known = [own.and_then(|map| map.get(&port)), service.ports.get(&port)];
        known.into_iter().flatten().copied().find(|target| *target != 0)
    };
    let is_target = service.ports.iter().any(|(port, _)| target(*port) == Some(asked));
    if is_target { Some(asked) } else { target(asked) }
}
