//! The handshake: rustls' state machine over an asynchronous transport, up to the traffic keys.

use std::{future::poll_fn, io, pin::Pin, task::Poll};

use super::{Transport, incoming::Incoming, send_all};
use bytes::BytesMut;
use rustls::{
    ExtractedSecrets,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    pki_types::CertificateDer,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};

/// Either role's side of a handshake.
pub trait Session {
    /// Distinguishes the roles in rustls' types.
    type Data;

    /// One step over what was received.
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// Whether the peer still has to prove itself.
    fn is_handshaking(&self) -> bool;
    /// The protocol agreed on, and the certificates of the peer, leaf first.
    fn agreed(&self) -> (Option<Vec<u8>>, Vec<CertificateDer<'static>>);
    /// The traffic keys, and what makes their successors.
    ///
    /// # Errors
    /// The handshake is not over.
    fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error>;
}

/// Makes new traffic keys when one side asks for it.
pub enum Keys {
    /// Of a client.
    Client(KernelConnection<ClientConnectionData>),
    /// Of a server.
    Server(KernelConnection<ServerConnectionData>),
}

macro_rules! session {
    ($connection:ty, $data:ty, $keys:path) => {
        impl Session for $connection {
            type Data = $data;

            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(incoming)
            }

            fn is_handshaking(&self) -> bool {
                (**self).is_handshaking()
            }

            fn agreed(&self) -> (Option<Vec<u8>>, Vec<CertificateDer<'static>>) {
                let certificates = self.peer_certificates().unwrap_or_default();
                (self.alpn_protocol().map(<[u8]>::to_vec), certificates.to_vec())
            }

            fn into_keys(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
                self.dangerous_into_kernel_connection().map(|(secrets, keys)| (secrets, $keys(keys)))
            }
        }
    };
}

session!(UnbufferedClientConnection, ClientConnectionData, Keys::Client);
session!(UnbufferedServerConnection, ServerConnectionData, Keys::Server);

/// What a handshake leaves.
pub struct Established {
    /// The application protocol agreed on.
    pub alpn: Option<Vec<u8>>,
    /// Certificates of the peer, leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Traffic keys.
    pub secrets: ExtractedSecrets,
    /// Their successors.
    pub keys: Keys,
    /// Ciphertext that came with the end of the handshake.
    pub incoming: Incoming,
    /// Bytes of the application that came with it.
    pub early: Vec<u8>,
}

/// What is to be done after a step; the step itself borrows the session.
enum Next {
    Again,
    Write,
    Read,
    Done,
    Fail(io::Error),
}

/// Runs the handshake of `session` over `io` to its end.
///
/// # Errors
/// What the transport reports, or `InvalidData` with the [`rustls::Error`].
pub async fn run<IO, S>(io: &mut IO, mut session: S) -> io::Result<Established>
where
    IO: Transport,
    S: Session,
{
    let mut incoming = Incoming::default();
    let mut outgoing = BytesMut::new();
    let mut early = Vec::new();
    loop {
        let (discard, next) = step(&mut session, incoming.pending_mut(), &mut outgoing, &mut early);
        incoming.consume(discard);
        match next {
            Next::Again => {}
            Next::Write => send_all(io, &mut outgoing).await?,
            Next::Done if !session.is_handshaking() => break,
            Next::Read | Next::Done => {
                if poll_fn(|cx| incoming.poll_fill(io, cx)).await? == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the peer closed the connection during the TLS handshake",
                    ));
                }
            }
            Next::Fail(error) => {
                explain(io, &mut session, &mut incoming, &mut outgoing).await;
                return Err(error);
            }
        }
    }
    let (alpn, certificates) = session.agreed();
    let (secrets, keys) = session.into_keys().map_err(invalid)?;
    Ok(Established { alpn, certificates, secrets, keys, incoming, early })
}

/// One step of the state machine: bytes to drop from the front of `received`, and what to do then.
fn step<S: Session>(
    session: &mut S,
    received: &mut [u8],
    outgoing: &mut BytesMut,
    early: &mut Vec<u8>,
) -> (usize, Next) {
    let UnbufferedStatus { mut discard, state } = session.process(received);
    let next = match state {
        Err(error) => Next::Fail(invalid(error)),
        Ok(ConnectionState::EncodeTlsData(data)) => encode(data, outgoing),
        // Marked as sent here: when sending fails there is no second try.
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Next::Write
        }
        Ok(ConnectionState::BlockedHandshake) => Next::Read,
        Ok(ConnectionState::WriteTraffic(_)) => Next::Done,
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut next = Next::Again;
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        early.extend_from_slice(record.payload);
                    }
                    Err(error) => {
                        next = Next::Fail(invalid(error));
                        break;
                    }
                }
            }
            next
        }
        Ok(_) => Next::Fail(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the peer ended the TLS session during the handshake",
        )),
    };
    (discard, next)
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, outgoing: &mut BytesMut) -> Next {
    let before = outgoing.len();
    loop {
        match data.encode(outgoing.get_mut(before..).unwrap_or_default()) {
            Ok(written) => {
                outgoing.truncate(before + written);
                return Next::Again;
            }
            Err(EncodeError::InsufficientSize(needed)) => outgoing.resize(before + needed.required_size, 0),
            Err(error) => return Next::Fail(io::Error::other(error.to_string())),
        }
    }
}

/// Sends the alert that tells the peer why, as far as the socket takes it at once.
async fn explain<IO: Transport, S: Session>(
    io: &mut IO,
    session: &mut S,
    incoming: &mut Incoming,
    outgoing: &mut BytesMut,
) {
    // The alert is queued: one step encodes it, the next would say that it is to be sent. What was received stays in its
    // place, because the session remembers where in it messages lie.
    let (discard, _) = step(session, incoming.pending_mut(), outgoing, &mut Vec::new());
    incoming.consume(discard);
    poll_fn(|cx| {
        let _ = io.poll_send(cx, outgoing);
        let _ = Pin::new(&mut *io).poll_flush(cx);
        Poll::Ready(())
    })
    .await;
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
