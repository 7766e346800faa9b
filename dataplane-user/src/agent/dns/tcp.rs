//! DNS over TCP: messages behind two bytes of length (RFC 1035 4.2.2), several to a connection (RFC 7766).

use std::{
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

use super::{Fate, Place, decide};
use crate::{
    agent::{
        connect::{Link, Neighbour},
        worker::{Pod, Worker},
    },
    dns::message::Transport,
    hbone::{ConnError, Leg},
    observe::counters::Counters,
    tunnel::h2io::StreamIo,
};

/// A connection on which nothing happens for so long ends.
const IDLE: Duration = Duration::from_secs(30);
/// What does not look like DNS by then is carried as it is: some other protocol uses the port.
const FIRST_MESSAGE: Duration = Duration::from_secs(1);
/// Shortest message: a header.
const SHORTEST: usize = 12;

trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// Whatever carries bytes to the server that was asked.
type Server = Box<dyn Duplex>;

fn stream_of(link: Link) -> Server {
    match link {
        Link::Socket(socket) | Link::Local(Neighbour { socket, .. }) => Box::new(socket),
        Link::Stream(stream, _) => {
            let (send, receive, slot) = stream.into_halves();
            Box::new(StreamIo::new(send, receive, Some(slot)))
        }
    }
}

/// What is known of one connection.
struct Conversation<'a, O> {
    worker: &'a Rc<Worker>,
    pod: &'a Rc<Pod>,
    open: O,
    application: TcpStream,
    server: Option<Server>,
    /// Bytes of the application that make no message yet.
    asked: BytesMut,
    /// Bytes of the server that make no message yet.
    answered: BytesMut,
    /// The application has no more questions.
    finished: bool,
    /// Questions of ours, to know an end that left somebody waiting.
    started: Option<Instant>,
}

/// Serves a connection of an application to port 53: answers what is the mesh's, and passes the rest to the server that `open`
/// connects to, when the first such message comes.
///
/// # Errors
/// Those of `open`, or of what it opened.
pub async fn serve(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    application: TcpStream,
    open: impl AsyncFnMut() -> Result<Link, ConnError>,
) -> Result<(), ConnError> {
    let mut conversation = Conversation {
        worker,
        pod,
        open,
        application,
        server: None,
        asked: BytesMut::new(),
        answered: BytesMut::new(),
        finished: false,
        started: None,
    };
    let result = conversation.run().await;
    if result.is_err() {
        // A reset, never an end of data that could be taken for an answer.
        let _ = conversation.application.set_zero_linger();
    }
    result
}

fn failed(error: io::Error) -> ConnError {
    ConnError::fatal(Leg::Backend, "the name server", error)
}

impl<O: AsyncFnMut() -> Result<Link, ConnError>> Conversation<'_, O> {
    async fn run(&mut self) -> Result<(), ConnError> {
        let first = timeout(FIRST_MESSAGE, self.first_message()).await;
        match first {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) if self.asked.is_empty() => return Ok(()),
            Ok(Err(error)) => return Err(failed(error)),
            Ok(Ok(false)) | Err(_) => return self.carry().await,
        }
        loop {
            while let Some(message) = take_message(&mut self.asked) {
                self.message(&message).await?;
            }
            match timeout(IDLE, self.more()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(failed(error)),
            }
        }
    }

    /// Reads until there is a message; false if what comes is none.
    async fn first_message(&mut self) -> io::Result<bool> {
        loop {
            if let Some(length) = message_length(&self.asked) {
                if length < SHORTEST {
                    return Ok(false);
                }
                if self.asked.len() >= length + 2 {
                    return Ok(true);
                }
            }
            if self.application.read_buf(&mut self.asked).await? == 0 {
                return Ok(false);
            }
        }
    }

    /// Carries the connection as any other.
    async fn carry(&mut self) -> Result<(), ConnError> {
        let mut server = stream_of((self.open)().await?);
        server.write_all(&self.asked).await.map_err(failed)?;
        match copy_bidirectional(&mut self.application, &mut server).await {
            Ok(_) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Answers one message or passes it on.
    async fn message(&mut self, message: &[u8]) -> Result<(), ConnError> {
        let counters = &self.worker.shared.counters.dns;
        let Some(_place) = Place::take(self.worker, self.pod) else {
            return Err(failed(io::Error::other("too many questions of this pod are in work")));
        };
        let prefix = (message.len() as u16).to_be_bytes();
        match decide(self.worker, self.pod, message, Transport::Stream).await {
            Fate::Answered(bytes) => {
                let length = (bytes.len() as u16).to_be_bytes();
                self.application.write_all(&[&length, bytes.as_slice()].concat()).await.map_err(failed)
            }
            Fate::Forward(_) => {
                Counters::add(&counters.upstream_requests);
                self.started = Some(Instant::now());
                let server = match &mut self.server {
                    Some(server) => server,
                    None => {
                        let opened = (self.open)().await;
                        if opened.is_err() {
                            Counters::add(&counters.upstream_failures);
                        }
                        self.server.insert(stream_of(opened?))
                    }
                };
                server.write_all(&[&prefix, message].concat()).await.map_err(failed)?;
                server.flush().await.map_err(failed)
            }
        }
    }

    /// Waits for more of either side and passes whole messages of the server back; false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        let Some(server) = &mut self.server else {
            return Ok(self.application.read_buf(&mut self.asked).await? > 0);
        };
        let from_server = tokio::select! {
            read = self.application.read_buf(&mut self.asked), if !self.finished => {
                if read? == 0 {
                    self.finished = true;
                    server.shutdown().await?;
                }
                return Ok(true);
            }
            read = server.read_buf(&mut self.answered) => read?,
        };
        if from_server == 0 {
            let rest = std::mem::take(&mut self.answered);
            self.application.write_all(&rest).await?;
            self.application.shutdown().await?;
            return Ok(false);
        }
        while let Some(message) = take_message(&mut self.answered) {
            if let Some(started) = self.started.take() {
                self.worker.shared.counters.dns.took(started.elapsed());
            }
            let length = (message.len() as u16).to_be_bytes();
            self.application.write_all(&[&length, &message[..]].concat()).await?;
        }
        Ok(true)
    }
}

fn message_length(buffer: &[u8]) -> Option<usize> {
    let prefix = buffer.first_chunk::<2>()?;
    Some(usize::from(u16::from_be_bytes(*prefix)))
}

/// Takes the first whole message out of a buffer.
fn take_message(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = message_length(buffer)?;
    if buffer.len() < length + 2 {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole() {
        let mut buffer = BytesMut::from(&b"\0\x03abc\0\0\0\x02d"[..]);
        assert_eq!(take_message(&mut buffer).as_deref(), Some(&b"abc"[..]));
        assert_eq!(take_message(&mut buffer).as_deref(), Some(&b""[..]));
        assert_eq!(take_message(&mut buffer), None, "the last one is not whole");
        buffer.extend_from_slice(b"e");
        assert_eq!(take_message(&mut buffer).as_deref(), Some(&b"de"[..]));
    }
}
