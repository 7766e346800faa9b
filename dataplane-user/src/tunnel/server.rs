//! Tunnels in the server role: TLS, the HTTP/2 preface, and one task per stream.

use std::{future::Future, rc::Rc};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rustls::server::UnbufferedServerConnection;
use tokio::{
    net::TcpStream,
    sync::watch,
    task::spawn_local,
    time::{Instant, sleep_until, timeout},
};
use tracing::warn;

use super::{
    client::{cause_of_tls, describe_tls},
    ended::{ENDING, Ended, owned},
    settings::{self, SendStream},
    tls::TlsStream,
};
use crate::{
    hbone::{Authority, Cause},
    identity::{SpiffeId, Standing},
};

/// A CONNECT waiting for its answer.
pub struct Incoming {
    /// What the peer asked for.
    pub request: Request<RecvStream>,
    /// Tells when the peer's certificate was withdrawn.
    pub ended: Ended,
    respond: SendResponse<Bytes>,
}

impl Incoming {
    /// Opens the tunnelled connection: 200 with `headers`.
    ///
    /// # Errors
    /// The stream or its tunnel is gone.
    pub fn accept(mut self, headers: HeaderMap) -> Result<(SendStream, RecvStream), h2::Error> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self.respond.send_response(response, false)?;
        Ok((send, self.request.into_body()))
    }

    /// The target the peer names.
    ///
    /// # Errors
    /// Words for the log: another method than CONNECT, or an authority that is none.
    pub fn authority(&self) -> Result<Authority, String> {
        if self.request.method() != Method::CONNECT {
            return Err(format!("method {} instead of CONNECT", self.request.method()));
        }
        let text = self.request.uri().authority().map(|authority| authority.as_str()).unwrap_or_default();
        Authority::parse(text).map_err(|error| error.to_string())
    }

    /// Answers with a failure; there is no body.
    pub fn refuse(mut self, status: u16) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // The peer may be gone already; then nobody waits for the answer.
        let _ = self.respond.send_response(response, true);
    }
}

/// Why no tunnel came about: words for the log, and what kind of failure it is.
#[derive(Debug)]
pub struct Refusal {
    /// Which of TLS and the preface failed, and why.
    pub reason: String,
    /// What kind of failure it is.
    pub cause: Cause,
}

impl Refusal {
    fn new(reason: impl Into<String>, cause: Cause) -> Self {
        Self { reason: reason.into(), cause }
    }
}

/// Serves one accepted connection until the peer closes it or `drain` turns true and its streams are done.
///
/// `handle` is called for every CONNECT with the peer's identity. When the peer's certificate is withdrawn its streams are
/// told, and the connection is closed.
///
/// # Errors
/// When TLS or the preface fails.
pub async fn serve<H, F>(
    socket: TcpStream,
    session: UnbufferedServerConnection,
    standing: Standing,
    mut drain: watch::Receiver<bool>,
    handle: H,
) -> Result<(), Refusal>
where
    H: Fn(Incoming, Rc<SpiffeId>) -> F,
    F: Future<Output = ()> + 'static,
{
    let accepted = timeout(settings::HANDSHAKE_TIMEOUT, async {
        let tls = TlsStream::handshake(socket, session)
            .await
            .map_err(|error| Refusal::new(format!("TLS: {}", describe_tls(&error)), cause_of_tls(&error)))?;
        if tls.alpn() != Some(b"h2") {
            return Err(Refusal::new("TLS: the peer does not offer HTTP/2 (ALPN h2)", Cause::Preface));
        }
        let peer = crate::identity::peer_identity(tls.peer_certificates())
            .ok_or_else(|| Refusal::new("TLS: the peer's certificate names no SPIFFE identity", Cause::Other))?;
        let chain = owned(tls.peer_certificates());
        let connection = settings::server()
            .handshake::<_, Bytes>(tls)
            .await
            .map_err(|error| Refusal::new(format!("HTTP/2 preface: {error}"), Cause::Preface))?;
        Ok((connection, Rc::new(peer), chain))
    })
    .await;
    let (mut connection, peer, chain) = match accepted {
        Ok(made) => made?,
        Err(_) => return Err(Refusal::new("no TLS handshake within 10 s", Cause::Timeout)),
    };
    let mut draining = *drain.borrow();
    let (end, ended) = Ended::new();
    let lost = standing.lost(chain);
    tokio::pin!(lost);
    let mut closing: Option<Instant> = None;
    loop {
        if draining {
            connection.graceful_shutdown();
        }
        tokio::select! {
            incoming = connection.accept() => match incoming {
                Some(Ok((request, respond))) => {
                    spawn_local(handle(Incoming { request, respond, ended: ended.clone() }, peer.clone()));
                }
                // A tunnel cut off by its peer ends its streams; each says so in its own line of the log.
                Some(Err(_)) | None => return Ok(()),
            },
            why = &mut lost, if closing.is_none() => {
                warn!("a tunnel of {peer} ends: {why}");
                end.tell(&why);
                closing = Some(Instant::now() + ENDING);
            },
            // Streams that were told reset their applications meanwhile.
            () = sleep_until(closing.unwrap_or_else(Instant::now)), if closing.is_some() => return Ok(()),
            changed = drain.changed(), if !draining => {
                draining = changed.is_err() || *drain.borrow();
            }
        }
    }
}
