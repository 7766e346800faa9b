//! Routes into another network.

use std::net::SocketAddr;
use std::sync::Arc;

use super::waypoint::{Named, find};
use super::{DecideError, GatewayCandidate, NestedRoute};
use crate::identity::{ExpectedPeer, SpiffeId};
use crate::state::{Destination, GatewayAddress, GatewayRef, Model, Service, Workload};

/// The route to an endpoint in another network.
///
/// `waypoint` is the service of the waypoint that answers there instead of the target itself.
pub(super) fn route(
    model: &Model,
    endpoint: &Arc<Workload>,
    service: &Arc<Service>,
    port: u16,
    waypoint: Option<&Arc<Service>>,
) -> Result<NestedRoute, DecideError> {
    let network = &endpoint.network;
    let answering = waypoint.unwrap_or(service);
    // The endpoint's own identity is not among those expected: the record has no real service account.
    if answering.identities.is_empty() {
        return Err(DecideError::NoIdentity { service: answering.key.to_string(), network: network.to_string() });
    }
    let domains = model.node.trusted_domains(network);
    let gateways = candidates(model, endpoint, &domains);
    if gateways.is_empty() {
        let reason = match &endpoint.network_gateway {
            Some(gateway) => {
                format!("{} is described by no workload or service, and none is configured", gateway.destination)
            }
            None => "its record names none, and none is configured".to_owned(),
        };
        return Err(DecideError::NoGateway { network: network.to_string(), target: endpoint.uid.to_string(), reason });
    }
    Ok(NestedRoute {
        network: network.clone(),
        gateways,
        authority: format!("{}:{port}", service.hostname),
        expected: ExpectedPeer::with_domains(answering.identities.iter().cloned(), domains),
        workload: endpoint.clone(),
        service: Some(service.clone()),
        capacity: endpoint.capacity,
        pod: None,
    })
}

/// The gateway that the record names, then every other entry point of the network: istiod names only one.
fn candidates(model: &Model, endpoint: &Workload, domains: &[String]) -> Vec<GatewayCandidate> {
    let known = model.gateways(&endpoint.network);
    let mut found: Vec<(GatewayAddress, Vec<SpiffeId>)> =
        endpoint.network_gateway.as_ref().map(|gateway| named(model, gateway)).unwrap_or_default();
    for (address, identities) in &mut found {
        if let Some(entry) = known.iter().find(|entry| entry.address == *address) {
            identities.extend(entry.identities.iter().cloned());
        }
    }
    for entry in known {
        if !found.iter().any(|(address, _)| *address == entry.address) {
            found.push((entry.address.clone(), entry.identities.clone()));
        }
    }
    // The one the record names may be known by configuration only.
    if let Some(gateway) = &endpoint.network_gateway
        && let Some(position) = found.iter().position(|(address, _)| is_named(address, gateway))
    {
        let first = found.remove(position);
        found.insert(0, first);
    }
    found
        .into_iter()
        .filter(|(_, identities)| !identities.is_empty())
        .map(|(address, identities)| GatewayCandidate {
            address,
            expected: ExpectedPeer::with_domains(identities, domains.iter().cloned()),
        })
        .collect()
}

fn is_named(address: &GatewayAddress, gateway: &GatewayRef) -> bool {
    match (&gateway.destination, address) {
        (Destination::Address { ip, .. }, GatewayAddress::Ip(address)) => {
            *address == SocketAddr::new(*ip, gateway.port)
        }
        (Destination::Hostname { hostname, .. }, GatewayAddress::Host(name, port)) => {
            **hostname == **name && *port == gateway.port
        }
        _ => false,
    }
}

/// Addresses and identities of the gateway that a record names.
fn named(model: &Model, gateway: &GatewayRef) -> Vec<(GatewayAddress, Vec<SpiffeId>)> {
    match find(model, &gateway.destination) {
        None => Vec::new(),
        Some(Named::Workload(workload)) => {
            let identities = || vec![workload.identity.clone()];
            match &gateway.destination {
                Destination::Address { ip, .. } => {
                    let address = SocketAddr::new(*ip, gateway.port);
                    vec![(GatewayAddress::Ip(address), identities())]
                }
                Destination::Hostname { hostname, .. } if workload.ips.is_empty() => {
                    let address = GatewayAddress::Host(hostname.to_string(), gateway.port);
                    vec![(address, identities())]
                }
                Destination::Hostname { .. } => workload
                    .ips
                    .iter()
                    .map(|ip| SocketAddr::new(*ip, gateway.port))
                    .map(|address| (GatewayAddress::Ip(address), identities()))
                    .collect(),
            }
        }
        Some(Named::Service(service)) => of_service(model, service, gateway.port),
    }
}

/// Endpoints of a gateway that is named as a service; it answers with an identity of the service or of the endpoint.
fn of_service(model: &Model, service: &Service, port: u16) -> Vec<(GatewayAddress, Vec<SpiffeId>)> {
    let mut found = Vec::new();
    for endpoint in model.endpoints(service) {
        let mapped = [endpoint.ports.get(&port), service.ports.get(&port)];
        let target = mapped.into_iter().flatten().copied().find(|target| *target != 0).unwrap_or(port);
        let workload = &endpoint.workload;
        let mut identities = service.identities.clone();
        identities.push(workload.identity.clone());
        if workload.ips.is_empty() && !workload.hostname.is_empty() {
            let address = GatewayAddress::Host(workload.hostname.to_string(), target);
            found.push((address, identities.clone()));
        }
        for ip in &workload.ips {
            let address = GatewayAddress::Ip(SocketAddr::new(*ip, target));
            found.push((address, identities.clone()));
        }
    }
    found
}
