//! One HTTP/2 stream as a byte stream: what an inner tunnel runs over.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{client::StreamSlot, settings::SendStream, tls::Transport};

/// Most bytes taken from the writer at once.
const WRITE_BYTES: usize = 256 << 10;

/// Both halves of an HTTP/2 stream.
pub struct StreamIo {
    send: SendStream,
    receive: RecvStream,
    chunk: Bytes,
    end_sent: bool,
    end_received: bool,
    _slot: Option<StreamSlot>,
}

impl StreamIo {
    /// Joins the halves of an established stream; `slot` keeps it counted at its tunnel.
    pub fn new(send: SendStream, receive: RecvStream, slot: Option<StreamSlot>) -> Self {
        Self { _slot: slot, send, receive, chunk: Bytes::new(), end_sent: false, end_received: false }
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        // A stream left half open keeps its slot at the peer; ending it quietly frees the slot there.
        if !self.end_sent {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}

/// Waits until at least one byte may be sent on `send`, for a writer that wants `wanted`.
///
/// # Errors
/// The stream or its tunnel is gone.
pub fn poll_send_capacity(
    send: &mut SendStream,
    wanted: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, h2::Error>> {
    send.reserve_capacity(wanted);
    loop {
        // Capacity granted earlier is not announced again.
        let available = send.capacity();
        if available > 0 {
            return Poll::Ready(Ok(available.min(wanted)));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(error)),
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, target: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = target.filled().len();
        while target.remaining() > 0 {
            if this.chunk.is_empty() {
                if this.end_received {
                    break;
                }
                match this.receive.poll_data(cx) {
                    Poll::Ready(Some(Ok(chunk))) => {
                        // Taken out of the tunnel at once: what is not read is bounded by this one frame.
                        let _ = this.receive.flow_control().release_capacity(chunk.len());
                        this.chunk = chunk;
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) if error.reason() == Some(Reason::NO_ERROR) => {
                        this.end_received = true;
                        break;
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(broken(error))),
                    Poll::Ready(None) => {
                        this.end_received = true;
                        break;
                    }
                    Poll::Pending if target.filled().len() > before => break,
                    Poll::Pending => return Poll::Pending,
                }
            }
            let count = this.chunk.len().min(target.remaining());
            target.put_slice(this.chunk.get(..count).unwrap_or_default());
            this.chunk.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl Transport for StreamIo {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut BytesMut) -> Poll<io::Result<()>> {
        let granted = ready!(poll_send_capacity(&mut self.send, data.len().min(WRITE_BYTES), cx)).map_err(broken)?;
        self.send.send_data(data.split_to(granted).freeze(), false).map_err(broken)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let granted = ready!(poll_send_capacity(&mut this.send, data.len().min(WRITE_BYTES), cx)).map_err(broken)?;
        let frame = Bytes::copy_from_slice(data.get(..granted).unwrap_or(data));
        this.send.send_data(frame, false).map_err(broken)?;
        Poll::Ready(Ok(granted))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.end_sent {
            this.end_sent = true;
            this.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}
