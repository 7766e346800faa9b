//! TLS over any byte stream, with reads and writes large enough that system calls do not dominate.

use std::{
    cell::RefCell,
    io::{self, BufRead, IoSlice, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::{Connection, pki_types::CertificateDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Ciphertext read from the socket at once: sixteen full TLS records.
const READ_BYTES: usize = 256 << 10;
/// Plaintext encrypted before the socket has to take it.
const WRITE_BYTES: usize = 512 << 10;
/// Ciphertext buffers a worker keeps for its next read.
const SPARE_BUFFERS: usize = 8;

thread_local! {
    /// Buffers between two reads: only a stream with undecrypted bytes holds one, so idle tunnels cost none.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Ciphertext received and not yet decrypted.
#[derive(Default)]
struct Incoming {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Incoming {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn pending(&self) -> &[u8] {
        self.buffer.as_deref().and_then(|buffer| buffer.get(self.start..self.end)).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.release();
        }
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        if let Some(buffer) = self.buffer.take() {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_BUFFERS {
                    spare.push(buffer);
                }
            });
        }
    }

    /// Reads from `io` into an empty buffer; 0 means the end of the stream.
    fn poll_fill<IO: AsyncRead + Unpin>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let buffer = self.buffer.get_or_insert_with(|| {
            SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice())
        });
        let mut view = ReadBuf::new(buffer);
        let polled = Pin::new(io).poll_read(cx, &mut view);
        let count = view.filled().len();
        match polled {
            Poll::Ready(Ok(())) if count > 0 => {
                (self.start, self.end) = (0, count);
                Poll::Ready(Ok(count))
            }
            other => {
                self.release();
                other.map_ok(|()| 0)
            }
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.release();
    }
}

/// A TLS session over `IO`, either role.
pub struct TlsStream<IO> {
    io: IO,
    session: Connection,
    incoming: Incoming,
    end_of_input: bool,
    close_sent: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// Completes the handshake of `session` over `io`.
    ///
    /// # Errors
    /// Whatever the transport reports, or `InvalidData` with the TLS error: its text names the identities where they were
    /// the cause.
    pub async fn handshake(io: IO, session: impl Into<Connection>) -> io::Result<Self> {
        let mut session = session.into();
        session.set_buffer_limit(Some(WRITE_BYTES));
        let mut stream = Self { io, session, incoming: Incoming::default(), end_of_input: false, close_sent: false };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_drain(cx))?;
            if !self.session.is_handshaking() {
                return Pin::new(&mut self.io).poll_flush(cx);
            }
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            if ready!(self.poll_decrypt(cx))? == 0 && self.end_of_input {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer closed the connection during the TLS handshake",
                )));
            }
        }
    }

    /// Feeds ciphertext to the session: what is at hand, else what the transport has. Returns the bytes fed.
    fn poll_decrypt(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.incoming.is_empty() {
            let count = ready!(self.incoming.poll_fill(&mut self.io, cx))?;
            if count == 0 {
                self.end_of_input = true;
                self.session.read_tls(&mut io::empty())?;
                return Poll::Ready(Ok(0));
            }
        }
        let fed = self.session.read_tls(&mut self.incoming.pending())?;
        self.incoming.consume(fed);
        if let Err(error) = self.session.process_new_packets() {
            // The alert tells the peer why; a socket that does not take it now is not worth waiting for.
            let _ = self.poll_drain(cx);
            let _ = Pin::new(&mut self.io).poll_flush(cx);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(fed))
    }

    /// Hands every encrypted record to the transport.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut writer = Transport { io: &mut self.io, cx };
            match self.session.write_tls(&mut writer) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO> TlsStream<IO> {
    /// The certificates the peer presented, leaf first.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.session.peer_certificates().unwrap_or_default()
    }

    /// The application protocol both sides agreed on.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session.alpn_protocol()
    }

    /// The transport below.
    pub fn transport(&self) -> &IO {
        &self.io
    }
}

/// Shows an asynchronous transport to rustls, which writes synchronously.
struct Transport<'a, 'b, IO> {
    io: &'a mut IO,
    cx: &'a mut Context<'b>,
}

impl<IO: AsyncWrite + Unpin> Write for Transport<'_, '_, IO> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match Pin::new(&mut *self.io).poll_write(self.cx, buffer) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match Pin::new(&mut *self.io).poll_write_vectored(self.cx, buffers) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = target.filled().len();
        loop {
            let mut reader = this.session.reader();
            let (taken, closed) = match reader.fill_buf() {
                Ok(chunk) => {
                    let part = chunk.get(..target.remaining()).unwrap_or(chunk);
                    target.put_slice(part);
                    (part.len(), chunk.is_empty())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (0, false),
                // A peer that closes without close_notify may have been cut off; only data before it counts.
                Err(error) => return Poll::Ready(Err(error)),
            };
            reader.consume(taken);
            let progress = target.filled().len() > before;
            if closed || target.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if taken > 0 {
                continue;
            }
            // With something to hand over, only ciphertext already here is worth decrypting first.
            if progress && this.incoming.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match this.poll_decrypt(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if progress => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
            // Key updates and the like want an answer even if nobody writes.
            if this.session.wants_write() {
                let _ = this.poll_drain(cx)?;
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if data.iter().all(|part| part.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            let taken = this.session.writer().write_vectored(data)?;
            if taken > 0 {
                return Poll::Ready(Ok(taken));
            }
            // The session is full: make room, or wait for it.
            ready!(this.poll_drain(cx))?;
        }
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
            this.session.send_close_notify();
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
