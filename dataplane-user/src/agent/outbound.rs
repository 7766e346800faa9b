//! Connections that applications of enrolled pods open.

use std::{future::pending, net::SocketAddr, os::fd::AsFd, rc::Rc, sync::Arc, time::Instant};

use tokio::net::TcpStream;

use super::{
    connect::{self, Link, Neighbour, Source},
    dns, names,
    node_ports::Use,
    on_demand::Search,
    policy::withdrawn,
    worker::{Pod, Worker, canonical},
};
use crate::{
    decide::{self, Caller, DecideError, LoadView, Outbound},
    dns::is_reserved,
    gateway::Slot,
    hbone::{ConnError, Leg, Span, TraceParent, Walk},
    observe::{
        access_log::{Direction, Party, Record},
        counters::Counters,
    },
    state::{Model, NodePort, Workload},
    tunnel::{copy, ends::Role},
};

/// The port of name servers.
const DNS_PORT: u16 = 53;
/// Endpoints tried for one connection.
const ATTEMPTS: usize = 3;

/// What this worker knows of endpoints: its own open connections, and its own failures by next hop.
struct View<'a>(&'a Worker);

impl LoadView for View<'_> {
    fn open(&self, uid: &str) -> u32 {
        self.0.load.open(uid)
    }

    fn ejected(&self, uid: &str) -> bool {
        self.0.health.is_ejected(uid)
    }
}

/// What a connection asks for.
pub(super) enum Aim {
    /// What the model has at the address that was dialled.
    Address,
    /// A node port, whatever is there, for such a caller.
    NodePort(NodePort, Caller),
}

/// Serves one captured connection from accept to end.
pub async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, socket: TcpStream, client: SocketAddr) {
    let started = Instant::now();
    let counters = worker.shared.counters.clone();
    Counters::add(&counters.outbound);
    let mut record = Record::new(Direction::Outbound);
    record.source.address = Some(client);
    let found = match destination(&worker, &socket) {
        Ok(to) => {
            let client = pod.dials_from(client, to);
            (record.source.address, record.destination.address) = (Some(client), Some(to));
            if to.port() == DNS_PORT && pod.dns {
                return resolve(&worker, &pod, socket, (client, to), record, started).await;
            }
            // On the heap, so that what connecting takes is free again while bytes flow.
            Box::pin(open(&worker, &pod, client, to, &mut record)).await
        }
        Err(error) => Err(error),
    };
    record.setup = started.elapsed();
    let error = match found {
        Ok((link, slot)) => {
            let error = carry(&worker, socket, link, &mut record).await;
            drop(slot);
            error
        }
        Err(error) => {
            // The application sees a reset, never an end of data that it could take for success.
            let _ = socket.set_zero_linger();
            Some(error)
        }
    };
    worker.shared.log.finish(record, error, started.elapsed());
}

/// Serves DNS over TCP. Only what could not be forwarded is logged.
async fn resolve(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    socket: TcpStream,
    (client, to): (SocketAddr, SocketAddr),
    mut record: Record,
    started: Instant,
) {
    let connect = async || Box::pin(open(worker, pod, client, to, &mut record)).await.map(|(link, _)| link);
    if let Err(error) = dns::serve_tcp(worker, pod, socket, connect).await {
        worker.shared.log.finish(record, Some(error), started.elapsed());
    }
}

fn destination(worker: &Worker, socket: &TcpStream) -> Result<SocketAddr, ConnError> {
    let failed = |reason: &dyn std::fmt::Display| ConnError::fatal(Leg::Accept, "the application's socket", reason);
    match worker.shared.original.get(socket.as_fd()) {
        Ok(Some(to)) => Ok(canonical(to)),
        Ok(None) => Err(failed(&"it was not redirected: no original destination is recorded")),
        Err(error) => Err(failed(&error)),
    }
}

/// Decides and connects, on other endpoints where one fails. The slot counts the connection at its endpoint.
async fn open(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    client: SocketAddr,
    to: SocketAddr,
    record: &mut Record,
) -> Result<(Link, Option<Slot>), ConnError> {
    let resolving = Instant::now();
    let Some((model, workload)) = worker.client(pod).await else {
        return Err(ConnError::fatal(Leg::Resolve, to, format!("the workload {} is not in the mesh model", pod.uid)));
    };
    record.source.workload = Some(workload.clone());
    record.source.identity = Some(workload.identity.clone());
    let (walk, network) = (Walk::default(), model.node.network.clone());
    walk.done(Leg::Resolve, resolving);
    let trace = TraceParent::random(worker.random.trace_bytes()).recorded(worker.shared.log.traces());
    record.span = Some(Span::first(trace));
    let source = Source { pod: Some(pod.clone()), workload, client, network, trace, walk };
    // A pod that dials a node port of its own node is routed from here: at the node it would arrive as the node's.
    let aim = match worker.shared.node_ports.load().at(to) {
        Some(Use::Traffic(port)) => Aim::NodePort(port.clone(), Caller::Inside),
        _ => Aim::Address,
    };
    let opened = attempts(worker, &source, model, (to, &aim), record).await;
    record.legs = source.walk.times();
    opened
}

/// Decides and connects until an endpoint answers.
pub(super) async fn attempts(
    worker: &Rc<Worker>,
    source: &Source,
    mut model: Arc<Model>,
    (to, aim): (SocketAddr, &Aim),
    record: &mut Record,
) -> Result<(Link, Option<Slot>), ConnError> {
    let workload = source.workload.clone();
    let reserved = is_reserved(to.ip()).then(|| worker.shared.reserved.name_of(to.ip()));
    let mut search = Search::new(&worker.shared);
    let mut avoid: Vec<Arc<str>> = Vec::new();
    let mut last: Option<ConnError> = None;
    for _ in 0..ATTEMPTS {
        let resolving = Instant::now();
        let decide = |model: &Model| {
            let (view, mut random) = (View(worker), || worker.random.next());
            match (aim, &reserved) {
                (Aim::NodePort(port, caller), _) => {
                    let family = source.client.ip().to_canonical().is_ipv4();
                    decide::entry(model, &workload, port, (*caller, family), &avoid, &view, &mut random)
                }
                (Aim::Address, None) => decide::outbound(model, &workload, to, &avoid, &view, &mut random),
                (Aim::Address, Some(name)) => {
                    decide::reserved(model, &workload, (to, name.as_ref()), &avoid, &view, &mut random)
                }
            }
        };
        let mut route = decide(&model);
        while let Some(name) = search.missing(&model, &workload, to, &route) {
            search.ask(vec![name]).await?;
            model = worker.model();
            route = decide(&model);
        }
        source.walk.done(Leg::Resolve, resolving);
        let route = match (route, last.take()) {
            (Ok(route), _) => route,
            // Every endpoint was tried: what the last one said is more useful than "none left".
            (Err(_), Some(error)) => return Err(error),
            (Err(error @ DecideError::Egress { .. }), None) => {
                Counters::add(&worker.shared.counters.egress_refused);
                return Err(ConnError::fatal(Leg::Accept, to, error));
            }
            (Err(error), None) => return Err(ConnError::fatal(Leg::Resolve, to, error)),
        };
        let route = match route {
            Outbound::Named(named) => match names::resolve(worker, &named).await {
                Ok(route) => route,
                Err(error) => {
                    avoid.push(named.workload.uid.clone());
                    last = Some(error);
                    continue;
                }
            },
            route => route,
        };
        describe(record, &route);
        // Counted before it is connected, so that a burst is spread over all.
        let slot = endpoint(&route).map(|workload| worker.load.take(&workload.uid));
        match connect::along(worker, source, &route).await {
            Ok(link) => return Ok((link, slot)),
            Err(error) if error.retryable => {
                match endpoint(&route) {
                    Some(workload) => {
                        if matches!(error.leg, Leg::OuterTcp | Leg::OuterTls) {
                            worker.health.failed(&workload.uid);
                        }
                        avoid.push(workload.uid.clone());
                    }
                    None => return Err(error),
                }
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
        model = worker.model();
    }
    Err(last.unwrap_or_else(|| ConnError::fatal(Leg::Resolve, to, "no endpoint")))
}

fn endpoint(route: &Outbound) -> Option<&Arc<Workload>> {
    match route {
        Outbound::Hbone(route) => Some(&route.workload),
        Outbound::Nested(route) => Some(&route.workload),
        Outbound::Plain { workload, .. } => Some(workload),
        Outbound::Named(route) => Some(&route.workload),
        Outbound::Passthrough { .. } => None,
    }
}

fn describe(record: &mut Record, route: &Outbound) {
    record.destination.workload = endpoint(route).cloned();
    match route {
        Outbound::Hbone(route) => {
            record.hbone = Some(route.authority.clone());
            record.service = route.service.clone();
        }
        Outbound::Nested(route) => {
            record.hbone = Some(route.authority.clone());
            record.service = route.service.clone();
        }
        Outbound::Plain { service, .. } => record.service = service.clone(),
        Outbound::Named(_) | Outbound::Passthrough { .. } => {}
    }
}

/// Moves the bytes; returns what cut them short.
pub(super) async fn carry(worker: &Worker, socket: TcpStream, link: Link, record: &mut Record) -> Option<ConnError> {
    let counters = &worker.shared.counters;
    record.destination.identity = link.identity();
    if let Link::Stream(_, far) = &link {
        record.destination.cluster = far.cluster.clone();
    }
    let open = worker.shared.connections.open(record, false);
    let counts = open.counts();
    let result = match link {
        Link::Socket(far) => {
            if record.destination.workload.is_none() {
                Counters::add(&counters.passthrough);
            }
            copy::socket_and_socket(socket, far, counts, pending()).await
        }
        Link::Local(Neighbour { socket: far, pod, to, .. }) => {
            let peer = record.source.identity.clone();
            let from = record.source.address.unwrap_or(to);
            let revoked = withdrawn(worker, &pod, peer.as_ref(), from, to);
            copy::socket_and_socket(socket, far, counts, revoked).await
        }
        Link::Stream(stream, _) => {
            let (send, receive, slot) = stream.into_halves();
            let revoked = slot.ended().why();
            let result = copy::socket_and_stream(socket, send, receive, counts, Role::Client, revoked).await;
            drop(slot);
            result
        }
    };
    record.bytes = open.bytes();
    let peer = record.destination.address.map_or_else(String::new, |address| address.to_string());
    record.ended(result, Party::Client, peer)
}
