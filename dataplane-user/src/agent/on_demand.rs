//! Asking control planes for what a connection needs, where they tell nothing unasked.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::worker::Shared;
use crate::{
    decide::{DecideError, Outbound},
    hbone::{ConnError, Leg},
    istio::xds_client::Handle,
    state::{Model, NodePortTarget, Workload},
};

/// How long a connection or a DNS question is held until the control planes have answered. All questions of one connection
/// share it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most things one connection may have to ask for: its destination, a waypoint, a gateway, and what stands behind them.
const MOST: usize = 6;

/// What one connection has asked for.
pub struct Search<'a> {
    planes: &'a [Handle],
    asked: Vec<String>,
    deadline: Option<Instant>,
}

impl<'a> Search<'a> {
    /// Nothing asked yet. Nothing ever will be where all is told unasked.
    pub fn new(shared: &'a Shared) -> Self {
        Self { planes: &shared.control_planes, asked: Vec::new(), deadline: None }
    }

    /// Whether anything has to be asked for.
    pub fn is_needed(&self) -> bool {
        self.planes.iter().any(Handle::on_demand)
    }

    /// What a decision lacks, if asking may help.
    pub fn missing(
        &self,
        model: &Model,
        source: &Workload,
        to: SocketAddr,
        decided: &Result<Outbound, DecideError>,
    ) -> Option<String> {
        if !self.is_needed() || self.asked.len() >= MOST {
            return None;
        }
        lacks(model, source, to, decided).filter(|name| !self.asked.contains(name))
    }

    /// Asks for names and waits for the answers. Afterwards the model holds them, or they do not exist.
    ///
    /// # Errors
    /// No answer in time: nobody knows what the connection would bypass.
    pub async fn ask(&mut self, names: Vec<String>) -> Result<(), ConnError> {
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
        let silent = |name: &str| {
            let reason = format!(
                "the control plane has not said within {} ms whether {name} is in the mesh; see control_planes in \
                 \"causeway status\"",
                PATIENCE.as_millis()
            );
            ConnError::fatal(Leg::Resolve, name, reason)
        };
        // A peer that is away must not stop what its own cluster would not stop either.
        let planes = self.planes.iter().enumerate().filter(|(index, plane)| *index == 0 || plane.connected());
        let planes: Vec<&Handle> = planes.map(|(_, plane)| plane).filter(|plane| plane.on_demand()).collect();
        let mut answers = Vec::with_capacity(names.len() * planes.len());
        for name in &names {
            answers.extend(planes.iter().map(|plane| (name, plane.want(name.clone()))));
        }
        for (name, answer) in answers {
            match timeout_at(deadline, answer).await {
                Ok(Ok(())) => {}
                _ => return Err(silent(name)),
            }
        }
        self.asked.extend(names);
        Ok(())
    }
}

/// The name of what a decision would have needed, as control planes know it.
fn lacks(model: &Model, source: &Workload, to: SocketAddr, decided: &Result<Outbound, DecideError>) -> Option<String> {
    let ip = to.ip().to_canonical();
    match decided {
        Ok(Outbound::Passthrough { .. }) | Err(DecideError::Egress { .. }) if !ip.is_loopback() => {
            let known = model.workload_by_ip(&source.network, ip).is_some()
                || model.service_by_vip(&source.network, ip, &source.namespace).is_some();
            (!known).then(|| format!("{}/{ip}", source.network))
        }
        Err(DecideError::Waypoint { waypoint, .. }) => Some(waypoint.clone()),
        Err(DecideError::NoGateway { target, .. }) => {
            let gateway = model.workload(target)?.network_gateway.as_ref()?;
            Some(gateway.destination.to_string())
        }
        _ => None,
    }
}

/// Names that a node needs whoever connects: services of its pods, which peers name, services it lets others reach, and those
/// at its node ports.
pub fn standing(model: &Model) -> BTreeSet<Arc<str>> {
    let pods = model.node.enrol.iter().filter_map(|enrolment| model.workload(&enrolment.workload));
    let own = pods.flat_map(|workload| workload.services.keys());
    let exported = model.node.gateway.is_some().then(|| model.node.exports.keys());
    let at_ports = model.node.node_ports.iter().filter_map(|port| match &port.target {
        NodePortTarget::Service { key, .. } => Some(key),
        NodePortTarget::Gateway => None,
    });
    let wanted = own.chain(exported.into_iter().flatten()).chain(at_ports);
    wanted.filter(|key| model.service_by_key(key).is_none()).cloned().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::path::Path;

    use super::*;
    use crate::{
        decide::{self, NoLoad},
        state::file,
    };

    const MESH: &str = r#"
workloads:
- {uid: client, namespace: ns, workloadIps: [10.0.0.1], protocol: HBONE, node: n1, network: net1, services: {ns/own.ns.svc: {}}}
- {uid: web, namespace: ns, workloadIps: [10.0.0.2], protocol: HBONE, network: net1}
- uid: net2/SplitHorizonWorkload/x
  namespace: ns
  workloadIps: []
  protocol: HBONE
  network: net2
  networkGateway: {destination: gw/eastwest.gw.svc}
  services: {ns/far.ns.svc: {}}
services:
- {name: front, namespace: ns, hostname: front.ns.svc, vips: [net1/10.96.0.1], ports: {80: 80}, waypoint: {destination: ns/waypoint.ns.svc}}
- {name: far, namespace: ns, hostname: far.ns.svc, vips: [net1/10.96.0.2], ports: {80: 80}, subjectAltNames: ["spiffe://td/ns/ns/sa/x"]}
- {name: pass, namespace: ns, hostname: pass.ns.svc, vips: [net1/10.96.0.3], ports: {80: 80}, loadBalancer: {mode: Passthrough}}
- {name: empty, namespace: ns, hostname: empty.ns.svc, vips: [net1/10.96.0.4], ports: {80: 80}}
causeway:
  node: n1
  network: net1
  identity: {caDirectory: x}
  controlPlane: {address: "https://x", onDemand: true}
  enrol: [{workload: client, netns: a}]
  gateway: {listen: ["1.2.3.4:15008"], identity: "spiffe://cluster.local/ns/gw/sa/gw"}
  exports: [ns/far.ns.svc, ns/other.ns.svc]
"#;

    fn model() -> Model {
        file::parse(MESH, Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn what_a_decision_lacks_is_named_as_control_planes_know_it() {
        let model = model();
        let client = model.workload("client").unwrap();
        let rows = [
            ("203.0.113.1:80", Some("net1/203.0.113.1"), "an unknown address"),
            ("[::ffff:203.0.113.1]:80", Some("net1/203.0.113.1"), "mapped"),
            ("127.0.0.1:80", None, "loopback is nobody else's"),
            ("10.0.0.2:80", None, "a known workload"),
            ("10.96.0.1:80", Some("ns/waypoint.ns.svc"), "an unknown waypoint"),
            ("10.96.0.2:80", Some("gw/eastwest.gw.svc"), "an unknown gateway"),
            ("10.96.0.3:80", None, "a known service that is passed through"),
            ("10.96.0.4:80", None, "a service without endpoints brings its endpoints"),
        ];
        for (to, expected, why) in rows {
            let to: SocketAddr = to.parse().unwrap();
            let decided = decide::outbound(&model, client, to, &[], &NoLoad, &mut || 1);
            assert_eq!(lacks(&model, client, to, &decided).as_deref(), expected, "{why}: {decided:?}");
        }
    }

    #[test]
    fn services_of_own_pods_and_exported_ones_are_always_needed() {
        let wanted = standing(&model());
        assert_eq!(wanted.iter().map(|key| &**key).collect::<Vec<_>>(), ["ns/other.ns.svc", "ns/own.ns.svc"]);
    }
}
