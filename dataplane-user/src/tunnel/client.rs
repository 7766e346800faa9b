//! One tunnel in the client role, and the streams opened on it.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
};

use bytes::Bytes;
use h2::{
    Ping, RecvStream,
    client::{Connection, SendRequest},
};
use http::{HeaderMap, Method, Request, Uri, Version};
use rustls::client::UnbufferedClientConnection;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::spawn_local,
    time::{Instant, timeout},
};
use tracing::warn;

use super::{
    ended::{ENDING, End, Ended, owned},
    settings::{self, SendStream},
    tls::{TlsStream, Transport},
};
use crate::hbone::{Cause, ConnError, Leg};
use crate::identity::{PeerError, SpiffeId, Standing};

/// Progress of the transport below a tunnel, as the kernel sees it: any number that grows when the peer acknowledges.
pub type Progress = Box<dyn Fn() -> u64>;

/// Who may know about a tunnel's state.
#[derive(Debug)]
struct Shared {
    streams: Cell<usize>,
    opened: Cell<u64>,
    broken: Cell<bool>,
    retired: Cell<bool>,
    idle_since: Cell<Instant>,
    born: Instant,
    generation: u64,
    peer: Option<SpiffeId>,
    peer_address: String,
    endpoint: RefCell<Option<Rc<str>>>,
    entry_point: Cell<Option<u64>>,
    ended: Ended,
}

/// A tunnel to a peer. Clones are handles to the same tunnel.
#[derive(Clone)]
pub struct Tunnel {
    send: SendRequest<Bytes>,
    shared: Rc<Shared>,
}

/// A stream on a tunnel; the slot is free again when the guard goes.
pub struct OpenStream {
    /// Towards the peer.
    pub send: SendStream,
    /// From the peer.
    pub receive: RecvStream,
    /// Headers of the 200.
    pub headers: HeaderMap,
    /// Keeps the stream counted.
    pub slot: StreamSlot,
}

impl OpenStream {
    /// The two halves and the slot; the headers have been read by now and only take memory.
    pub fn into_halves(self) -> (SendStream, RecvStream, StreamSlot) {
        (self.send, self.receive, self.slot)
    }
}

/// Counts one stream of a tunnel while it lives.
pub struct StreamSlot(Rc<Shared>);

impl StreamSlot {
    fn take(shared: &Rc<Shared>) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        shared.opened.set(shared.opened.get() + 1);
        Self(shared.clone())
    }

    /// The identity the far end of the tunnel proved.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.0.peer.as_ref()
    }

    /// Tells when the far end's certificate was withdrawn.
    pub fn ended(&self) -> Ended {
        self.0.ended.clone()
    }

    /// Where the tunnel leads, as text for logs.
    pub fn peer_address(&self) -> &str {
        &self.0.peer_address
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        self.0.idle_since.set(Instant::now());
    }
}

/// The legs to blame when a tunnel or its streams cannot be made.
#[derive(Clone, Copy)]
pub struct Legs {
    /// For TLS and the HTTP/2 preface.
    pub tls: Leg,
    /// For the answer to a CONNECT.
    pub connect: Leg,
}

impl Legs {
    /// Legs of a tunnel to the next hop.
    pub const OUTER: Legs = Legs { tls: Leg::OuterTls, connect: Leg::Connect };
    /// Legs of a tunnel inside another one.
    pub const INNER: Legs = Legs { tls: Leg::InnerTls, connect: Leg::Backend };
}

impl Tunnel {
    /// Makes a tunnel over `io`: TLS, then the HTTP/2 preface; keeps it alive until it is unused.
    ///
    /// `generation` is that of the certificate in `session`.
    ///
    /// # Errors
    /// [`ConnError`] with `legs.tls`.
    pub async fn establish<IO>(
        io: IO,
        session: UnbufferedClientConnection,
        standing: Standing,
        generation: u64,
        address: String,
        legs: Legs,
        progress: Option<Progress>,
    ) -> Result<Self, ConnError>
    where
        IO: Transport + 'static,
    {
        let failed = |error: &dyn std::fmt::Display| ConnError::retryable(legs.tls, &address, error);
        let made = timeout(settings::HANDSHAKE_TIMEOUT, async {
            let tls = TlsStream::handshake(io, session)
                .await
                .map_err(|error| failed(&describe_tls(&error)).because(cause_of_tls(&error)))?;
            if tls.alpn() != Some(b"h2") {
                return Err(failed(&"the peer did not agree on HTTP/2 (ALPN h2)").because(Cause::Preface));
            }
            let peer = crate::identity::peer_identity(tls.peer_certificates());
            let chain = owned(tls.peer_certificates());
            let (send, connection) = settings::client()
                .handshake::<_, Bytes>(tls)
                .await
                .map_err(|error| failed(&error).because(Cause::Preface))?;
            Ok((send, connection, peer, chain))
        })
        .await
        .map_err(|_| failed(&"no answer within 10 s").because(Cause::Timeout))?;
        let (send, connection, peer, chain) = made?;
        let (end, ended) = Ended::new();
        let now = Instant::now();
        let shared = Rc::new(Shared {
            streams: Cell::new(0),
            opened: Cell::new(0),
            broken: Cell::new(false),
            retired: Cell::new(false),
            idle_since: Cell::new(now),
            born: now,
            generation,
            peer,
            peer_address: address,
            endpoint: RefCell::new(None),
            entry_point: Cell::new(None),
            ended,
        });
        let lost = lose(standing.lost(chain), end, shared.clone());
        spawn_local(drive(connection, shared.clone(), progress, lost));
        Ok(Self { send, shared })
    }

    /// Opens a stream: CONNECT to `authority` with `headers`, and waits for the 200.
    ///
    /// # Errors
    /// [`ConnError`] with `legs.connect`; a tunnel that turns out to be dead is marked so.
    pub async fn open(&self, authority: &str, headers: HeaderMap, legs: Legs) -> Result<OpenStream, ConnError> {
        let leg = legs.connect;
        let slot = StreamSlot::take(&self.shared);
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() =
            Uri::builder().authority(authority).build().map_err(|error| ConnError::fatal(leg, authority, error))?;
        *request.headers_mut() = headers;
        let lost = |error: h2::Error| {
            if error.is_io() || error.is_go_away() {
                self.shared.broken.set(true);
            }
            ConnError::retryable(leg, authority, error)
        };
        let mut send = self.send.clone().ready().await.map_err(lost)?;
        let (response, send) = send.send_request(request, false).map_err(lost)?;
        let response = response.await.map_err(lost)?;
        if response.status() != http::StatusCode::OK {
            return Err(ConnError::status(leg, authority, response.status().as_u16()));
        }
        let (parts, receive) = response.into_parts();
        Ok(OpenStream { send, receive, headers: parts.headers, slot })
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.shared.streams.get()
    }

    /// Streams opened since the tunnel was made.
    pub fn opened(&self) -> u64 {
        self.shared.opened.get()
    }

    /// When the tunnel was made.
    pub fn born(&self) -> Instant {
        self.shared.born
    }

    /// Streams the peer allows at once, as it says now.
    pub fn limit(&self) -> usize {
        self.send.current_max_send_streams()
    }

    /// The generation of the certificate the tunnel was made with.
    pub fn generation(&self) -> u64 {
        self.shared.generation
    }

    /// Whether new streams may be opened.
    pub fn is_usable(&self) -> bool {
        !self.shared.broken.get() && !self.shared.retired.get()
    }

    /// No new streams from now on; those that run finish.
    pub fn retire(&self) {
        self.shared.retired.set(true);
    }

    /// The endpoint behind the tunnel, where it told.
    pub fn endpoint(&self) -> Option<Rc<str>> {
        self.shared.endpoint.borrow().clone()
    }

    /// The number of the entry point that the tunnel goes through, where it goes through one.
    pub fn entry_point(&self) -> Option<u64> {
        self.shared.entry_point.get()
    }

    /// Notes which entry point the tunnel goes through, by a number that its address always gives.
    pub fn set_entry_point(&self, number: u64) {
        self.shared.entry_point.set(Some(number));
    }

    /// Notes which endpoint answers on this tunnel.
    pub fn set_endpoint(&self, endpoint: &str) {
        let mut current = self.shared.endpoint.borrow_mut();
        if current.as_deref() != Some(endpoint) {
            *current = Some(endpoint.into());
        }
    }

    /// The identity the far end proved.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.shared.peer.as_ref()
    }
}

/// The text of a TLS failure: rustls wraps the verifier's words, which are the useful part.
pub fn describe_tls(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("the peer refused our certificate or parameters (TLS alert {alert:?})")
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => other.to_string(),
        Some(rustls::Error::General(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => error.to_string(),
    }
}

/// What kind of failure a TLS failure is.
pub fn cause_of_tls(error: &io::Error) -> Cause {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return Cause::Other;
    };
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))
            if matches!(other.0.downcast_ref(), Some(PeerError::Revoked { .. })) =>
        {
            Cause::Revoked
        }
        rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked) => Cause::Revoked,
        rustls::Error::NoApplicationProtocol => Cause::Preface,
        _ => Cause::Other,
    }
}

/// Runs a tunnel until it is closed: moves its frames, sends PINGs, ends it when it is unused.
async fn drive<IO>(
    mut connection: Connection<IO, Bytes>,
    shared: Rc<Shared>,
    progress: Option<Progress>,
    lost: impl Future<Output = ()>,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let ping_pong = connection.ping_pong();
    let watch = async {
        match ping_pong {
            Some(ping_pong) => keep_alive(ping_pong, &shared, progress).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = connection => {}
        () = watch => {}
        () = lost => {}
    }
    shared.broken.set(true);
}

/// Returns when the peer's certificate was withdrawn and the streams had time to end.
async fn lose(lost: impl Future<Output = String>, end: End, shared: Rc<Shared>) {
    let why = lost.await;
    warn!("the tunnel to {} ends: {why}", shared.peer_address);
    shared.broken.set(true);
    end.tell(&why);
    tokio::time::sleep(ENDING).await;
}

/// Returns when the tunnel is dead or no longer needed.
async fn keep_alive(mut ping_pong: h2::PingPong, shared: &Shared, progress: Option<Progress>) {
    loop {
        tokio::time::sleep(settings::PING_INTERVAL).await;
        let idle = shared.streams.get() == 0;
        if idle && (shared.retired.get() || shared.idle_since.get().elapsed() > settings::IDLE_TIMEOUT) {
            return;
        }
        let mut seen = progress.as_ref().map(|progress| progress());
        let pong = ping_pong.ping(Ping::opaque());
        tokio::pin!(pong);
        // A PING behind megabytes of data is late, not lost: as long as the peer acknowledges, wait on.
        loop {
            match timeout(settings::PING_TIMEOUT, &mut pong).await {
                Ok(Ok(_)) => break,
                Ok(Err(_)) => return,
                Err(_) => {
                    let now = progress.as_ref().map(|progress| progress());
                    if now == seen {
                        return;
                    }
                    seen = now;
                }
            }
        }
    }
}
