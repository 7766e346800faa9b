//! What a workload could reach of other networks, for those who try it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::{Vantage, Wanted, eligible};
use super::{NestedRoute, NoLoad, nested, outbound};
use crate::state::{Model, Service, Workload};

/// A service whose address the control plane allotted.
#[derive(Debug)]
pub struct Allotted {
    /// Its host name.
    pub hostname: Arc<str>,
    /// The address.
    pub address: IpAddr,
    /// Why a connection to it goes nowhere, if that is so.
    pub routed: Result<(), String>,
}

/// A route into each other network that has an endpoint of a service `source` may call.
#[must_use]
pub fn abroad(model: &Model, source: &Workload) -> Vec<NestedRoute> {
    let vantage = Vantage::of(source);
    let mut routes: Vec<NestedRoute> = Vec::new();
    for service in callable(model, source) {
        let Some(port) = service.ports.keys().next().copied() else { continue };
        let new =
            |network: &Arc<str>| *network != source.network && routes.iter().all(|route| route.network != *network);
        // Most services of a large mesh add nothing, and are passed over without a list of their endpoints.
        if !model.endpoints(service).iter().any(|endpoint| new(&endpoint.workload.network)) {
            continue;
        }
        let wanted = Wanted { service, port, asked: None, other_networks: true, names: false, waypoint: false };
        let endpoints = eligible(model, &vantage, &wanted).unwrap_or_default();
        for endpoint in &endpoints {
            let network = &endpoint.workload.network;
            if *network != source.network && routes.iter().all(|route| route.network != *network) {
                routes.extend(nested::route(model, &endpoint.workload, service, port, None));
            }
        }
    }
    routes
}

/// The first `count` services that have an address of 240.0.0.0/4 in the network of `source`, which may call them.
#[must_use]
pub fn allotted(model: &Model, source: &Arc<Workload>, count: usize) -> Vec<Allotted> {
    let known = |service: &Arc<Service>| {
        let port = service.ports.keys().next().copied()?;
        let mut own = service.vips.iter().filter(|vip| vip.network == source.network).map(|vip| vip.ip);
        let address = own.find(|ip| matches!(ip, IpAddr::V4(v4) if v4.octets()[0] >= 240))?;
        Some((service.hostname.clone(), SocketAddr::new(address, port)))
    };
    let nameable = callable(model, source).into_iter().filter(|service| !service.hostname.starts_with('*'));
    let first = nameable.filter_map(known).take(count);
    let routed = |to| outbound(model, source, to, &[], &NoLoad, &mut || 0).map(drop).map_err(|error| error.to_string());
    first.map(|(hostname, to)| Allotted { hostname, address: to.ip(), routed: routed(to) }).collect()
}

/// What `source` may call, by key: whoever tries again meets the same ones.
fn callable<'m>(model: &'m Model, source: &Workload) -> Vec<&'m Arc<Service>> {
    let mut services: Vec<_> = model.services().filter(|service| service.visible_to(&source.namespace)).collect();
    services.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    services
}
