//! Sockets that live inside a pod's network namespace, for a worker that does not.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;

use super::enrol::PodId;
use super::helper::wire::{self, MAX_FDS, PACKET_LENGTH, Packet, Reader, tag};
use super::system::watch;

/// Smallest batch that is asked for.
const SMALLEST_BATCH: usize = 2;
/// A stock nobody took from for this long is given up.
const IDLE: Duration = Duration::from_secs(10);

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SocketKind {
    /// To another engine, or to a destination outside the mesh.
    Upstream = 0,
    /// To the application of the same pod, with the client's address as source.
    Delivery = 1,
    /// A datagram to a name server.
    Datagram = 2,
}

impl SocketKind {
    /// The kind that travels as this number.
    pub(super) fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Upstream,
            2 => Self::Datagram,
            _ => Self::Delivery,
        }
    }
}

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl Family {
    /// The family that travels as this number.
    pub(super) fn from_number(number: u8) -> Self {
        if number == Self::V4 as u8 { Self::V4 } else { Self::V6 }
    }
}

impl From<IpAddr> for Family {
    fn from(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// One worker's channel to the helper, on its way to that worker.
#[derive(Debug)]
pub struct SocketChannel(pub(super) OwnedFd);

impl SocketChannel {
    /// A channel whose other end nobody holds: whatever is asked for fails, as when the helper is gone.
    ///
    /// # Errors
    /// No pair of sockets can be made.
    pub fn closed() -> io::Result<Self> {
        wire::pair().map(|(ours, _)| Self(ours))
    }
}

type Key = (PodId, SocketKind, Family);

/// Stock of one kind of socket of one pod.
#[derive(Debug)]
struct Stock {
    ready: Vec<OwnedFd>,
    batch: usize,
    /// A request is on its way.
    asked: bool,
    /// The last answer was this error, and how many there were.
    failed: Option<i32>,
    failures: u64,
    taken: Instant,
}

impl Stock {
    fn new(now: Instant) -> Self {
        Self { ready: Vec::new(), batch: SMALLEST_BATCH, asked: false, failed: None, failures: 0, taken: now }
    }
}

/// Gives one worker sockets inside pods' namespaces, from a stock that grows with the demand.
#[derive(Debug)]
pub struct SocketSource {
    channel: AsyncFd<OwnedFd>,
    stocks: RefCell<HashMap<Key, Stock>>,
    swept: RefCell<Instant>,
}

impl SocketSource {
    /// Takes over a channel. Must be called inside the worker's runtime.
    ///
    /// # Errors
    /// If the channel cannot be registered with the runtime.
    pub fn new(channel: SocketChannel) -> io::Result<Self> {
        let nonblocking = std::os::unix::net::UnixDatagram::from(channel.0);
        nonblocking.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Self { channel: watch(OwnedFd::from(nonblocking))?, stocks: RefCell::default(), swept: RefCell::new(now) })
    }

    /// A socket of this kind inside the pod's namespace, not connected, non-blocking.
    ///
    /// # Errors
    /// The helper's error when it could not make one (`ENOENT`: the pod is not enrolled), `BrokenPipe` when it is gone.
    pub async fn take(&self, pod: PodId, kind: SocketKind, family: Family) -> io::Result<OwnedFd> {
        let key = (pod, kind, family);
        let failures_before = self.stocks.borrow().get(&key).map_or(0, |stock| stock.failures);
        let mut missed = false;
        loop {
            if let Some(socket) = self.pop(key, &mut missed, failures_before)? {
                return Ok(socket);
            }
            let mut ready = self.channel.readable().await?;
            match ready.try_io(|channel| self.receive(channel.get_ref())) {
                Ok(result) => result?,
                Err(_would_block) => {}
            }
        }
    }

    /// Drops the stock of a pod that is released.
    pub fn release(&self, pod: PodId) {
        self.stocks.borrow_mut().retain(|key, _| key.0 != pod);
    }

    /// One socket from the stock, asking for more when it runs low.
    fn pop(&self, key: Key, missed: &mut bool, failures_before: u64) -> io::Result<Option<OwnedFd>> {
        let now = Instant::now();
        self.sweep(now);
        let mut stocks = self.stocks.borrow_mut();
        let stock = stocks.entry(key).or_insert_with(|| Stock::new(now));
        stock.taken = now;
        let socket = stock.ready.pop();
        if socket.is_none() {
            if stock.failures > failures_before {
                let error = stock.failed.unwrap_or(libc::EIO);
                return Err(io::Error::from_raw_os_error(error));
            }
            if !*missed {
                *missed = true;
                stock.batch = (stock.batch * 2).min(MAX_FDS);
            }
        }
        if !stock.asked && stock.ready.len() < stock.batch / 2 {
            let (pod, kind, family) = key;
            let packet = Packet::new(tag::SOCKETS).u32(pod.0).u8(kind as u8).u8(family as u8).u8(stock.batch as u8);
            match packet.send(self.channel.get_ref().as_fd(), &[]) {
                Ok(()) => stock.asked = true,
                // The helper is behind by a full socket buffer of requests: whoever waits asks again when an answer comes.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(socket)
    }

    /// Puts one answer of the helper into stock.
    fn receive(&self, channel: &OwnedFd) -> io::Result<()> {
        let mut buffer = [0; PACKET_LENGTH];
        let (length, fds) = wire::receive(channel.as_fd(), &mut buffer)?;
        if length == 0 {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the netns helper is gone"));
        }
        let mut fields = Reader::new(buffer.get(..length).unwrap_or_default());
        if fields.u8()? != tag::BATCH {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer of the netns helper"));
        }
        let pod = PodId(fields.u32()?);
        let kind = SocketKind::from_number(fields.u8()?);
        let family = Family::from_number(fields.u8()?);
        let error = fields.i32()?;
        // Without an entry the pod was released meanwhile: the sockets are closed here.
        if let Some(stock) = self.stocks.borrow_mut().get_mut(&(pod, kind, family)) {
            stock.asked = false;
            if fds.is_empty() {
                stock.failed = Some(error);
                stock.failures += 1;
            }
            stock.ready.extend(fds);
        }
        Ok(())
    }

    /// Once a second, gives up stocks that are not used any more.
    fn sweep(&self, now: Instant) {
        if now.duration_since(*self.swept.borrow()) < Duration::from_secs(1) {
            return;
        }
        self.swept.replace(now);
        self.stocks.borrow_mut().retain(|_, stock| {
            if now.duration_since(stock.taken) < IDLE {
                return true;
            }
            stock.ready.clear();
            stock.batch = SMALLEST_BATCH;
            stock.asked
        });
    }
}
