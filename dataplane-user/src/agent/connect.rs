//! From a route to something that carries bytes: a plain socket, a stream, or a stream inside a stream.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;
use rustls::{client::UnbufferedClientConnection, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};

use super::{
    gateways, headers, local,
    worker::{Pod, Worker},
};
use crate::{
    decide::{GatewayAddress, GatewayCandidate, HboneRoute, NestedRoute, Outbound},
    hbone::{Baggage, Cause, ConnError, EndpointId, Leg, TraceParent, Walk, advice, header, peer_version},
    identity::{Credential, ExpectedPeer, PeerRole, SpiffeId},
    observe::counters::Counters,
    redirect::{Family, PodId, SocketKind, connect_start, tcp_info},
    state::Workload,
    tunnel::{
        client::{Legs, OpenStream, Progress, Tunnel},
        h2io::StreamIo,
        inner::InnerKey,
        pool::OuterKey,
        settings::CONNECT_TIMEOUT,
    },
};

/// Time for TCP to one entry point of a network while others remain to be tried.
const NEXT_GATEWAY: Duration = Duration::from_secs(1);

/// Who connects, and on whose behalf.
pub struct Source {
    /// The pod the application runs in; none for a client at a node port, for whom the daemon's own namespace is dialled from.
    pub pod: Option<Rc<Pod>>,
    /// Its workload; at a node port that of the entry.
    pub workload: Arc<Workload>,
    /// The application's or the client's own socket address.
    pub client: SocketAddr,
    /// The network of this node.
    pub network: Arc<str>,
    /// Its trace, as the next nodes are told.
    pub trace: TraceParent,
    /// The time of each leg it walks.
    pub walk: Walk,
}

/// What carries the bytes of a connection.
pub enum Link {
    /// Plain TCP, out of the mesh.
    Socket(TcpStream),
    /// The application of another pod of this node.
    Local(Neighbour),
    /// A stream; `far` is what the other side told of itself.
    Stream(Box<OpenStream>, Far),
}

impl Link {
    /// The identity of the far end, where one is proven or known.
    pub fn identity(&self) -> Option<SpiffeId> {
        match self {
            Self::Socket(_) => None,
            Self::Local(neighbour) => Some(neighbour.identity.clone()),
            Self::Stream(_, far) => far.identity.clone(),
        }
    }
}

/// A connection to the application of another pod of this node.
pub struct Neighbour {
    /// The socket in that pod's namespace.
    pub socket: TcpStream,
    /// That pod.
    pub pod: Rc<Pod>,
    /// Its application's address.
    pub to: SocketAddr,
    /// Its identity.
    pub identity: SpiffeId,
}

/// What is known of the far end of a stream.
#[derive(Default)]
pub struct Far {
    /// The identity it proved.
    pub identity: Option<SpiffeId>,
    /// Its cluster, from its baggage.
    pub cluster: Option<Arc<str>>,
    /// Its workload's name, from its baggage.
    pub workload: Option<String>,
    /// The next hop's address.
    pub hop: String,
}

/// Connects along `route`.
///
/// # Errors
/// The leg that failed; `retryable` tells whether another endpoint is worth trying.
pub async fn along(worker: &Rc<Worker>, source: &Source, route: &Outbound) -> Result<Link, ConnError> {
    match route {
        Outbound::Passthrough { to } | Outbound::Plain { to, .. } => {
            upstream(worker, source, *to, CONNECT_TIMEOUT).await.map(Link::Socket)
        }
        Outbound::Named(route) => {
            Err(ConnError::fatal(Leg::Resolve, &route.workload.uid, "its host name was not resolved"))
        }
        Outbound::Hbone(route) => match local::connect(worker, source, route).await {
            Some(result) => result,
            None => single(worker, source, route).await,
        },
        Outbound::Nested(route) => nested(worker, source, route).await,
    }
}

/// TCP from inside the pod's namespace.
async fn upstream(worker: &Worker, source: &Source, to: SocketAddr, limit: Duration) -> Result<TcpStream, ConnError> {
    let begin = Instant::now();
    let connected = tcp(worker, source.pod.as_ref().map(|pod| pod.id), to, limit).await;
    source.walk.done(Leg::OuterTcp, begin);
    connected
}

/// TCP from inside the namespace of `pod`, or from the daemon's own.
async fn tcp(worker: &Worker, pod: Option<PodId>, to: SocketAddr, limit: Duration) -> Result<TcpStream, ConnError> {
    let failed = |error: &dyn std::fmt::Display| ConnError::retryable(Leg::OuterTcp, to, error);
    let connecting = async {
        let Some(pod) = pod else {
            let socket = TcpStream::connect(to).await?;
            socket.set_nodelay(true)?;
            return Ok(socket);
        };
        let taken = worker.sockets.take(pod, SocketKind::Upstream, Family::from(to.ip())).await;
        let socket = taken.map_err(|error| io::Error::other(format!("no socket in the pod's namespace: {error}")))?;
        connect_start(socket, None, to).await
    };
    match timeout(limit, connecting).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(failed(&advice::connect(&error))),
        Err(_) => Err(failed(&advice::silence(limit.as_millis())).because(Cause::Timeout)),
    }
}

/// A TLS client session of `credential` that expects `expected`.
fn session(
    credential: &Credential,
    expected: &ExpectedPeer,
    to: &str,
    leg: Leg,
) -> Result<UnbufferedClientConnection, ConnError> {
    // No server name is sent; rustls wants one all the same.
    let name = ServerName::IpAddress(IpAddr::from([0, 0, 0, 0]).into());
    UnbufferedClientConnection::new(credential.client_config(expected), name)
        .map_err(|error| ConnError::fatal(leg, to, error))
}

async fn credential(worker: &Worker, identity: &SpiffeId, leg: Leg) -> Result<Arc<Credential>, ConnError> {
    worker.shared.credentials.credential(identity).await.map_err(|error| {
        ConnError::fatal(leg, identity, format!("no certificate: {error}")).because(Cause::NoCertificate)
    })
}

/// What a tunnel to a next hop needs.
struct Hop {
    key: OuterKey,
    credential: Arc<Credential>,
    limit: Duration,
}

async fn dial(worker: &Worker, source: &Source, hop: &Hop) -> Result<Tunnel, ConnError> {
    let to = hop.key.to;
    let socket = upstream(worker, source, to, hop.limit).await?;
    let begin = Instant::now();
    let progress = progress(&socket);
    let name = to.to_string();
    let session = session(&hop.credential, &hop.key.expected, &name, Leg::OuterTls)?;
    let standing = hop.credential.standing(PeerRole::Server);
    let made =
        Tunnel::establish(socket, session, standing, hop.credential.generation, name, Legs::OUTER, progress).await;
    source.walk.done(Leg::OuterTls, begin);
    made
}

/// Reads what the kernel knows of the transport's progress, for as long as the tunnel lives.
fn progress(socket: &TcpStream) -> Option<Progress> {
    let socket = socket.as_fd().try_clone_to_owned().ok()?;
    Some(Box::new(move || tcp_info(socket.as_fd()).map_or(0, |info| info.bytes_acked)))
}

async fn open_outer(
    worker: &Rc<Worker>,
    source: &Source,
    hop: &Hop,
    authority: &str,
    headers: &HeaderMap,
) -> Result<OpenStream, ConnError> {
    let generation = hop.credential.generation;
    let (stream, _) = worker
        .outer
        .open(&hop.key, generation, || dial(worker, source, hop), (authority, headers), Legs::OUTER, &source.walk)
        .await?;
    Ok(stream)
}

fn hop(source: &Source, credential: &Arc<Credential>, to: SocketAddr, expected: &ExpectedPeer, limit: Duration) -> Hop {
    Hop {
        key: OuterKey {
            identity: source.workload.identity.clone(),
            // Clients at node ports have no address that a network policy on the way could know: they share tunnels.
            source: source.pod.as_ref().map_or(Ipv4Addr::UNSPECIFIED.into(), |_| source.client.ip()),
            to,
            expected: expected.clone(),
        },
        credential: credential.clone(),
        limit,
    }
}

async fn single(worker: &Rc<Worker>, source: &Source, route: &HboneRoute) -> Result<Link, ConnError> {
    let credential = credential(worker, &source.workload.identity, Leg::OuterTls).await?;
    let hop = hop(source, &credential, route.to, &route.expected, CONNECT_TIMEOUT);
    let host = route.service.as_ref().map(|service| &*service.hostname);
    let headers = headers::request(&source.workload, source.client, host, &source.trace);
    let stream = open_outer(worker, source, &hop, &route.authority, &headers).await?;
    let far = far(&stream, route.to.to_string());
    Ok(Link::Stream(Box::new(stream), far))
}

/// What the answer tells of the far end.
fn far(stream: &OpenStream, hop: String) -> Far {
    let baggage = Baggage::parse(headers::lines(&stream.headers, header::BAGGAGE));
    Far {
        identity: stream.slot.peer().cloned(),
        cluster: baggage.cluster.map(Arc::from),
        workload: baggage.workload_name,
        hop,
    }
}

async fn nested(worker: &Rc<Worker>, source: &Source, route: &NestedRoute) -> Result<Link, ConnError> {
    let credential = credential(worker, &source.workload.identity, Leg::InnerTls).await?;
    let generation = credential.generation;
    let key = InnerKey {
        identity: source.workload.identity.clone(),
        network: route.network.clone(),
        authority: route.authority.clone(),
        expected: route.expected.clone(),
    };
    let inner = Inner {
        worker: worker.clone(),
        pod: source.pod.clone(),
        workload: source.workload.clone(),
        client: source.client,
        network: source.network.clone(),
        trace: source.trace,
        route: Rc::new(route.clone()),
        credential,
        walk: Walk::default(),
        attempt: Cell::new(0),
    };
    let inner = Rc::new(inner);
    let host = route.service.as_ref().map(|service| &*service.hostname);
    let mut headers = headers::request(&source.workload, source.client, host, &source.trace);
    headers::add_network(&mut headers, &source.network);
    loop {
        let (dialled, attempt) = (inner.clone(), inner.attempt.get());
        let dial = move || dialled.clone().dial(attempt);
        let tunnel = worker.inner.tunnel(&key, generation, route.capacity, dial).await;
        // What this attempt dials from here on is a search for further pods, and not this connection's time.
        inner.attempt.set(attempt + 1);
        source.walk.absorb(inner.walk.take());
        let tunnel = tunnel?;
        if !gateways::still_named(&tunnel, &route.gateways) {
            // Whoever takes an entry point out of the model wants nothing new to go through it.
            tunnel.retire();
            continue;
        }
        let fresh = tunnel.opened() == 0;
        let begin = Instant::now();
        let opened = tunnel.open(&route.authority, headers.clone(), Legs::INNER).await;
        source.walk.done(Leg::Backend, begin);
        match opened {
            Ok(stream) => {
                note_endpoint(worker, &key, &tunnel, &stream.headers);
                let hop = stream.slot.peer_address().to_owned();
                let far = far(&stream, hop);
                return Ok(Link::Stream(Box::new(stream), far));
            }
            Err(_) if !fresh && !tunnel.is_usable() => {}
            // The pod at its end left the mesh while the tunnel was kept: the gateway knows others.
            Err(error) if !fresh && error.status == Some(503) => tunnel.retire(),
            Err(error) => return Err(error),
        }
    }
}

/// Counts pods behind a service by what they say of themselves; a value of another form is no endpoint.
fn note_endpoint(worker: &Worker, key: &InnerKey, tunnel: &Tunnel, headers: &HeaderMap) {
    let speaks = headers.get(header::X_CAUSEWAY).and_then(|value| peer_version(value.as_bytes())).is_some();
    let endpoint = headers.get(header::X_CAUSEWAY_ENDPOINT).and_then(|value| EndpointId::parse(value.as_bytes()));
    if let (true, Some(endpoint)) = (speaks, endpoint) {
        worker.inner.learned(key, tunnel, endpoint.as_str());
    }
}

/// All it takes to make another inner tunnel of the same kind.
struct Inner {
    worker: Rc<Worker>,
    pod: Option<Rc<Pod>>,
    workload: Arc<Workload>,
    client: SocketAddr,
    network: Arc<str>,
    /// A tunnel belongs to the trace of the connection that needed it first.
    trace: TraceParent,
    route: Rc<NestedRoute>,
    credential: Arc<Credential>,
    /// The time of the legs that the connection itself has to wait for.
    walk: Walk,
    /// Which of its attempts is under way.
    attempt: Cell<u32>,
}

impl Inner {
    /// Opens an outer stream at the first entry point that answers, and an inner tunnel inside it.
    async fn dial(self: Rc<Self>, attempt: u32) -> Result<Tunnel, ConnError> {
        let candidates = self.worker.health.order(&self.route.gateways);
        let mut last = ConnError::fatal(Leg::Resolve, &self.route.network, "no gateway of this network is known");
        for (index, candidate) in candidates.iter().enumerate() {
            let limit = if index + 1 < candidates.len() { NEXT_GATEWAY } else { CONNECT_TIMEOUT };
            let source = Source {
                pod: self.pod.clone(),
                workload: self.workload.clone(),
                client: self.client,
                network: self.network.clone(),
                trace: self.trace,
                walk: Walk::default(),
            };
            let tunnel = self.through(&source, candidate, limit).await;
            if self.attempt.get() == attempt {
                self.walk.absorb(source.walk.times());
            }
            match tunnel {
                Ok(tunnel) => return Ok(tunnel),
                Err(error) if error.retryable => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// A gateway of our kind says 404 for a pod that its network does not have.
    fn missing(&self, error: ConnError) -> ConnError {
        match (&self.route.pod, error.status) {
            (Some(pod), Some(404)) => {
                let network = &self.route.network;
                let reason = format!(
                    "no such pod at {network}: its gateway knows no ready {pod} of an exported service (status 404)"
                );
                ConnError { reason, ..error }
            }
            _ => error,
        }
    }

    async fn through(
        &self,
        source: &Source,
        candidate: &GatewayCandidate,
        limit: Duration,
    ) -> Result<Tunnel, ConnError> {
        let name = gateways::name(&candidate.address);
        let host = self.route.service.as_ref().map(|service| &*service.hostname);
        let headers = headers::request(&self.workload, self.client, host, &self.trace);
        let mut opened = Err(ConnError::retryable(Leg::Resolve, &name, "no address"));
        let resolving = Instant::now();
        if let GatewayAddress::Host(..) = &candidate.address {
            Counters::add(&self.worker.shared.counters.on_demand_dns);
        }
        let addresses = resolve(&candidate.address).await;
        source.walk.done(Leg::Resolve, resolving);
        for to in addresses? {
            let hop = hop(source, &self.credential, to, &candidate.expected, limit);
            opened = open_outer(&self.worker, source, &hop, &self.route.authority, &headers).await;
            if opened.is_ok() {
                break;
            }
        }
        let stream = match opened {
            Ok(stream) => {
                self.worker.health.answered(&name);
                self.worker.shared.entry_points.answered(&self.route.network, &name, source.walk.times());
                stream
            }
            Err(error) => {
                self.worker.shared.entry_points.failed(&self.route.network, &name, &error);
                // An answer, whatever it says, means that the entry point lives.
                if matches!(error.leg, Leg::Resolve | Leg::OuterTcp | Leg::OuterTls) {
                    self.worker.health.failed(&name);
                }
                return Err(self.missing(error));
            }
        };
        let session = session(&self.credential, &self.route.expected, &self.route.authority, Leg::InnerTls)?;
        let address = format!("{} via {name}", self.route.authority);
        let begin = Instant::now();
        let made = Tunnel::establish(
            StreamIo::new(stream.send, stream.receive, Some(stream.slot)),
            session,
            self.credential.standing(PeerRole::Server),
            self.credential.generation,
            address,
            Legs::INNER,
            None,
        )
        .await;
        source.walk.done(Leg::InnerTls, begin);
        let tunnel = made?;
        tunnel.set_entry_point(gateways::number(&candidate.address));
        Ok(tunnel)
    }
}

/// The socket addresses behind a candidate; names are resolved on every dial.
async fn resolve(address: &GatewayAddress) -> Result<Vec<SocketAddr>, ConnError> {
    match address {
        GatewayAddress::Ip(address) => Ok(vec![*address]),
        GatewayAddress::Host(host, port) => {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await;
            found
                .map(Iterator::collect)
                .map_err(|error| ConnError::retryable(Leg::Resolve, gateways::name(address), error))
        }
    }
}
