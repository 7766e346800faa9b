//! From a route to something that carries bytes: a plain socket, a stream, or a stream inside a stream.

use std::{
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
    headers, local, nested,
    worker::{Pod, Worker},
};
use crate::{
    decide::{HboneRoute, Outbound},
    hbone::{Baggage, Cause, ConnError, Leg, TraceParent, Walk, advice, header},
    identity::{Credential, ExpectedPeer, PeerRole, SpiffeId},
    redirect::{Family, PodId, SocketKind, connect_start, tcp_info},
    state::Workload,
    tunnel::{
        client::{Legs, OpenStream, Progress, Tunnel},
        pool::OuterKey,
        settings::CONNECT_TIMEOUT,
    },
};

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
        Outbound::Nested(route) => nested::connect(worker, source, route).await,
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
        connect_start(socket, to).await
    };
    match timeout(limit, connecting).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(failed(&advice::connect(&error))),
        Err(_) => Err(failed(&advice::silence(limit.as_millis())).because(Cause::Timeout)),
    }
}

/// A TLS client session of `credential` that expects `expected`.
pub(super) fn session(
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

pub(super) async fn credential(worker: &Worker, identity: &SpiffeId, leg: Leg) -> Result<Arc<Credential>, ConnError> {
    worker.shared.credentials.credential(identity).await.map_err(|error| {
        ConnError::fatal(leg, identity, format!("no certificate: {error}")).because(Cause::NoCertificate)
    })
}

/// What a tunnel to a next hop needs.
pub(super) struct Hop {
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

pub(super) async fn open_outer(
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

pub(super) fn hop(
    source: &Source,
    credential: &Arc<Credential>,
    to: SocketAddr,
    expected: &ExpectedPeer,
    limit: Duration,
) -> Hop {
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
pub(super) fn far(stream: &OpenStream, hop: String) -> Far {
    let baggage = Baggage::parse(headers::lines(&stream.headers, header::BAGGAGE));
    Far {
        identity: stream.slot.peer().cloned(),
        cluster: baggage.cluster.map(Arc::from),
        workload: baggage.workload_name,
        hop,
    }
}
