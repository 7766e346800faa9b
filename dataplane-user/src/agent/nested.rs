//! Connecting through the entry points of another network: an outer stream, and a tunnel inside it.

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderMap;

use super::{
    connect::{Link, Source, credential, far, hop, open_outer, session},
    gateways, headers,
    worker::{Pod, Worker},
};
use crate::{
    decide::{GatewayAddress, GatewayCandidate, NestedRoute},
    hbone::{ConnError, EndpointId, Leg, TraceParent, Walk, header, peer_version},
    identity::{Credential, PeerRole},
    observe::counters::Counters,
    state::Workload,
    tunnel::{
        client::{Legs, Tunnel},
        h2io::StreamIo,
        inner::InnerKey,
        settings::CONNECT_TIMEOUT,
    },
};

/// Time for TCP to one entry point of a network while others remain to be tried.
const NEXT_GATEWAY: Duration = Duration::from_secs(1);

/// Connects through an entry point of the other network to a destination behind it.
///
/// # Errors
/// The leg that failed.
pub(super) async fn connect(worker: &Rc<Worker>, source: &Source, route: &NestedRoute) -> Result<Link, ConnError> {
    let credential = credential(worker, &source.workload.identity, Leg::InnerTls).await?;
    let generation = credential.generation;
    let key = InnerKey {
        identity: source.workload.identity.clone(),
        network: route.network.clone(),
        authority: route.authority.clone(),
        expected: route.expected.clone(),
    };
    let inner = Rc::new(Inner::new(worker, source, Rc::new(route.clone()), credential));
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

/// How long a tunnel lives that was made to try the way: cut off in the middle of its opening exchange, it would be a failed
/// connection to the far end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Tries one entry point of `route` as [`connect`] would: up to a tunnel to the far end, which carries nothing.
///
/// # Errors
/// The leg that failed.
pub async fn knock(
    worker: &Rc<Worker>,
    source: &Source,
    route: &Rc<NestedRoute>,
    candidate: &GatewayCandidate,
) -> Result<(), ConnError> {
    let credential = credential(worker, &source.workload.identity, Leg::OuterTls).await?;
    let inner = Inner::new(worker, source, route.clone(), credential);
    let tunnel = inner.through(source, candidate, CONNECT_TIMEOUT).await?;
    tokio::task::spawn_local(async move {
        tokio::time::sleep(FAREWELL).await;
        drop(tunnel);
    });
    Ok(())
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
    fn new(worker: &Rc<Worker>, source: &Source, route: Rc<NestedRoute>, credential: Arc<Credential>) -> Self {
        Self {
            worker: worker.clone(),
            pod: source.pod.clone(),
            workload: source.workload.clone(),
            client: source.client,
            network: source.network.clone(),
            trace: source.trace,
            route,
            credential,
            walk: Walk::default(),
            attempt: Cell::new(0),
        }
    }

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
