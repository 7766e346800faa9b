//! The east-west gateway role: ends outer tunnels and forwards inner ones without reading them.
//!
//! Only streams to exported services of the own network pass, only towards port 15008 of their endpoints, and only while
//! they carry TLS: whatever goes wrong here, no plaintext leaves and nothing but the mesh is reachable.

mod load;
mod passthrough;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use http::HeaderMap;
use rustls::server::UnbufferedServerConnection;
use tokio::{net::TcpStream, sync::watch, time::timeout};

pub use self::{
    load::{Load, Slot},
    passthrough::Passthroughs,
};
use crate::{
    decide::{self, GatewayTarget, SourceKind},
    hbone::{Authority, Baggage, Cause, ConnError, Forwarded, Leg, Span, TraceParent, Walk, advice, header},
    identity::{CertificateStore, PeerRole, SpiffeId},
    observe::{
        access_log::{AccessLog, Direction, Party, Record},
        connections::Connections,
        counters::Counters,
    },
    state::{ModelStore, Workload},
    tunnel::{
        copy,
        ends::{CopyError, Role},
        server::{self, Incoming},
        settings::CONNECT_TIMEOUT,
    },
};

/// The gateway role of one worker.
pub struct Gateway {
    /// The mesh model.
    pub model: Arc<ModelStore>,
    /// Certificates, that of the gateway's identity among them.
    pub credentials: Arc<CertificateStore>,
    /// The access log.
    pub log: AccessLog,
    /// Counters.
    pub counters: Arc<Counters>,
    /// Connections open now.
    pub connections: Arc<Connections>,
    /// Turns true when the daemon stops.
    pub drain: watch::Receiver<bool>,
    /// Random numbers for the choice among equal endpoints.
    pub random: Box<dyn Fn() -> u64>,
    load: Load,
}

impl Gateway {
    /// The role with nothing open.
    pub fn new(
        model: Arc<ModelStore>,
        credentials: Arc<CertificateStore>,
        log: AccessLog,
        connections: Arc<Connections>,
        drain: watch::Receiver<bool>,
        random: Box<dyn Fn() -> u64>,
    ) -> Self {
        Self {
            counters: log.counters().clone(),
            model,
            credentials,
            log,
            connections,
            drain,
            random,
            load: Load::default(),
        }
    }

    /// Serves one accepted outer tunnel until it ends.
    pub async fn serve(self: Rc<Self>, socket: TcpStream, from: SocketAddr) {
        let started = Instant::now();
        if let Err(error) = self.clone().tunnel(socket, from).await {
            let mut record = Record::new(Direction::Gateway);
            record.source.address = Some(from);
            self.log.finish(record, Some(error), started.elapsed());
        }
    }

    async fn tunnel(self: Rc<Self>, socket: TcpStream, from: SocketAddr) -> Result<(), ConnError> {
        let refused = |reason: String| ConnError::fatal(Leg::Accept, from, reason);
        let model = self.model.load();
        let Some(identity) = model.node.gateway.as_ref().map(|role| role.identity.clone()) else {
            return Err(refused("this node has no gateway role any more".to_owned()));
        };
        let credential = self
            .credentials
            .credential(&identity)
            .await
            .map_err(|error| refused(format!("no certificate for {identity}: {error}")))?;
        let session =
            UnbufferedServerConnection::new(credential.server_config()).map_err(|error| refused(error.to_string()))?;
        let (standing, drain) = (credential.standing(PeerRole::Client), self.drain.clone());
        server::serve(socket, session, standing, drain, move |incoming, peer| self.clone().stream(incoming, peer, from))
            .await
            .map_err(|refusal| refused(refusal.reason).because(refusal.cause))
    }

    async fn stream(self: Rc<Self>, incoming: Incoming, peer: Rc<SpiffeId>, from: SocketAddr) {
        let started = Instant::now();
        Counters::add(&self.counters.gateway);
        let mut record = Record::new(Direction::Gateway);
        describe(&mut record, &incoming, &peer, from);
        let parent = incoming.request.headers().get(header::TRACEPARENT);
        let parent = parent.and_then(|value| TraceParent::parse(value.as_bytes()));
        record.span = parent.map(|parent| Span::below(parent, (self.random)()));
        let walk = Walk::default();
        let reached = self.reach(&incoming, &peer, &mut record, &walk).await;
        record.legs = walk.times();
        record.setup = started.elapsed();
        let error = match reached {
            Ok((socket, slot)) => {
                // An inner tunnel may carry connections for hours; who opened it must be known before.
                self.log.begin(&mut record);
                let error = self.carry(incoming, socket, &mut record).await;
                drop(slot);
                error
            }
            Err(error) => {
                incoming.refuse(error.status.unwrap_or(503));
                Some(error)
            }
        };
        self.log.finish(record, error, started.elapsed());
    }

    /// Authorises a CONNECT and connects to the first candidate that answers.
    async fn reach(
        &self,
        incoming: &Incoming,
        peer: &SpiffeId,
        record: &mut Record,
        walk: &Walk,
    ) -> Result<(TcpStream, Slot), ConnError> {
        let resolving = Instant::now();
        let refused = |status: u16, leg: Leg, reason: String| ConnError {
            status: Some(status),
            ..ConnError::fatal(leg, peer, reason)
        };
        let authority = incoming.authority().map_err(|reason| refused(400, Leg::Connect, reason))?;
        let model = self.model.load();
        let trusted = model.node.gateway.as_ref().map_or(&[][..], |role| &role.trusted_sources);
        let claim = incoming.request.headers().get(header::X_ISTIO_SOURCE).map(http::HeaderValue::as_bytes);
        let source = SourceKind::claimed(claim, peer, trusted);
        let mut random = || (self.random)();
        let GatewayTarget { service, candidates } =
            decide::gateway_from(&model, &authority, peer, source, &self.load, &mut random)
                .map_err(|refusal| refused(refusal.status, Leg::Resolve, refusal.reason))?;
        walk.done(Leg::Resolve, resolving);
        record.service = Some(service);
        let mut last = refused(503, Leg::Backend, format!("{authority} has no endpoint"));
        for (to, workload) in candidates {
            let connecting = Instant::now();
            // Counted before it is connected, so that a burst is spread over all.
            let slot = self.load.take(&workload.uid);
            let connected = self.connect(to, &workload).await;
            walk.done(Leg::Backend, connecting);
            match connected {
                Ok(socket) => {
                    self.load.accepted(&workload.uid);
                    record.destination.address = Some(to);
                    record.destination.workload = Some(workload);
                    return Ok((socket, slot));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect(&self, to: SocketAddr, workload: &Workload) -> Result<TcpStream, ConnError> {
        let failed = |error: &dyn std::fmt::Display| ConnError {
            status: Some(503),
            ..ConnError::retryable(Leg::Backend, to, error)
        };
        let socket = match timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                self.load.failed(&workload.uid);
                return Err(failed(&advice::connect(&error)));
            }
            Err(_) => {
                self.load.failed(&workload.uid);
                return Err(failed(&"no answer within 10 s").because(Cause::Timeout));
            }
        };
        // Small records must not wait for an acknowledgement; a socket that refuses the option still works.
        let _ = socket.set_nodelay(true);
        Ok(socket)
    }

    /// Waits until the service behind `authority` is no longer exported, and says why.
    async fn withdrawn(&self, authority: Option<Authority>) -> String {
        let mut changes = self.model.subscribe();
        while let Some(authority) = &authority {
            if let Err(reason) = decide::still_exported(&self.model.load(), authority) {
                return reason;
            }
            if changes.changed().await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    async fn carry(&self, incoming: Incoming, socket: TcpStream, record: &mut Record) -> Option<ConnError> {
        let authority = incoming.authority().ok();
        let peer = record.source.address.map_or_else(String::new, |address| address.to_string());
        let ended = incoming.ended.clone();
        let (send, receive) = match incoming.accept(HeaderMap::new()) {
            Ok(halves) => halves,
            Err(error) => return Some(ConnError::fatal(Leg::Connect, peer, error)),
        };
        let revoked = async {
            tokio::select! {
                why = self.withdrawn(authority) => why,
                why = ended.why() => why,
            }
        };
        let open = self.connections.open(record, true);
        let result = copy::socket_and_stream(socket, send, receive, open.counts(), Role::Gateway, revoked).await;
        record.bytes = open.bytes();
        if let Err(CopyError::NotTls) = &result {
            Counters::add(&self.counters.inner_not_tls);
        }
        record.ended(result, Party::Server, peer)
    }
}

fn describe(record: &mut Record, incoming: &Incoming, peer: &SpiffeId, from: SocketAddr) {
    let request = &incoming.request;
    let lines = |name: &'static str| request.headers().get_all(name).iter().map(http::HeaderValue::as_bytes);
    record.source.address = Some(from);
    record.source.identity = Some(peer.clone());
    record.source.cluster = Baggage::parse(lines(header::BAGGAGE)).cluster.map(Arc::from);
    record.forwarded_for =
        lines(header::FORWARDED).next().and_then(|line| Forwarded::parse(line).for_).map(|client| client.to_string());
    record.hbone = request.uri().authority().map(ToString::to_string);
}
