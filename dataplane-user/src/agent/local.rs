//! Connections between two pods of this node: bytes go from one pod's socket to the other's, both inside the pods' own
//! namespaces, so nothing is on a wire and nothing needs encryption. Identities and policy are those of HBONE.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use super::{
    connect::{Link, Neighbour, Source},
    deliver::{Client, deliver},
    policy::authorise,
    worker::Worker,
};
use crate::{
    decide::{self, HboneRoute},
    hbone::{Authority, ConnError, Leg},
    observe::counters::Counters,
};

/// Connects to a pod of this node. `None` if the destination is not enrolled here; then HBONE reaches it.
pub async fn connect(worker: &Rc<Worker>, source: &Source, route: &HboneRoute) -> Option<Result<Link, ConnError>> {
    if !route.same_node || route.waypoint {
        return None;
    }
    let pod = worker.pod(&route.workload.uid)?;
    let peer = &source.workload.identity;
    let admitted = async {
        let refused = |status: u16, leg: Leg, reason: String| ConnError {
            status: Some(status),
            ..ConnError::fatal(leg, &route.authority, reason)
        };
        let authority =
            Authority::parse(&route.authority).map_err(|error| refused(400, Leg::Resolve, error.to_string()))?;
        let model = worker.model();
        let own = model.workload(&pod.uid).cloned();
        let own = own.ok_or_else(|| refused(503, Leg::Resolve, format!("{} is not in the mesh model", pod.uid)))?;
        let target = decide::inbound(&model, &own, route.to, &authority, Some(peer))
            .map_err(|refusal| refused(refusal.status, Leg::Resolve, refusal.reason))?;
        let to = SocketAddr::new(target.address, target.port);
        let asking = Instant::now();
        let allowed = authorise(worker, &pod, (model, own), Some(peer), source.client, to).await;
        source.walk.done(Leg::Accept, asking);
        allowed.map_err(|reason| refused(401, Leg::Accept, reason))?;
        // The port is that of the client's own connection: only at a node port may it be needed, for a PROXY header.
        let port = if source.pod.is_none() { source.client.port() } else { 0 };
        let client = Client {
            address: SocketAddr::new(source.client.ip(), port),
            identity: Some(peer),
            authority: Some(&authority),
        };
        let delivering = Instant::now();
        let socket = deliver(worker, &pod, &client, &target).await;
        source.walk.done(Leg::Backend, delivering);
        let socket = socket?;
        Counters::add(&worker.shared.counters.local);
        let identity = route.workload.identity.clone();
        Ok(Link::Local(Neighbour { socket, pod: pod.clone(), to, identity }))
    };
    Some(admitted.await)
}
