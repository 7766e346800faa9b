//! Where a connection to a node port goes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::balance::{Vantage, Wanted, choose, eligible};
use super::outbound::{Step, direct, elsewhere};
use super::{DecideError, LoadView, Outbound, waypoint};
use crate::identity::SpiffeId;
use crate::state::{GatewayAddress, Model, NodePort, NodePortTarget, Protocol, Service, Workload};

/// Who has dialled a node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// A client outside the cluster.
    Outside,
    /// A pod or process of this node, for whom `externalTrafficPolicy: Local` means nothing, as with kube-proxy.
    Inside,
}

/// Decides where a connection to `service` port `port` goes that came in at a node port; `v4` is its family. `avoid` are
/// endpoints already tried for it.
///
/// # Errors
/// If there is nowhere it may go.
pub fn entry(
    model: &Model,
    source: &Arc<Workload>,
    node_port: &NodePort,
    (caller, v4): (Caller, bool),
    avoid: &[Arc<str>],
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<Outbound, DecideError> {
    let NodePortTarget::Service { key, port } = &node_port.target else {
        return Err(unknown("the gateway", 0, "it is not a service"));
    };
    let port = *port;
    let service = model.service_by_key(key).ok_or_else(|| unknown(key, port, "the mesh model does not know it"))?;
    let destination = SocketAddr::new(address(model, service, v4), port);
    let mut step = Step { model, source, vantage: Vantage::of(source), destination, avoid, load, rng };
    let local = node_port.local && caller == Caller::Outside;
    if service.ingress_use_waypoint
        && !local
        && let Some(through) = waypoint::of_service(service, step.rng)
    {
        return step.through_waypoint(through, Some(service), &service.key);
    }
    let no_upstream = |reason: String| DecideError::NoUpstream { service: service.key.to_string(), port, reason };
    let wanted =
        Wanted { service, port, asked: Some(destination.ip()), other_networks: !local, names: !local, waypoint: false };
    let mut candidates = eligible(model, &step.vantage, &wanted).map_err(no_upstream)?;
    if local {
        candidates.retain(|candidate| is_here(model, &candidate.workload));
        if candidates.is_empty() {
            return Err(no_upstream("no endpoint is on this node, and externalTrafficPolicy is Local".to_owned()));
        }
    }
    let chosen = choose(candidates, &step.vantage, service, avoid, load, step.rng).map_err(no_upstream)?;
    match chosen.ip {
        Some(ip) => {
            let to = SocketAddr::new(ip, chosen.target_port);
            Ok(direct(source, chosen.workload, to, Some(service.clone())))
        }
        None => elsewhere(model, source, service, chosen, destination),
    }
}

fn unknown(service: &str, port: u16, reason: &str) -> DecideError {
    DecideError::NoUpstream { service: service.to_owned(), port, reason: reason.to_owned() }
}

/// The address a client of this family would dial inside the cluster; any of the family where the service has none.
fn address(model: &Model, service: &Service, v4: bool) -> IpAddr {
    let own = service.vips.iter().filter(|vip| vip.network == model.node.network).map(|vip| vip.ip);
    let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    own.filter(|ip| ip.is_ipv4() == v4).min().unwrap_or(any)
}

fn is_here(model: &Model, workload: &Workload) -> bool {
    workload.node == model.node.node && workload.cluster == model.node.cluster
}

/// Whether connections to a node port of a service have somewhere to go in the mesh: an endpoint that ends tunnels, or one in
/// another network. A `gateway` needs only to be there.
///
/// # Errors
/// Why they have not.
pub fn is_entered(model: &Model, key: &str, gateway: bool) -> Result<(), &'static str> {
    let on_demand = model.node.control_plane.as_ref().is_some_and(|plane| plane.on_demand);
    let Some(service) = model.service_by_key(key) else {
        // The control plane is asked about node ports that are there, and only then.
        return if on_demand { Ok(()) } else { Err("the mesh model does not know it") };
    };
    let enters =
        |workload: &Workload| gateway || workload.protocol == Protocol::Hbone || workload.network != model.node.network;
    if model.endpoints(service).iter().any(|endpoint| enters(&endpoint.workload)) {
        Ok(())
    } else {
        Err("none of its endpoints is in the mesh")
    }
}

/// How many ready endpoints of a service this node has.
#[must_use]
pub fn local_endpoints(model: &Model, key: &str) -> usize {
    let Some(service) = model.service_by_key(key) else {
        return 0;
    };
    let endpoints = model.endpoints(service).iter();
    endpoints.filter(|endpoint| endpoint.workload.healthy && is_here(model, &endpoint.workload)).count()
}

/// The client behind a tunnel of `peer`, as policy and the application see it: the other end of the tunnel, or the one `told`
/// where `peer` is believed about clients outside the mesh. The port is 0 for the other end: it is the tunnel's.
#[must_use]
pub fn client(model: &Model, peer: &SpiffeId, told: Option<SocketAddr>, from: SocketAddr) -> SocketAddr {
    let stranger = |client: IpAddr| {
        model.node.trusted_entries.believed(peer, client)
            && model.workload_by_ip(&model.node.network, client).is_none_or(|known| known.host_network)
    };
    let told = told.map(|client| SocketAddr::new(client.ip().to_canonical(), client.port()));
    told.filter(|client| stranger(client.ip())).unwrap_or(SocketAddr::new(from.ip(), 0))
}

/// Where the gateway of the own network is reached from a node that is not it.
pub fn entry_gateways(model: &Model) -> impl Iterator<Item = &GatewayAddress> {
    model.gateways(&model.node.network).iter().map(|gateway| &gateway.address)
}
