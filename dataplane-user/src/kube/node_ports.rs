//! Which node ports of services go to the engine: a pure function of the services as the API tells of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Service};

use crate::state::{IpFamilies, NodePort, NodePortTarget};

/// Label of a service: whether its node ports go to the engine.
pub const LABEL: &str = "causeway.dev/node-port";
/// They do, if its endpoints are in the mesh.
const STEER: &str = "steer";
/// They do not.
const LEAVE: &str = "leave";
/// Label of an east-west gateway's service: the network it belongs to.
const NETWORK: &str = "topology.istio.io/network";
/// The port by which other networks reach such a gateway.
const HBONE_PORT: u16 = 15008;

/// Whose node ports go to the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Selection {
    /// Nobody's; services are not followed.
    #[default]
    None,
    /// The east-west gateway's, and those of services labelled causeway.dev/node-port=steer.
    Gateway,
    /// Those of services with that label alone.
    Labelled,
    /// Those of all services with endpoints in the mesh, except where the label says "leave".
    All,
}

/// A node port that somebody wants steered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The port, and what it stands for.
    pub port: NodePort,
    /// It is the gateway's, whose pods end tunnels themselves.
    pub gateway: bool,
    /// The service's own label asks for it.
    pub asked: bool,
}

/// What matters of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Value of [`LABEL`].
    label: Option<String>,
    gateway: bool,
    /// TCP ports of the service with their ports of the node.
    ports: Vec<(u16, u16)>,
    local: bool,
    health_check: Option<u16>,
    families: IpFamilies,
    /// Connections of a client belong to one endpoint (`sessionAffinity`).
    sticky: bool,
}

impl Facts {
    /// `None` for a service of no interest: it has no port of the node, and nothing on it asks for one.
    pub(super) fn of(service: &Service) -> Option<Self> {
        let metadata = &service.metadata;
        let label = |name: &str| metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned();
        let spec = service.spec.as_ref()?;
        let exposed = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
        let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
        let listed = || spec.ports.iter().flatten();
        let tcp = listed().filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
        let ports = tcp.filter_map(|port| number(port.port).zip(port.node_port.and_then(number)));
        let ports: Vec<(u16, u16)> = if exposed { ports.collect() } else { Vec::new() };
        let label_of_ours = label(LABEL);
        if ports.is_empty() && label_of_ours.is_none() {
            return None;
        }
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        Some(Self {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            label: label_of_ours,
            gateway: label(NETWORK).is_some() && listed().any(|port| number(port.port) == Some(HBONE_PORT)),
            ports,
            local,
            health_check: spec.health_check_node_port.and_then(number).filter(|_| local),
            families: families(spec.ip_families.as_deref().unwrap_or_default()),
            sticky: spec.session_affinity.as_deref() == Some("ClientIP"),
        })
    }

    /// How an event names it.
    pub(super) fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }

    /// Whether somebody wants its node ports steered, and whether that is its own label.
    fn wanted(&self, selection: Selection) -> Result<Option<bool>, String> {
        match self.label.as_deref() {
            _ if selection == Selection::None => Ok(None),
            Some(STEER) => Ok(Some(true)),
            Some(LEAVE) => Ok(None),
            Some(other) => {
                Err(format!("its label {LABEL} is {other:?}, which means nothing; write \"{STEER}\" or \"{LEAVE}\""))
            }
            None => Ok(match selection {
                Selection::None | Selection::Labelled => None,
                Selection::Gateway => self.gateway.then_some(false),
                Selection::All => Some(false),
            }),
        }
    }

    /// Its candidates; `domain` is that of the cluster's service names.
    ///
    /// # Errors
    /// Why it has none although somebody wants it, and what to do.
    pub(super) fn candidates(&self, selection: Selection, domain: &str) -> Result<Vec<Candidate>, String> {
        let Some(asked) = self.wanted(selection)? else {
            return Ok(Vec::new());
        };
        if self.ports.is_empty() {
            return Err(format!(
                "its label {LABEL} asks for something that it does not have, a TCP port of the node; make its type NodePort or LoadBalancer, or remove the label"
            ));
        }
        if self.sticky {
            return Err(format!(
                "sessionAffinity: ClientIP is not kept at node ports that Causeway steers, so they stay with kube-proxy; set sessionAffinity: None, or {LABEL}: {LEAVE} to agree"
            ));
        }
        let key: Arc<str> = format!("{0}/{1}.{0}.svc.{domain}", self.namespace, self.name).into();
        let candidate = |(port, node_port): &(u16, u16)| Candidate {
            port: NodePort {
                port: *node_port,
                target: NodePortTarget::Service { key: key.clone(), port: *port },
                local: self.local,
                health_check: self.health_check,
                families: self.families,
            },
            gateway: self.gateway,
            asked,
        };
        Ok(self.ports.iter().map(candidate).collect())
    }
}

fn families(names: &[String]) -> IpFamilies {
    let has = |name: &str| names.iter().any(|family| family == name);
    match (has("IPv4"), has("IPv6")) {
        (true, false) => IpFamilies::V4,
        (false, true) => IpFamilies::V6,
        _ => IpFamilies::Dual,
    }
}

/// What all services come to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome<'a> {
    /// In the order of the ports.
    pub(super) candidates: Vec<Candidate>,
    /// Services that cannot have what somebody wants for them, and why.
    pub(super) refused: Vec<(&'a Facts, String)>,
}

/// Sorts services into what is steered and what cannot be.
pub(super) fn sort<'a>(services: impl Iterator<Item = &'a Facts>, selection: Selection, domain: &str) -> Outcome<'a> {
    let mut refused = Vec::new();
    // The API server gives a port away once for each protocol; should it say otherwise for a moment, the first one counts.
    let mut candidates: BTreeMap<u16, Candidate> = BTreeMap::new();
    for facts in services {
        match facts.candidates(selection, domain) {
            Ok(found) => found.into_iter().for_each(|candidate| {
                candidates.entry(candidate.port.port).or_insert(candidate);
            }),
            Err(why) => refused.push((facts, why)),
        }
    }
    Outcome { candidates: candidates.into_values().collect(), refused }
}

#[cfg(test)]
mod tests;
