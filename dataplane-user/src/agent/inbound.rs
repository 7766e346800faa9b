//! HBONE that arrives for enrolled pods: TLS, CONNECT, policy, delivery with the client's address.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;

use super::{
    deliver::{Client, deliver},
    headers,
    policy::{authorise, withdrawn},
    worker::{Pod, Worker, canonical},
};
use crate::{
    decide::{self, InboundTarget},
    hbone::{Authority, Baggage, ConnError, Forwarded, Leg, Span, TraceParent, Walk, header, peer_version},
    identity::{PeerRole, SpiffeId},
    observe::{
        access_log::{Direction, Party, Record},
        counters::Counters,
    },
    state::{Model, Workload},
    tunnel::{
        copy,
        ends::Role,
        server::{self, Incoming},
    },
};

/// Serves one accepted tunnel until it ends.
pub async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, socket: TcpStream, from: SocketAddr) {
    let started = Instant::now();
    if let Err(error) = tunnel(&worker, &pod, socket, from).await {
        let mut record = Record::new(Direction::Inbound);
        record.source.address = Some(from);
        record.destination.workload = worker.model().workload(&pod.uid).cloned();
        worker.shared.log.finish(record, Some(error), started.elapsed());
    }
}

async fn tunnel(worker: &Rc<Worker>, pod: &Rc<Pod>, socket: TcpStream, from: SocketAddr) -> Result<(), ConnError> {
    let refused = |reason: String| ConnError::fatal(Leg::Accept, from, reason);
    let local = socket.local_addr().map(canonical).map_err(|error| refused(error.to_string()))?;
    let Some((_, workload)) = worker.workload(pod).await else {
        return Err(refused(format!("the workload {} is not in the mesh model", pod.uid)));
    };
    let credential = worker
        .shared
        .credentials
        .credential(&workload.identity)
        .await
        .map_err(|error| refused(format!("no certificate for {}: {error}", workload.identity)))?;
    let session =
        UnbufferedServerConnection::new(credential.server_config()).map_err(|error| refused(error.to_string()))?;
    let (worker, pod) = (worker.clone(), pod.clone());
    let (standing, drain) = (credential.standing(PeerRole::Client), worker.drain.clone());
    server::serve(socket, session, standing, drain, move |incoming, peer| {
        stream(worker.clone(), pod.clone(), incoming, peer, from, local)
    })
    .await
    .map_err(|refusal| refused(refusal.reason).because(refusal.cause))
}

/// What a CONNECT is about, once it was understood and allowed.
struct Admitted {
    workload: Arc<Workload>,
    authority: Authority,
    target: InboundTarget,
    /// Who is behind it, as policy and the application see it.
    client: SocketAddr,
}

async fn stream(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    incoming: Incoming,
    peer: Rc<SpiffeId>,
    from: SocketAddr,
    local: SocketAddr,
) {
    let started = Instant::now();
    Counters::add(&worker.shared.counters.inbound);
    let mut record = Record::new(Direction::Inbound);
    record.source.address = Some(from);
    record.source.identity = Some(peer.as_ref().clone());
    let request = &incoming.request;
    let baggage = Baggage::parse(headers::lines(request.headers(), header::BAGGAGE));
    let own = &worker.model().node.cluster;
    let of_other = !own.is_empty() && baggage.cluster.as_deref().is_some_and(|cluster| cluster != &**own);
    record.source.cluster = baggage.cluster.map(Arc::from);
    let told = headers::lines(request.headers(), header::FORWARDED).next();
    record.forwarded_for = behind(told.and_then(|line| Forwarded::parse(line).for_), from, of_other);
    record.span = headers::lines(request.headers(), header::TRACEPARENT)
        .next()
        .and_then(TraceParent::parse)
        .map(|parent| Span::below(parent, worker.random.next()));
    record.hbone = request.uri().authority().map(ToString::to_string);
    // On the heap, so that what connecting takes is free again while bytes flow.
    let walk = Walk::default();
    let delivered = Box::pin(reach(&worker, &pod, &incoming, &peer, (from, local), (&mut record, &walk))).await;
    record.legs = walk.times();
    record.setup = started.elapsed();
    let error = match delivered {
        Ok((socket, admitted)) => carry(&worker, &pod, incoming, socket, &admitted, &mut record).await,
        Err(error) => {
            incoming.refuse(error.status.unwrap_or(503));
            Some(error)
        }
    };
    worker.shared.log.finish(record, error, started.elapsed());
}

/// Admits a CONNECT and connects to what it asks for. Nothing of the model but the workload is kept: a connection may live
/// for days, and must not keep an outdated model with it.
async fn reach(
    worker: &Worker,
    pod: &Pod,
    incoming: &Incoming,
    peer: &SpiffeId,
    (from, local): (SocketAddr, SocketAddr),
    (record, walk): (&mut Record, &Walk),
) -> Result<(TcpStream, Admitted), ConnError> {
    let admitted = admit(worker, pod, incoming, peer, (from, local), (record, walk)).await?;
    // A header names any client; a socket within the pod has none but addresses of the family that the pod was reached by.
    let target = &admitted.target;
    let nameable = target.proxy_header || admitted.client.is_ipv4() == target.address.is_ipv4();
    let address = if nameable { admitted.client } else { SocketAddr::new(from.ip(), 0) };
    let client = Client { address, identity: Some(peer), authority: Some(&admitted.authority) };
    let delivering = Instant::now();
    let socket = deliver(worker, pod, &client, &admitted.target).await;
    walk.done(Leg::Backend, delivering);
    Ok((socket?, admitted))
}

/// The client that a gateway stands before. In another cluster it may have the very address that the gateway has here.
fn behind(client: Option<SocketAddr>, from: SocketAddr, of_other_cluster: bool) -> Option<String> {
    client.filter(|client| of_other_cluster || client.ip() != from.ip()).map(|client| client.to_string())
}

/// What is known before policy decides: a refusal is told and counted with both sides.
fn describe(record: &mut Record, model: &Model, target: &InboundTarget, from: SocketAddr) {
    // Behind a gateway the address is the gateway's, and another network's pods may have the same one.
    if record.forwarded_for.is_none() {
        record.source.workload = model
            .workload_by_ip(&model.node.network, from.ip())
            .filter(|workload| Some(&workload.identity) == record.source.identity.as_ref())
            .cloned();
    }
    record.destination.address = Some(SocketAddr::new(target.address, target.port));
    record.service = target.service.clone();
}

/// Checks method, authority, target and policy.
async fn admit(
    worker: &Worker,
    pod: &Pod,
    incoming: &Incoming,
    peer: &SpiffeId,
    (from, local): (SocketAddr, SocketAddr),
    (record, walk): (&mut Record, &Walk),
) -> Result<Admitted, ConnError> {
    let resolving = Instant::now();
    let refused = |status: u16, leg: Leg, reason: String| ConnError {
        status: Some(status),
        ..ConnError::fatal(leg, from, reason)
    };
    let authority = incoming.authority().map_err(|reason| refused(400, Leg::Connect, reason))?;
    let Some((model, workload)) = worker.workload(pod).await else {
        let reason = format!("the workload {} is not in the mesh model", pod.uid);
        return Err(refused(503, Leg::Resolve, reason));
    };
    // Known whatever becomes of it.
    record.destination.workload = Some(workload.clone());
    record.destination.identity = Some(workload.identity.clone());
    let target = decide::inbound(&model, &workload, local, &authority, Some(peer))
        .map_err(|refusal| refused(refusal.status, Leg::Resolve, refusal.reason))?;
    walk.done(Leg::Resolve, resolving);
    describe(record, &model, &target, from);
    let to = SocketAddr::new(target.address, target.port);
    let asking = Instant::now();
    let told = headers::lines(incoming.request.headers(), header::FORWARDED).next();
    let told = told.and_then(|line| Forwarded::parse(line).for_);
    let client = decide::client(&model, peer, told, from);
    let allowed = authorise(worker, pod, (model, workload.clone()), Some(peer), client, to).await;
    walk.done(Leg::Accept, asking);
    allowed.map_err(|reason| refused(401, Leg::Accept, reason))?;
    Ok(Admitted { workload, authority, target, client })
}

async fn carry(
    worker: &Worker,
    pod: &Pod,
    incoming: Incoming,
    socket: TcpStream,
    admitted: &Admitted,
    record: &mut Record,
) -> Option<ConnError> {
    let speaks = headers::lines(incoming.request.headers(), header::X_CAUSEWAY).next().and_then(peer_version).is_some();
    let endpoint = speaks.then_some(pod.endpoint.as_str());
    let answer = headers::response(&admitted.workload, endpoint);
    let peer = record.source.address.map_or_else(String::new, |address| address.to_string());
    let ended = incoming.ended.clone();
    let (send, receive) = match incoming.accept(answer) {
        Ok(halves) => halves,
        Err(error) => {
            let _ = socket.set_zero_linger();
            return Some(ConnError::fatal(Leg::Connect, peer, error));
        }
    };
    let identity = record.source.identity.clone();
    let to = SocketAddr::new(admitted.target.address, admitted.target.port);
    let revoked = async {
        tokio::select! {
            why = withdrawn(worker, pod, identity.as_ref(), admitted.client, to) => why,
            why = ended.why() => why,
        }
    };
    let open = worker.shared.connections.open(record, true);
    let result = copy::socket_and_stream(socket, send, receive, open.counts(), Role::Server, revoked).await;
    record.bytes = open.bytes();
    record.ended(result, Party::Server, peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_of_another_cluster_is_named_also_where_the_gateway_has_its_address() {
        let from = SocketAddr::from(([10, 244, 1, 20], 46218));
        let (same, other) = (SocketAddr::from(([10, 244, 1, 20], 40000)), SocketAddr::from(([10, 244, 1, 21], 40000)));
        for (client, of_other_cluster, expected) in [
            (None, true, None),
            (Some(same), false, None),
            (Some(same), true, Some("10.244.1.20:40000")),
            (Some(other), false, Some("10.244.1.21:40000")),
            (Some(other), true, Some("10.244.1.21:40000")),
        ] {
            assert_eq!(behind(client, from, of_other_cluster).as_deref(), expected, "{client:?} {of_other_cluster}");
        }
    }
}
