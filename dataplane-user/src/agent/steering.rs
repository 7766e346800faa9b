//! Node ports that the Kubernetes API tells of, as far as the mesh model has endpoints for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::decide;
use crate::kube::node_ports::Candidate;
use crate::state::{Model, ModelStore, NodePort, NodePortTarget};

/// Brings the model's node ports to what the API and the control plane say.
#[derive(Debug)]
pub(super) struct Steering {
    candidates: watch::Receiver<Option<Arc<[Candidate]>>>,
    /// The generation of the model that was looked at last.
    seen: Option<u64>,
    /// Ports left to the node whose services ask for more.
    left: BTreeSet<u16>,
}

impl Steering {
    pub(super) fn new(candidates: watch::Receiver<Option<Arc<[Candidate]>>>) -> Self {
        Self { candidates, seen: None, left: BTreeSet::new() }
    }

    /// Whether it is known what is wanted: until then, what an earlier daemon had taken stays taken.
    pub(super) fn is_complete(&self) -> bool {
        self.seen.is_some()
    }

    /// Takes over what has changed.
    pub(super) fn follow(&mut self, store: &ModelStore) {
        let news = self.candidates.has_changed().unwrap_or(false);
        // Taken before the model, so that what changes meanwhile is looked at the next time.
        let generation = store.generation();
        if !news && self.seen == Some(generation) {
            return;
        }
        let model = store.load();
        let Some(candidates) = self.candidates.borrow_and_update().clone().filter(|_| model.synced) else {
            return;
        };
        let (steered, left) = sort(&model, &candidates);
        for (port, why) in &left {
            if !self.left.contains(port) {
                warn!("node port {port} stays with the node's own service proxy: {why}");
            }
        }
        let left: BTreeSet<u16> = left.into_iter().map(|(port, _)| port).collect();
        for port in self.left.difference(&left).filter(|port| steered.iter().any(|open| open.port == **port)) {
            info!("node port {port} has endpoints in the mesh now");
        }
        self.left = left;
        store.set_node_ports(steered);
        self.seen = Some(generation);
    }
}

/// Ports with somewhere to go in the mesh; and those without whose services ask for it, with the reason.
fn sort(model: &Model, candidates: &[Candidate]) -> (Vec<NodePort>, Vec<(u16, String)>) {
    let (mut steered, mut left) = (Vec::new(), Vec::new());
    for candidate in candidates {
        let NodePortTarget::Service { key, .. } = &candidate.port.target else { continue };
        match decide::is_entered(model, key, candidate.gateway) {
            Ok(()) => steered.push(candidate.port.clone()),
            Err(why) if candidate.asked => left.push((candidate.port.port, format!("{key}: {why}"))),
            Err(_) => {}
        }
    }
    (steered, left)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use std::path::Path;

    use super::*;
    use crate::state::{IpFamilies, file};

    fn candidate(name: &str, port: u16, gateway: bool) -> Candidate {
        let target = NodePortTarget::Service { key: format!("ns/{name}.ns.svc").into(), port: 80 };
        let port = NodePort { port, target, local: false, health_check: None, families: IpFamilies::V4 };
        Candidate { port, gateway, asked: !gateway }
    }

    /// A service `web` whose two pods speak these protocols, one whose pod is in another network, one without endpoints, and a
    /// gateway.
    fn model(protocols: [&str; 2], more: &str) -> Model {
        let [first, second] = protocols;
        let text = format!(
            "workloads:\n\
            - {{uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1], node: n1, network: net1, protocol: {first}, services: {{ns/web.ns.svc: {{}}}}}}\n\
            - {{uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2], node: n2, network: net1, protocol: {second}, services: {{ns/web.ns.svc: {{}}}}}}\n\
            - {{uid: c, name: c, namespace: ns, workloadIps: [], node: n3, network: net2, protocol: TCP, services: {{ns/far.ns.svc: {{}}}}}}\n\
            - {{uid: d, name: d, namespace: ns, workloadIps: [10.0.0.4], node: n3, network: net1, protocol: TCP, services: {{ns/gw.ns.svc: {{}}}}}}\n\
            services:\n\
            - {{name: web, namespace: ns, hostname: web.ns.svc, vips: [], ports: {{80: 80}}}}\n\
            - {{name: far, namespace: ns, hostname: far.ns.svc, vips: [], ports: {{80: 80}}}}\n\
            - {{name: none, namespace: ns, hostname: none.ns.svc, vips: [], ports: {{80: 80}}}}\n\
            - {{name: gw, namespace: ns, hostname: gw.ns.svc, vips: [], ports: {{80: 80}}}}\n\
            causeway: {{node: n1, network: net1, identity: {{caDirectory: c}}, {more}\
            entry: {{identity: spiffe://cluster.local/ns/i/sa/e}}}}\n"
        );
        file::parse(&text, Path::new("m.yaml")).unwrap_or_else(|error| panic!("{error}"))
    }

    fn all() -> Vec<Candidate> {
        let mut all = vec![candidate("gw", 31508, true)];
        all.extend(
            [("web", 30080), ("far", 30081), ("none", 30082), ("gone", 30083)].map(|(n, p)| candidate(n, p, false)),
        );
        all
    }

    #[test]
    fn ports_are_steered_as_soon_as_the_mesh_has_an_endpoint_and_left_alone_otherwise() {
        for (protocols, web) in [(["TCP", "TCP"], false), (["TCP", "HBONE"], true), (["HBONE", "HBONE"], true)] {
            let (steered, left) = sort(&model(protocols, ""), &all());
            let steered: Vec<u16> = steered.iter().map(|port| port.port).collect();
            let left: Vec<u16> = left.iter().map(|(port, _)| *port).collect();
            if web {
                assert_eq!((steered, left), (vec![31508, 30080, 30081], vec![30082, 30083]), "{protocols:?}");
            } else {
                assert_eq!((steered, left), (vec![31508, 30081], vec![30080, 30082, 30083]), "{protocols:?}");
            }
        }
        let on_demand = model(["TCP", "TCP"], "controlPlane: {address: 'https://i:15012', onDemand: true}, ");
        let (steered, _) = sort(&on_demand, &all());
        assert!(steered.iter().any(|port| port.port == 30083), "what is unknown has to be asked for first");
    }

    #[test]
    fn nothing_is_taken_or_given_up_before_both_have_told_all() {
        let (send, receive) = watch::channel(None);
        let mut steering = Steering::new(receive);
        let store = ModelStore::new(model(["HBONE", "HBONE"], ""));
        let open = || store.load().node.node_ports.iter().map(|port| port.port).collect::<Vec<_>>();
        let plane = crate::state::SourceId::CONTROL_PLANE;
        store.wait_for(plane);
        steering.follow(&store);
        send.send_replace(Some(all().into()));
        steering.follow(&store);
        assert!(!steering.is_complete() && open().is_empty(), "the model is not synced");
        store.synced(plane);
        steering.follow(&store);
        assert!(steering.is_complete());
        assert_eq!(open(), [31508, 30080, 30081]);
        store.replace(model(["TCP", "TCP"], ""));
        steering.follow(&store);
        assert_eq!(open(), [31508, 30081], "the pods have left the mesh");
        send.send_replace(Some(Arc::default()));
        steering.follow(&store);
        assert_eq!(open(), [0u16; 0], "the services are gone");
    }
}
