//! TLS 1.3 over any byte stream, with reads and writes large enough that system calls do not dominate.

mod aead;
mod handshake;
mod incoming;
mod messages;
mod record;
#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

pub use handshake::Session;
use handshake::{Established, Keys};
use incoming::Incoming;
use messages::{Alert, Message, Messages, Refused};
use record::{Content, HEADER_BYTES, OVERHEAD_BYTES, Opener, PLAINTEXT_BYTES, Sealer};

/// Ciphertext made before the transport has to take it.
const SEALED_BYTES: usize = 256 << 10;
/// Records sealed with one key: far below the limit of AES-GCM (RFC 8446, 5.5: 2^24.5 full records).
const RECORDS_PER_KEY: u64 = 1 << 23;
/// Records in a row that carry nothing; a peer that sends more keeps us busy on purpose.
const EMPTY_RECORDS: u32 = 32;
/// Slices of the writer that one record joins: a frame's header, its payload, and their neighbours.
const PARTS_PER_RECORD: usize = 8;

/// A transport below TLS.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Takes what it can from the front of `data`, at least one byte.
    ///
    /// # Errors
    /// Those of the transport.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut BytesMut) -> Poll<io::Result<()>>;
}

impl Transport for TcpStream {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut BytesMut) -> Poll<io::Result<()>> {
        match ready!(Pin::new(self).poll_write(cx, data))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            count => {
                data.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    }
}

/// Hands all of `data` to `io`.
async fn send_all<IO: Transport>(io: &mut IO, data: &mut BytesMut) -> io::Result<()> {
    while !data.is_empty() {
        poll_fn(|cx| io.poll_send(cx, data)).await?;
    }
    poll_fn(|cx| Pin::new(&mut *io).poll_flush(cx)).await
}

/// A TLS session over `IO`, either role.
pub struct TlsStream<IO> {
    io: IO,
    alpn: Option<Vec<u8>>,
    certificates: Vec<CertificateDer<'static>>,
    keys: Keys,
    sealer: Sealer,
    opener: Opener,
    records_per_key: u64,
    incoming: Incoming,
    /// Opened and not yet read, at the front of `incoming`: where, and the whole record's length.
    opened: Option<(Range<usize>, usize)>,
    /// Came together with the end of the handshake, before the keys were ours.
    early: BytesMut,
    messages: Messages,
    empty_records: u32,
    sealed: BytesMut,
    end_of_input: bool,
    close_sent: bool,
}

impl<IO: Transport> TlsStream<IO> {
    /// Completes the handshake of `session` over `io`. The configuration of the session must allow the extraction of secrets.
    ///
    /// # Errors
    /// Whatever the transport reports, or `InvalidData` with the TLS error: its text names the identities where they were
    /// the cause.
    pub async fn handshake(mut io: IO, session: impl Session) -> io::Result<Self> {
        let Established { alpn, certificates, secrets, keys, incoming, early } =
            handshake::run(&mut io, session).await?;
        Ok(Self {
            io,
            alpn,
            certificates,
            keys,
            sealer: Sealer::new(secrets.tx).map_err(invalid)?,
            opener: Opener::new(secrets.rx).map_err(invalid)?,
            records_per_key: RECORDS_PER_KEY,
            incoming,
            opened: None,
            early: BytesMut::from(early.as_slice()),
            messages: Messages::default(),
            empty_records: 0,
            sealed: BytesMut::new(),
            end_of_input: false,
            close_sent: false,
        })
    }

    /// Hands every sealed record to the transport.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            ready!(self.io.poll_send(cx, &mut self.sealed))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the peer why this ends, as far as the transport takes it at once, and makes the error of it.
    fn refuse(&mut self, cx: &mut Context<'_>, error: Refused) -> io::Error {
        let alert = match error {
            // Who ended the session needs no answer.
            Refused::ByPeer(alert) => return invalid(rustls::Error::AlertReceived(alert)),
            _ => error.alert().to_bytes(),
        };
        if !self.close_sent && self.sealer.seal(Content::Alert, &[&alert], &mut self.sealed).is_ok() {
            self.close_sent = true;
            let _ = self.poll_drain(cx);
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
        invalid(error)
    }

    /// Opens the next record where it lies. False: it is not all here.
    fn open_next(&mut self) -> Result<bool, Refused> {
        let Some(length) = record::length(self.incoming.pending())? else {
            return Ok(false);
        };
        let record = self.incoming.pending_mut().get_mut(..length).unwrap_or_default();
        let (content, count) = self.opener.open(record)?;
        if content == Content::Application {
            self.note_length(count)?;
            self.opened = Some((HEADER_BYTES..HEADER_BYTES + count, length));
        } else {
            let control = record.get(HEADER_BYTES..HEADER_BYTES + count).unwrap_or_default().to_vec();
            self.control(content, &control)?;
            self.incoming.consume(length);
        }
        Ok(true)
    }

    /// Notes a record of application data: too many empty ones in a row are refused.
    fn note_length(&mut self, count: usize) -> Result<(), Refused> {
        self.empty_records = if count == 0 { self.empty_records + 1 } else { 0 };
        if self.empty_records > EMPTY_RECORDS {
            Err(Refused::Unexpected("one empty record after another"))
        } else {
            Ok(())
        }
    }

    /// Moves what was opened in place to the reader.
    fn hand_over(&mut self, target: &mut ReadBuf<'_>) {
        let count = self.early.len().min(target.remaining());
        target.put_slice(&self.early.split_to(count));
        if let Some((range, length)) = &mut self.opened {
            let count = range.len().min(target.remaining());
            let part = self.incoming.pending().get(range.start..range.start + count).unwrap_or_default();
            target.put_slice(part);
            range.start += count;
            if range.start >= range.end {
                let length = *length;
                self.opened = None;
                self.incoming.consume(length);
            }
        }
    }

    /// An alert or a message after the handshake.
    fn control(&mut self, content: Content, data: &[u8]) -> Result<(), Refused> {
        if content == Content::Alert {
            match Alert::parse(data)? {
                Alert::CloseNotify => self.end_of_input = true,
                Alert::UserCanceled => {}
                Alert::Fatal(alert) => return Err(Refused::ByPeer(alert)),
            }
            return Ok(());
        }
        for message in self.messages.push(data)? {
            match (message, &mut self.keys) {
                (Message::KeyUpdate { answer }, _) => {
                    let secrets = match &mut self.keys {
                        Keys::Client(keys) => keys.update_rx_secret(),
                        Keys::Server(keys) => keys.update_rx_secret(),
                    };
                    self.opener = Opener::new(secrets?)?;
                    if answer {
                        self.update_sealer()?;
                    }
                }
                (Message::NewSessionTicket(ticket), Keys::Client(keys)) => keys.handle_new_session_ticket(&ticket)?,
                (Message::NewSessionTicket(_), Keys::Server(_)) => {
                    return Err(Refused::Unexpected("a session ticket from a client"));
                }
            }
        }
        Ok(())
    }

    /// Announces a new key of ours and uses it from the next record on.
    fn update_sealer(&mut self) -> Result<(), Refused> {
        self.sealer.seal(Content::Handshake, &[&messages::KEY_UPDATE], &mut self.sealed)?;
        let secrets = match &mut self.keys {
            Keys::Client(keys) => keys.update_tx_secret(),
            Keys::Server(keys) => keys.update_tx_secret(),
        };
        self.sealer = Sealer::new(secrets?)?;
        Ok(())
    }

    /// Seals what fits from the front of `data`; returns how much that is.
    fn seal(&mut self, data: &[IoSlice<'_>]) -> Result<usize, Refused> {
        let total: usize = data.iter().map(|part| part.len()).sum();
        let room = SEALED_BYTES.saturating_sub(self.sealed.len()).min(total);
        self.sealed.reserve(room + (room / PLAINTEXT_BYTES + 1) * OVERHEAD_BYTES);
        let mut source = data.iter().map(|part| &**part).filter(|part| !part.is_empty());
        let mut rest: &[u8] = &[];
        let mut taken = 0;
        while self.sealed.len() < SEALED_BYTES {
            let mut parts: [&[u8]; PARTS_PER_RECORD] = [&[]; PARTS_PER_RECORD];
            let (mut used, mut length) = (0, 0);
            for part in &mut parts {
                if rest.is_empty() {
                    rest = source.next().unwrap_or_default();
                }
                let (now, later) = rest.split_at(rest.len().min(PLAINTEXT_BYTES - length));
                if now.is_empty() {
                    break;
                }
                (*part, rest) = (now, later);
                length += now.len();
                used += 1;
            }
            if used == 0 {
                break;
            }
            if self.sealer.records() >= self.records_per_key {
                self.update_sealer()?;
            }
            self.sealer.seal(Content::Application, parts.get(..used).unwrap_or_default(), &mut self.sealed)?;
            taken += length;
        }
        Ok(taken)
    }
}

impl<IO> TlsStream<IO> {
    /// The certificates the peer presented, leaf first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The application protocol both sides agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// The transport below.
    pub fn transport(&self) -> &IO {
        &self.io
    }
}

impl<IO: Transport> AsyncRead for TlsStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = target.filled().len();
        loop {
            this.hand_over(target);
            if target.remaining() == 0 || this.end_of_input {
                return Poll::Ready(Ok(()));
            }
            let opened = this.open_next().map_err(|error| this.refuse(cx, error))?;
            // Answers to the peer's key updates leave even if nobody writes.
            if !this.sealed.is_empty() {
                let _ = this.poll_drain(cx)?;
            }
            if opened {
                continue;
            }
            // With something to hand over, what is still on the way can wait.
            if target.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
            if ready!(this.incoming.poll_fill(&mut this.io, cx))? == 0 {
                // A peer that closes without close_notify may have been cut off.
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection without ending the TLS session",
                )));
            }
        }
    }
}

impl<IO: Transport> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.close_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        while this.sealed.len() >= SEALED_BYTES {
            ready!(this.io.poll_send(cx, &mut this.sealed))?;
        }
        Poll::Ready(this.seal(data).map_err(|error| this.refuse(cx, error)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.close_sent {
            this.close_sent = true;
            let alert = Alert::CloseNotify.to_bytes();
            this.sealer.seal(Content::Alert, &[&alert], &mut this.sealed).map_err(invalid)?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
