//! Choice among the endpoints of a service.
//!
//! First who may be used at all, then who fits the service's preferences best, then a draw by capacity. Among endpoints of
//! equal capacity the less busy of two wins, which leaves the split between unequal ones as the weights say.

use std::net::IpAddr;
use std::sync::Arc;

use super::LoadView;
use crate::state::{Endpoint, LoadBalancingMode, Locality, Model, NodeConfig, Scope, Service, Workload};

/// From where endpoints are looked at.
pub(super) struct Vantage<'a> {
    pub(super) network: &'a str,
    pub(super) cluster: &'a str,
    pub(super) node: &'a str,
    pub(super) locality: Locality,
}

impl<'a> Vantage<'a> {
    pub(super) fn of(workload: &'a Workload) -> Self {
        Self {
            network: &workload.network,
            cluster: &workload.cluster,
            node: &workload.node,
            locality: workload.locality.clone(),
        }
    }

    /// This node. Its locality is that of its workloads.
    pub(super) fn here(model: &'a Model) -> Self {
        let node: &NodeConfig = &model.node;
        let locality = node
            .enrol
            .iter()
            .find_map(|enrolment| model.workload(&enrolment.workload))
            .map(|workload| workload.locality.clone())
            .unwrap_or_default();
        Self { network: &node.network, cluster: &node.cluster, node: &node.node, locality }
    }

    fn matches(&self, scope: Scope, workload: &Workload) -> bool {
        match scope {
            Scope::Region => self.locality.region == workload.locality.region,
            Scope::Zone => self.locality.zone == workload.locality.zone,
            Scope::Subzone => self.locality.subzone == workload.locality.subzone,
            Scope::Node => self.node == &*workload.node,
            Scope::Cluster => self.cluster == &*workload.cluster,
            Scope::Network => self.network == &*workload.network,
        }
    }

    /// Preferences matched from the first on. A first preference for the network does not stop the count when it is
    /// missed, and outweighs all others together when it is met.
    fn rank(&self, preferences: &[Scope], workload: &Workload) -> usize {
        let mut rank = 0;
        for (index, scope) in preferences.iter().enumerate() {
            let network_first = index == 0 && *scope == Scope::Network;
            match (self.matches(*scope, workload), network_first) {
                (true, true) => rank += preferences.len(),
                (true, false) => rank += 1,
                (false, true) => {}
                (false, false) => break,
            }
        }
        rank
    }
}

/// An endpoint that may be used.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) workload: Arc<Workload>,
    /// Address to dial; none for an endpoint that only a gateway reaches, and for one that is known by its host name.
    pub(super) ip: Option<IpAddr>,
    /// Port behind the endpoint; 0 for an endpoint that only a gateway reaches.
    pub(super) target_port: u16,
}

/// What is asked of endpoints.
pub(super) struct Wanted<'a> {
    pub(super) service: &'a Service,
    /// Service port.
    pub(super) port: u16,
    /// The address that was dialled: its family is preferred.
    pub(super) asked: Option<IpAddr>,
    /// Whether endpoints of other networks may be chosen.
    pub(super) other_networks: bool,
    /// Whether endpoints may be chosen that have no address but a host name.
    pub(super) names: bool,
    /// Whether the service is a waypoint's.
    pub(super) waypoint: bool,
}

/// Endpoints that may be used for the port, not considering preferences. The text says why there is none.
pub(super) fn eligible(model: &Model, vantage: &Vantage<'_>, wanted: &Wanted<'_>) -> Result<Vec<Candidate>, String> {
    let service = wanted.service;
    let endpoints = model.endpoints(service);
    if endpoints.is_empty() {
        return Err("the service has no healthy endpoint".into());
    }
    let target = service.ports.get(&wanted.port).copied();
    if target.is_none() && !wanted.waypoint {
        return Err(format!("the service has no port {}", wanted.port));
    }
    let candidates: Vec<Candidate> =
        endpoints.iter().filter_map(|endpoint| candidate(endpoint, target.unwrap_or(0), vantage, wanted)).collect();
    if candidates.is_empty() {
        return Err(format!(
            "none of {} endpoints has an address or host name in network {:?} and a target port for {}, or a gateway",
            endpoints.len(),
            vantage.network,
            wanted.port
        ));
    }
    Ok(candidates)
}

fn candidate(
    endpoint: &Endpoint,
    service_target: u16,
    vantage: &Vantage<'_>,
    wanted: &Wanted<'_>,
) -> Option<Candidate> {
    let workload = &endpoint.workload;
    if &*workload.network != vantage.network {
        let reachable = wanted.other_networks && workload.network_gateway.is_some();
        return reachable.then(|| Candidate { workload: workload.clone(), ip: None, target_port: 0 });
    }
    let own = endpoint.ports.get(&wanted.port).copied().unwrap_or(0);
    let tunnelled = workload.application_tunnel.is_some_and(|tunnel| wanted.waypoint || tunnel.port.is_some());
    let target_port = [own, service_target].into_iter().find(|port| *port != 0).or(tunnelled.then_some(wanted.port))?;
    let ip = address(workload, wanted);
    let named = wanted.names && workload.ips.is_empty() && !workload.hostname.is_empty();
    (ip.is_some() || named).then(|| Candidate { ip, workload: workload.clone(), target_port })
}

/// The address asked for if it is the workload's, else one of the family asked for, else any the service allows.
fn address(workload: &Workload, wanted: &Wanted<'_>) -> Option<IpAddr> {
    if let Some(asked) = wanted.asked
        && workload.ips.contains(&asked)
    {
        return Some(asked);
    }
    let families = wanted.service.ip_families;
    let allowed = || workload.ips.iter().copied().filter(|ip| families.accepts(*ip));
    allowed().find(|ip| wanted.asked.is_none_or(|asked| asked.is_ipv4() == ip.is_ipv4())).or_else(|| allowed().next())
}

/// Draws one endpoint.
///
/// `avoid` are endpoints already tried for this connection. Ejected ones are left out unless nothing else is there: a
/// service must not become unreachable because all of it looked bad for a moment.
pub(super) fn choose(
    candidates: Vec<Candidate>,
    vantage: &Vantage<'_>,
    service: &Service,
    avoid: &[Arc<str>],
    load: &impl LoadView,
    rng: &mut impl FnMut() -> u64,
) -> Result<Candidate, String> {
    let known = candidates.len();
    let mut usable: Vec<Candidate> =
        candidates.into_iter().filter(|c| c.workload.capacity > 0 && !avoid.contains(&c.workload.uid)).collect();
    if usable.is_empty() {
        return Err(format!("all {known} usable endpoints were tried or have no capacity"));
    }
    if usable.iter().any(|c| !load.ejected(&c.workload.uid)) {
        usable.retain(|c| !load.ejected(&c.workload.uid));
    }
    let preferences = service.load_balancing.preferences.as_slice();
    match service.load_balancing.mode {
        LoadBalancingMode::Standard | LoadBalancingMode::Passthrough => {}
        LoadBalancingMode::Strict => {
            let all = |c: &Candidate| preferences.iter().all(|s| vantage.matches(*s, &c.workload));
            usable.retain(all);
            if usable.is_empty() {
                return Err(format!("no endpoint matches all of {preferences:?}"));
            }
        }
        LoadBalancingMode::Failover => {
            let rank = |c: &Candidate| vantage.rank(preferences, &c.workload);
            let best = usable.iter().map(rank).max().unwrap_or(0);
            usable.retain(|c| rank(c) == best);
        }
    }
    draw(usable, load, rng).ok_or_else(|| "no endpoint has any capacity".into())
}

/// One by weight, then another of its capacity: the less busy of both. So classes of equal capacity share as their weights
/// say, whatever their load, and within a class load evens out.
fn draw(usable: Vec<Candidate>, load: &impl LoadView, rng: &mut impl FnMut() -> u64) -> Option<Candidate> {
    let weights: Vec<u64> = usable.iter().map(|c| c.workload.capacity.into()).collect();
    let first = weighted_index(&weights, rng)?;
    let capacity = usable.get(first)?.workload.capacity;
    let equals: Vec<usize> = usable
        .iter()
        .enumerate()
        .filter(|(index, c)| *index != first && c.workload.capacity == capacity)
        .map(|(index, _)| index)
        .collect();
    let open = |index: usize| usable.get(index).map(|c| load.open(&c.workload.uid));
    let chosen = match uniform_index(equals.len(), rng).and_then(|i| equals.get(i)) {
        Some(second) if open(*second) < open(first) => *second,
        _ => first,
    };
    usable.into_iter().nth(chosen)
}

/// An index drawn by weight; nothing if all weights are 0.
pub(super) fn weighted_index(weights: &[u64], rng: &mut impl FnMut() -> u64) -> Option<usize> {
    let total: u64 = weights.iter().sum();
    if total == 0 {
        return None;
    }
    let mut left = rng() % total;
    for (index, weight) in weights.iter().enumerate() {
        if left < *weight {
            return Some(index);
        }
        left -= weight;
    }
    None
}

fn uniform_index(length: usize, rng: &mut impl FnMut() -> u64) -> Option<usize> {
    let length = u64::try_from(length).ok().filter(|length| *length > 0)?;
    usize::try_from(rng() % length).ok()
}
