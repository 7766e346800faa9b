//! Resolution of waypoints.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::LoadView;
use super::balance::{Vantage, Wanted, choose, eligible, weighted_index};
use crate::state::{Destination, GatewayRef, Model, Service, Workload};

/// A waypoint that was picked.
pub(super) struct Waypoint {
    pub(super) workload: Arc<Workload>,
    /// Its service, unless it is named as a workload.
    pub(super) service: Option<Arc<Service>>,
    /// Where it listens; none when it is in another network.
    pub(super) address: Option<SocketAddr>,
}

/// The waypoint of service-addressed traffic: drawn by weight if there are weights, else the single one.
pub(super) fn of_service<'a>(service: &'a Service, rng: &mut impl FnMut() -> u64) -> Option<&'a GatewayRef> {
    let weights: Vec<u64> = service.weighted_waypoints.iter().map(|entry| entry.weight.into()).collect();
    match weighted_index(&weights, rng) {
        Some(index) => service.weighted_waypoints.get(index).map(|e| &e.waypoint),
        None => service.waypoint.as_ref(),
    }
}

/// What a reference names.
pub(super) enum Named<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

/// Looks a reference up: by address a service before a workload, by name likewise.
pub(super) fn find<'a>(model: &'a Model, destination: &Destination) -> Option<Named<'a>> {
    match destination {
        Destination::Address { network, ip } => match model.service_with_vip(network, *ip) {
            Some(service) => Some(Named::Service(service)),
            None => model.workload_by_ip(network, *ip).map(Named::Workload),
        },
        Destination::Hostname { namespace, hostname } => match model.service(namespace, hostname) {
            Some(service) => Some(Named::Service(service)),
            None => model.workload_by_hostname(hostname).map(Named::Workload),
        },
    }
}

/// Picks one instance of a waypoint.
pub(super) fn pick(
    model: &Model,
    vantage: &Vantage<'_>,
    waypoint: &GatewayRef,
    asked: IpAddr,
    avoid: &[Arc<str>],
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<Waypoint, String> {
    match find(model, &waypoint.destination) {
        None => Err("no workload or service of that name is known".into()),
        Some(Named::Workload(workload)) => {
            let ip = workload.ips.iter().find(|ip| ip.is_ipv4() == asked.is_ipv4()).or(workload.ips.first());
            if &*workload.network == vantage.network && ip.is_none() {
                return Err(format!("workload {} has no address", workload.uid));
            }
            Ok(Waypoint {
                workload: workload.clone(),
                service: None,
                address: ip
                    .filter(|_| &*workload.network == vantage.network)
                    .map(|ip| SocketAddr::new(*ip, waypoint.port)),
            })
        }
        Some(Named::Service(service)) => {
            let wanted = Wanted {
                service,
                port: waypoint.port,
                asked: Some(asked),
                other_networks: true,
                names: false,
                waypoint: true,
            };
            let candidates = eligible(model, vantage, &wanted)?;
            let chosen = choose(candidates, vantage, service, avoid, load, rng)?;
            Ok(Waypoint {
                address: chosen.ip.map(|ip| SocketAddr::new(ip, chosen.target_port)),
                workload: chosen.workload,
                service: Some(service.clone()),
            })
        }
    }
}

/// Whether a workload is (an instance of) the waypoint.
pub(super) fn is(model: &Model, waypoint: &GatewayRef, workload: &Workload) -> bool {
    match find(model, &waypoint.destination) {
        None => false,
        Some(Named::Workload(named)) => same_workload(named, workload),
        Some(Named::Service(service)) => {
            model.endpoints(service).iter().any(|endpoint| same_workload(&endpoint.workload, workload))
        }
    }
}

/// Identity and an address must agree: an identity alone may be shared, an address alone may be spoofed.
fn same_workload(a: &Workload, b: &Workload) -> bool {
    a.identity == b.identity && (a.uid == b.uid || a.ips.iter().any(|ip| b.ips.contains(ip)))
}
