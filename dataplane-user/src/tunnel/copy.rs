//! The byte path: between an application's socket and a stream, and between two sockets.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    net::Shutdown,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, Interest},
    net::{TcpStream, tcp::ReadHalf},
    sync::Notify,
};

use super::{
    ends::{CopyError, Role, Side, is_fin},
    h2io::poll_send_capacity,
    settings::SendStream,
};

/// The smallest and the largest read of an application's socket, in bytes. Twice the largest costs more than it saves: what is
/// read, framed and encrypted then no longer fits the cache next to it.
const READ_BYTES: (usize, usize) = (4 << 10, 128 << 10);
/// Received frames handed to one vectored write.
const FRAMES_PER_WRITE: usize = 32;

/// Bytes carried so far, readable from anywhere while the copy runs.
#[derive(Default, Debug)]
pub struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counts {
    /// From the near socket into the stream or the far socket.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// On the way back.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

/// Adds to a counter that only one thread writes.
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed) + count, Relaxed);
}

/// Reads that follow what the sender does: small while little comes, large when the buffer was filled.
struct Reader {
    size: usize,
}

impl Reader {
    fn new() -> Self {
        Self { size: READ_BYTES.0 }
    }

    /// Waits for data, then reads it into a buffer made for it; an idle connection holds none. Empty means the end.
    async fn read(&mut self, socket: &mut ReadHalf<'_>) -> io::Result<Bytes> {
        // A read that did not fill its buffer tells the runtime that the socket is empty, which saves the next system
        // call; only polling does that, a separate wait for readiness does not.
        let buffer = poll_fn(|cx| {
            let mut buffer = BytesMut::with_capacity(self.size);
            let read = pin!(socket.read_buf(&mut buffer)).poll(cx);
            read.map_ok(|_| buffer)
        })
        .await?;
        if buffer.len() == self.size {
            self.size = (self.size * 4).min(READ_BYTES.1);
        } else if buffer.len() < self.size / 4 {
            self.size = (self.size / 2).max(READ_BYTES.0);
        }
        Ok(buffer.freeze())
    }
}

/// Socket to stream, until the application sends FIN.
async fn upload(
    socket: &mut ReadHalf<'_>,
    send: &mut SendStream,
    counts: &Counts,
    received: &Notify,
) -> Result<(), CopyError> {
    let mut reader = Reader::new();
    loop {
        let data = reader.read(socket).await.map_err(|error| CopyError::socket(Side::Near, error))?;
        let total = data.len() as u64;
        if push(send, data).await.is_err() {
            return closed(send, total, received).await;
        }
        if total == 0 {
            return Ok(());
        }
        add(&counts.sent, total);
    }
}

/// Hands data to a stream; no data is its end.
async fn push(send: &mut SendStream, mut data: Bytes) -> Result<(), h2::Error> {
    if data.is_empty() {
        return send.send_data(data, true);
    }
    while !data.is_empty() {
        let granted = poll_fn(|cx| poll_send_capacity(send, data.len(), cx)).await?;
        send.send_data(data.split_to(granted), false)?;
    }
    Ok(())
}

/// What it means that a stream takes nothing more: its receiving half says why, and only if that has ended before, it is what
/// the peer said of ours.
async fn closed(send: &mut SendStream, owed: u64, received: &Notify) -> Result<(), CopyError> {
    received.notified().await;
    match poll_fn(|cx| Poll::Ready(send.poll_reset(cx))).await {
        // A peer that has answered in full needs nothing more of the question (RFC 9113, 8.1).
        Poll::Ready(Ok(Reason::NO_ERROR)) if owed == 0 => Ok(()),
        Poll::Ready(Ok(reason)) => Err(CopyError::given_up(reason)),
        Poll::Ready(Err(error)) => Err(CopyError::stream(error)),
        Poll::Pending => Err(CopyError::Reset(Side::Far)),
    }
}

/// Stream to socket, until END_STREAM.
async fn download(receive: &mut RecvStream, socket: &TcpStream, counts: &Counts, role: Role) -> Result<(), CopyError> {
    let mut frames: Vec<Bytes> = Vec::new();
    let mut ended = false;
    // A gateway never relays plaintext: the first record is a handshake (RFC 8446, 5.1).
    let mut checked = role != Role::Gateway;
    while !ended {
        match poll_fn(|cx| receive.poll_data(cx)).await {
            Some(Ok(frame)) => frames.push(frame),
            Some(Err(error)) if is_fin(&error) => break,
            Some(Err(error)) => return Err(CopyError::stream(error)),
            None => break,
        }
        // Frames that are already here share one write.
        let mut failure = None;
        poll_fn(|cx| {
            while frames.len() < FRAMES_PER_WRITE {
                match receive.poll_data(cx) {
                    Poll::Ready(Some(Ok(frame))) => frames.push(frame),
                    Poll::Ready(Some(Err(error))) => {
                        failure = Some(error);
                        break;
                    }
                    Poll::Ready(None) => {
                        ended = true;
                        break;
                    }
                    Poll::Pending => break,
                }
            }
            Poll::Ready(())
        })
        .await;
        if !checked && let Some(byte) = frames.iter().find_map(|frame| frame.first()) {
            // 22 is the record type "handshake".
            if *byte != 22 {
                return Err(CopyError::NotTls);
            }
            checked = true;
        }
        let total: usize = frames.iter().map(Bytes::len).sum();
        write_all(socket, &mut frames).await.map_err(|error| CopyError::socket(Side::Near, error))?;
        let _ = receive.flow_control().release_capacity(total);
        add(&counts.received, total as u64);
        match failure {
            Some(error) if is_fin(&error) => break,
            Some(error) => return Err(CopyError::stream(error)),
            None => {}
        }
    }
    Ok(())
}

/// Writes every frame and empties the list.
async fn write_all(socket: &TcpStream, frames: &mut Vec<Bytes>) -> io::Result<()> {
    let mut done = 0;
    while done < frames.len() {
        let slices: Vec<IoSlice<'_>> = frames.iter().skip(done).map(|frame| IoSlice::new(frame)).collect();
        match socket.try_write_vectored(&slices) {
            Ok(mut written) => {
                for frame in frames.iter_mut().skip(done) {
                    if written < frame.len() {
                        let _ = frame.split_to(written);
                        break;
                    }
                    written -= frame.len();
                    done += 1;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.ready(Interest::WRITABLE).await?;
            }
            Err(error) => return Err(error),
        }
    }
    frames.clear();
    Ok(())
}

/// Sends FIN on a socket that is only borrowed. A peer that is gone already has no use for one.
fn finish_writing(socket: &TcpStream) -> io::Result<()> {
    match SockRef::from(socket).shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

/// Carries both directions between `socket` and a stream until both are done or one fails.
///
/// FIN and END_STREAM each close one half only. After a reset or a failure the other side is reset: the stream with the
/// reason that `role` gives, the socket by the RST that follows from [`TcpStream::set_zero_linger`]. So are both when `revoked`
/// yields a reason.
///
/// # Errors
/// The side that failed, see [`CopyError`].
pub async fn socket_and_stream(
    mut socket: TcpStream,
    mut send: SendStream,
    mut receive: RecvStream,
    counts: &Counts,
    role: Role,
    revoked: impl Future<Output = String>,
) -> Result<(), CopyError> {
    let (mut reading, writing) = socket.split();
    let received = Notify::new();
    let up = upload(&mut reading, &mut send, counts, &received);
    let down = async {
        download(&mut receive, writing.as_ref(), counts, role).await?;
        received.notify_one();
        finish_writing(writing.as_ref()).map_err(|error| CopyError::socket(Side::Near, error))
    };
    let carried = async { tokio::try_join!(up, down).map(|_| ()) };
    let result = until(carried, revoked).await;
    match &result {
        Ok(()) => {}
        Err(CopyError::Reset(Side::Near) | CopyError::Socket(_)) => {
            send.send_reset(role.reason());
            let _ = socket.set_zero_linger();
        }
        Err(CopyError::NotTls | CopyError::Revoked(_)) => {
            send.send_reset(Reason::CANCEL);
            let _ = socket.set_zero_linger();
        }
        Err(CopyError::Reset(Side::Far) | CopyError::Stream(_) | CopyError::Lost(_)) => {
            let _ = socket.set_zero_linger();
        }
    }
    result
}

/// One direction between two sockets, until FIN.
async fn pump(
    (from, from_side): (&mut ReadHalf<'_>, Side),
    (to, to_side): (&TcpStream, Side),
    bytes: &AtomicU64,
) -> Result<(), CopyError> {
    let mut reader = Reader::new();
    let mut frames = Vec::with_capacity(1);
    loop {
        let data = reader.read(from).await.map_err(|error| CopyError::socket(from_side, error))?;
        let total = data.len() as u64;
        if data.is_empty() {
            return finish_writing(to).map_err(|error| CopyError::socket(to_side, error));
        }
        frames.push(data);
        write_all(to, &mut frames).await.map_err(|error| CopyError::socket(to_side, error))?;
        add(bytes, total);
    }
}

/// What `carried` yields, unless `revoked` yields a reason first.
async fn until(
    carried: impl Future<Output = Result<(), CopyError>>,
    revoked: impl Future<Output = String>,
) -> Result<(), CopyError> {
    tokio::select! {
        biased;
        result = carried => result,
        reason = revoked => Err(CopyError::Revoked(reason)),
    }
}

/// Carries both directions between two sockets until both are done, one fails, or `revoked` yields a reason; after a failure
/// both are reset.
///
/// # Errors
/// The socket that was reset or failed, or the reason.
pub async fn socket_and_socket(
    mut near: TcpStream,
    mut far: TcpStream,
    counts: &Counts,
    revoked: impl Future<Output = String>,
) -> Result<(), CopyError> {
    let (mut near_reading, near_writing) = near.split();
    let (mut far_reading, far_writing) = far.split();
    let carried = async {
        tokio::try_join!(
            pump((&mut near_reading, Side::Near), (far_writing.as_ref(), Side::Far), &counts.sent),
            pump((&mut far_reading, Side::Far), (near_writing.as_ref(), Side::Near), &counts.received)
        )
        .map(|_| ())
    };
    let result = until(carried, revoked).await;
    if result.is_err() {
        let _ = near.set_zero_linger();
        let _ = far.set_zero_linger();
    }
    result
}

#[cfg(test)]
mod tests;
