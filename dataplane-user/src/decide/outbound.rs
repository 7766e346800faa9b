//! Where a connection of an enrolled workload goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::balance::{Candidate, Vantage, Wanted, choose, eligible};
use super::waypoint::{self, Waypoint};
use super::{HBONE_PORT, LoadView, OWN_PORTS, nested};
use crate::identity::ExpectedPeer;
use crate::state::{GatewayAddress, GatewayRef, LoadBalancingMode, Model, Protocol, Service, Workload};

/// Where a connection goes.
#[derive(Debug, Clone)]
pub enum Outbound {
    /// To the original destination, unchanged: the mesh does not know it.
    Passthrough {
        /// The original destination.
        to: SocketAddr,
    },
    /// To a chosen endpoint in plain TCP.
    Plain {
        /// The endpoint's address and target port.
        to: SocketAddr,
        /// The endpoint.
        workload: Arc<Workload>,
        /// The service that was addressed.
        service: Option<Arc<Service>>,
    },
    /// To an endpoint that is known by its host name; [`NamedRoute::resolved`] goes on from there.
    Named(NamedRoute),
    /// Through a tunnel to a pod or waypoint of the own network.
    Hbone(HboneRoute),
    /// Through a gateway to another network, in a tunnel of its own.
    Nested(NestedRoute),
}

/// An endpoint of the own network without an address: its host name is resolved for each connection.
#[derive(Debug, Clone)]
pub struct NamedRoute {
    /// The endpoint.
    pub workload: Arc<Workload>,
    /// Its target port.
    pub port: u16,
    /// The family that the application dialled, and prefers.
    pub v4_first: bool,
    /// The service that was addressed.
    pub service: Arc<Service>,
    source: Arc<Workload>,
}

impl NamedRoute {
    /// Of the addresses that its name has the one to use: of the family dialled if there is one, else any that the service
    /// allows.
    #[must_use]
    pub fn choose(&self, found: &[IpAddr], rng: &mut impl FnMut() -> u64) -> Option<IpAddr> {
        let allowed = || found.iter().copied().filter(|ip| self.service.ip_families.accepts(*ip));
        let first: Vec<IpAddr> = allowed().filter(|ip| ip.is_ipv4() == self.v4_first).collect();
        let usable = if first.is_empty() { allowed().collect() } else { first };
        let index = rng().checked_rem(usable.len() as u64)?;
        usable.get(usize::try_from(index).ok()?).copied()
    }

    /// The route to one of its addresses.
    #[must_use]
    pub fn resolved(&self, ip: IpAddr) -> Outbound {
        direct(&self.source, self.workload.clone(), SocketAddr::new(ip, self.port), Some(self.service.clone()))
    }
}

/// A tunnel within the network.
#[derive(Debug, Clone)]
pub struct HboneRoute {
    /// Where the tunnel ends: a pod or waypoint, usually on port 15008.
    pub to: SocketAddr,
    /// Authority of the CONNECT request.
    pub authority: String,
    /// Who may answer.
    pub expected: ExpectedPeer,
    /// The pod or waypoint.
    pub workload: Arc<Workload>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// Whether the other end is a workload of this node.
    pub same_node: bool,
    /// Whether the tunnel ends at a waypoint.
    pub waypoint: bool,
}

/// One entry point of the other network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayCandidate {
    /// Where.
    pub address: GatewayAddress,
    /// Who may answer there.
    pub expected: ExpectedPeer,
}

/// A tunnel inside a tunnel, to another network.
#[derive(Debug, Clone)]
pub struct NestedRoute {
    /// The other network.
    pub network: Arc<str>,
    /// Entry points, the best first; at least one.
    pub gateways: Vec<GatewayCandidate>,
    /// Authority of both CONNECT requests: the service and its port.
    pub authority: String,
    /// Who may answer inside.
    pub expected: ExpectedPeer,
    /// The record that stands for the endpoints there.
    pub workload: Arc<Workload>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
    /// How many endpoints that record stands for.
    pub capacity: u32,
    /// The one pod that is meant, by its name, if not any of the service.
    pub pod: Option<Arc<str>>,
}

/// Why a connection cannot be routed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecideError {
    /// The application dialled one of our own listeners.
    #[error("{0} is a listener of ours; the connection would loop")]
    OwnListener(SocketAddr),
    /// A service without a usable endpoint.
    #[error("no healthy upstream for {service} port {port}: {reason}")]
    NoUpstream {
        /// `namespace/hostname`.
        service: String,
        /// The service port.
        port: u16,
        /// What was looked at.
        reason: String,
    },
    /// A waypoint is set and cannot be found; it is never bypassed.
    #[error("waypoint {waypoint} of {target} cannot be resolved: {reason}")]
    Waypoint {
        /// The waypoint as it is named.
        waypoint: String,
        /// Whose waypoint.
        target: String,
        /// What is missing.
        reason: String,
    },
    /// The other network has no entry point we know.
    #[error("no gateway to network {network} for {target}: {reason}")]
    NoGateway {
        /// The other network.
        network: String,
        /// The workload that was chosen.
        target: String,
        /// What is missing.
        reason: String,
    },
    /// A destination outside the mesh that may not be reached.
    #[error(
        "{to} is outside the mesh, and outbound: registry-only of {} does not list it; name it under outboundAllowed",
        if place.is_empty() { "this node".to_owned() } else { format!("the enrolment of {place}") }
    )]
    Egress {
        /// The destination.
        to: SocketAddr,
        /// The workload whose enrolment says so; empty if it is the node's setting.
        place: String,
    },
    /// An address kept for names of pods that stands for none.
    #[error("{0} is kept for pods of other networks and stands for none of them now; ask for the pod's name again")]
    Reserved(IpAddr),
    /// A pod that cannot be reached by its name.
    #[error("pod {pod} of {service}: {reason}")]
    Pod {
        /// Its name.
        pod: String,
        /// `namespace/hostname`.
        service: String,
        /// What is missing.
        reason: String,
    },
    /// Workloads of other networks are reached through services only.
    #[error("{0} is in another network and was not addressed through a service")]
    ForeignWithoutService(String),
    /// Nobody may answer inside the tunnel to the other network.
    #[error("{service} has endpoints in network {network} but names no identity for them; fill its subjectAltNames")]
    NoIdentity {
        /// The service.
        service: String,
        /// The other network.
        network: String,
    },
}

/// Decides where a connection of `source` to `destination` goes. `avoid` are endpoints already tried for it.
///
/// # Errors
/// If there is nowhere it may go; the application's connection is then reset.
pub fn outbound(
    model: &Model,
    source: &Arc<Workload>,
    destination: SocketAddr,
    avoid: &[Arc<str>],
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<Outbound, DecideError> {
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let ip = destination.ip();
    if ip.is_loopback() && OWN_PORTS.contains(&destination.port()) {
        return Err(DecideError::OwnListener(destination));
    }
    let mut step = Step { model, source, vantage: Vantage::of(source), destination, avoid, load, rng };
    let by_ip = model.workload_by_ip(&source.network, ip);
    let by_vip = model.service_by_vip(&source.network, ip, &source.namespace);

    // An address that names both a workload and a service is workload-addressed as far as waypoints are concerned.
    let addressed = by_vip.filter(|_| by_ip.is_none());
    if let Some(service) = addressed
        && let Some(waypoint) = waypoint::of_service(service, step.rng)
        && !waypoint::is(model, waypoint, source)
    {
        return step.through_waypoint(waypoint, Some(service), &service.key);
    }
    let (workload, to, service) = match (by_vip, by_ip) {
        (Some(service), _) if service.load_balancing.mode == LoadBalancingMode::Passthrough => {
            return Ok(Outbound::Passthrough { to: destination });
        }
        (Some(service), _) => {
            let chosen = step.endpoint(service)?;
            let Some(ip) = chosen.ip else {
                return elsewhere(model, source, service, chosen, destination);
            };
            let to = SocketAddr::new(ip, chosen.target_port);
            (chosen.workload, to, Some(service))
        }
        (None, Some(workload)) => (workload.clone(), destination, None),
        (None, None) => return outside(model, source, destination),
    };
    if workload.network != source.network {
        return Err(DecideError::ForeignWithoutService(workload.uid.to_string()));
    }
    if addressed.is_none()
        && let Some(waypoint) = &workload.waypoint
        && !waypoint::is(model, waypoint, source)
    {
        return step.through_waypoint(waypoint, None, &workload.uid);
    }
    Ok(direct(source, workload, to, service.cloned()))
}

/// To an endpoint without an address of its own here: one known by its host name, or in another network.
pub(super) fn elsewhere(
    model: &Model,
    source: &Arc<Workload>,
    service: &Arc<Service>,
    chosen: Candidate,
    destination: SocketAddr,
) -> Result<Outbound, DecideError> {
    if chosen.workload.network != source.network {
        return nested::route(model, &chosen.workload, service, destination.port(), None).map(Outbound::Nested);
    }
    Ok(Outbound::Named(NamedRoute {
        port: chosen.target_port,
        v4_first: destination.is_ipv4(),
        workload: chosen.workload,
        service: service.clone(),
        source: source.clone(),
    }))
}

/// To a destination that the mesh does not know.
fn outside(model: &Model, source: &Workload, to: SocketAddr) -> Result<Outbound, DecideError> {
    match model.node.egress(&source.uid) {
        (egress, _) if egress.permits(to) => Ok(Outbound::Passthrough { to }),
        (_, own) => Err(DecideError::Egress { to, place: if own { source.uid.to_string() } else { String::new() } }),
    }
}

/// What all steps of one decision share.
pub(super) struct Step<'a, L, R> {
    pub(super) model: &'a Model,
    pub(super) source: &'a Workload,
    pub(super) vantage: Vantage<'a>,
    pub(super) destination: SocketAddr,
    pub(super) avoid: &'a [Arc<str>],
    pub(super) load: &'a L,
    pub(super) rng: &'a mut R,
}

impl<L: LoadView, R: FnMut() -> u64> Step<'_, L, R> {
    fn endpoint(&mut self, service: &Arc<Service>) -> Result<Candidate, DecideError> {
        let wanted = Wanted {
            service,
            port: self.destination.port(),
            asked: Some(self.destination.ip()),
            other_networks: true,
            names: true,
            waypoint: false,
        };
        eligible(self.model, &self.vantage, &wanted)
            .and_then(|candidates| choose(candidates, &self.vantage, service, self.avoid, self.load, self.rng))
            .map_err(|reason| DecideError::NoUpstream {
                service: service.key.to_string(),
                port: self.destination.port(),
                reason,
            })
    }

    pub(super) fn through_waypoint(
        &mut self,
        waypoint: &GatewayRef,
        service: Option<&Arc<Service>>,
        target: &str,
    ) -> Result<Outbound, DecideError> {
        let unresolved = |reason: String| DecideError::Waypoint {
            waypoint: waypoint.destination.to_string(),
            target: target.to_owned(),
            reason,
        };
        let Waypoint { workload, service: own_service, address } =
            waypoint::pick(self.model, &self.vantage, waypoint, self.destination.ip(), self.avoid, self.load, self.rng)
                .map_err(unresolved)?;
        let Some(to) = address else {
            let service = service.ok_or_else(|| DecideError::ForeignWithoutService(target.to_owned()))?;
            let port = self.destination.port();
            // Inside, the waypoint answers, so it is the waypoint's service that says who.
            return nested::route(self.model, &workload, service, port, own_service.as_ref()).map(Outbound::Nested);
        };
        let identities = own_service.iter().flat_map(|s| s.identities.iter().cloned());
        Ok(Outbound::Hbone(HboneRoute {
            to,
            authority: self.destination.to_string(),
            expected: ExpectedPeer::new(identities.chain([workload.identity.clone()])),
            same_node: same_node(self.source, &workload),
            workload,
            service: service.cloned(),
            waypoint: true,
        }))
    }
}

pub(super) fn direct(
    source: &Workload,
    workload: Arc<Workload>,
    to: SocketAddr,
    service: Option<Arc<Service>>,
) -> Outbound {
    if workload.protocol == Protocol::Tcp {
        return Outbound::Plain { to, workload, service };
    }
    let identities = service.iter().flat_map(|s| s.identities.iter().cloned());
    Outbound::Hbone(HboneRoute {
        to: SocketAddr::new(to.ip(), HBONE_PORT),
        authority: to.to_string(),
        expected: ExpectedPeer::new(identities.chain([workload.identity.clone()])),
        same_node: same_node(source, &workload),
        workload,
        service,
        waypoint: false,
    })
}

fn same_node(source: &Workload, workload: &Workload) -> bool {
    !workload.node.is_empty() && workload.node == source.node && workload.cluster == source.cluster
}
