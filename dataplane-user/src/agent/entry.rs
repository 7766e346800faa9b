//! Connections that clients open to a port of this node.

use std::{net::SocketAddr, rc::Rc, time::Instant};

use tokio::{net::TcpStream, time::timeout};

use super::{
    connect::{Link, Source},
    entry_health,
    node_ports::Use,
    outbound::{Aim, attempts, carry},
    worker::{Worker, canonical},
};
use crate::{
    decide::{self, Caller},
    gateway::Slot,
    hbone::{Cause, ConnError, Leg, Span, TraceParent, Walk, advice},
    observe::{
        access_log::{Direction, Record},
        counters::Counters,
    },
    redirect::{is_entry_itself, is_node_itself},
    state::{GatewayAddress, NodePort, NodePortTarget},
    tunnel::settings::CONNECT_TIMEOUT,
};

/// Serves one connection from accept to end.
pub async fn serve(worker: Rc<Worker>, port: u16, socket: TcpStream, from: SocketAddr) {
    let usage = worker.shared.node_ports.load().port(port).cloned();
    match usage {
        Some(Use::Health(key)) => entry_health::serve(&worker, &key, socket).await,
        Some(Use::Traffic(port)) => traffic(worker, port, socket, from).await,
        // Given up between its SYN and now.
        None => {
            let _ = socket.set_zero_linger();
        }
    }
}

async fn traffic(worker: Rc<Worker>, port: NodePort, socket: TcpStream, from: SocketAddr) {
    let started = Instant::now();
    Counters::add(&worker.shared.counters.node_ports);
    let (client, to, caller) = ends(&worker, &socket, from);
    if port.target == NodePortTarget::Gateway && worker.model().node.gateway.is_some() {
        return worker.gateway().serve(socket, client).await;
    }
    let mut record = Record::new(Direction::Outbound);
    record.source.address = Some(client);
    record.destination.address = Some(to);
    // On the heap, so that what connecting takes is free again while bytes flow.
    let found = Box::pin(open(&worker, port, caller, (client, to), &mut record)).await;
    record.setup = started.elapsed();
    let error = match found {
        Ok((link, slot)) => {
            let error = carry(&worker, socket, link, &mut record).await;
            drop(slot);
            error
        }
        Err(error) => {
            // The client sees a reset, never an end of data that it could take for success.
            let _ = socket.set_zero_linger();
            Some(error)
        }
    };
    worker.shared.log.finish(record, error, started.elapsed());
}

/// The client, what it dialled, and where it is. A process of the node itself appears with the node's address, as to any
/// server of its own.
fn ends(worker: &Worker, socket: &TcpStream, from: SocketAddr) -> (SocketAddr, SocketAddr, Caller) {
    let local = socket.local_addr().map_or(from, canonical);
    let node = |address: SocketAddr| {
        let table = worker.shared.node_ports.load();
        let own = table.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
        own.map_or(address, |own| SocketAddr::new(*own, address.port()))
    };
    let client = if is_node_itself(from.ip()) { node(from) } else { from };
    if is_entry_itself(local.ip()) { (client, node(local), Caller::Inside) } else { (client, local, Caller::Outside) }
}

/// Decides and connects. The slot counts the connection at its endpoint.
async fn open(
    worker: &Rc<Worker>,
    port: NodePort,
    caller: Caller,
    (client, to): (SocketAddr, SocketAddr),
    record: &mut Record,
) -> Result<(Link, Option<Slot>), ConnError> {
    let model = worker.model();
    if !model.synced {
        return Err(ConnError::fatal(Leg::Resolve, to, "the control plane has not told all it knows yet"));
    }
    let Some(entry) = &model.node.entry else {
        return Err(ConnError::fatal(Leg::Resolve, to, "this node has no entry for node ports any more"));
    };
    let workload = entry.workload.clone();
    record.source.workload = Some(workload.clone());
    record.source.identity = Some(workload.identity.clone());
    if port.target == NodePortTarget::Gateway {
        return gateway(worker, to, record).await.map(|socket| (Link::Socket(socket), None));
    }
    let trace = TraceParent::random(worker.random.trace_bytes()).recorded(worker.shared.log.traces());
    record.span = Some(Span::first(trace));
    let network = model.node.network.clone();
    let source = Source { pod: None, workload, client, network, trace, walk: Walk::default() };
    let aim = Aim::NodePort(port, caller);
    let opened = attempts(worker, &source, model, (to, &aim), record).await;
    record.legs = source.walk.times();
    opened
}

/// To a gateway of the own network on another node, byte for byte: its tunnel ends there.
async fn gateway(worker: &Worker, to: SocketAddr, record: &mut Record) -> Result<TcpStream, ConnError> {
    let model = worker.model();
    let mut known: Vec<GatewayAddress> = decide::entry_gateways(&model).cloned().collect();
    if known.is_empty() {
        let reason = "no gateway of this network is known; give this node the role, or name others under gateways";
        return Err(ConnError::fatal(Leg::Resolve, to, reason));
    }
    let first = usize::try_from(worker.random.next()).unwrap_or(0) % known.len();
    known.rotate_left(first);
    known.sort_by_key(|address| worker.health.is_ejected(&address.to_string()));
    let mut last = ConnError::fatal(Leg::Resolve, to, "no gateway was tried");
    for address in known {
        let name = address.to_string();
        let connecting = async {
            match &address {
                GatewayAddress::Ip(address) => TcpStream::connect(address).await,
                GatewayAddress::Host(host, port) => TcpStream::connect((host.as_str(), *port)).await,
            }
        };
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(socket)) => {
                worker.health.answered(&name);
                // Small records must not wait for an acknowledgement; a socket that refuses the option still works.
                let _ = socket.set_nodelay(true);
                record.hbone = Some(name);
                return Ok(socket);
            }
            Ok(Err(error)) => last = ConnError::retryable(Leg::OuterTcp, &name, advice::connect(&error)),
            Err(_) => {
                let silence = advice::silence(CONNECT_TIMEOUT.as_millis());
                last = ConnError::retryable(Leg::OuterTcp, &name, silence).because(Cause::Timeout);
            }
        }
        worker.health.failed(&name);
    }
    Err(last)
}
