//! The daemon's side of the control channel.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::entry;
use super::podnet::{Saved, StepError};
use super::wire::{self, PACKET_LENGTH, Packet, Reader, tag};
use crate::redirect::enrol::{PodId, WorkerListeners};
use crate::redirect::sockets::Family;

/// Sends requests and waits for their answers, one at a time.
#[derive(Debug)]
pub(in crate::redirect) struct Control {
    channel: OwnedFd,
}

/// What the helper found and made in a namespace.
#[derive(Debug)]
pub(in crate::redirect) struct OpenedPod {
    pub(in crate::redirect) saved: Saved,
    pub(in crate::redirect) addresses: Vec<IpAddr>,
    pub(in crate::redirect) listeners: Vec<WorkerListeners>,
}

/// One answer with the descriptors beside it.
struct Answer {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Control {
    pub(super) fn new(channel: OwnedFd) -> Self {
        Self { channel }
    }

    /// Ends the conversation, and with it the helper.
    pub(super) fn close(&self) {
        // SAFETY: no pointer is passed; the descriptor stays open until it is dropped.
        unsafe { libc::shutdown(self.channel.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Gives the helper a worker's channel to serve.
    pub(super) fn add_channel(&self, channel: BorrowedFd<'_>) -> io::Result<()> {
        Packet::new(tag::CHANNEL).send(self.channel.as_fd(), &[channel])
    }

    /// Sets a namespace up for `workers` workers, with listeners on ports that nobody has if they have to be `apart`.
    pub(in crate::redirect) fn open(
        &self,
        pod: PodId,
        workers: usize,
        apart: bool,
        netns: BorrowedFd<'_>,
    ) -> Result<OpenedPod, StepError> {
        let request = Packet::new(tag::OPEN).u32(pod.0).u32(workers as u32).u8(u8::from(apart));
        request.send(self.channel.as_fd(), &[netns]).map_err(talking)?;
        let mut listeners = Vec::with_capacity(workers);
        loop {
            let answer = self.answer()?;
            let mut fields = Reader::new(&answer.bytes);
            match fields.u8().map_err(talking)? {
                tag::LISTENERS => listeners.push(worker_listeners(answer.fds)?),
                tag::OPENED => {
                    let saved = Saved::read(&mut fields).map_err(talking)?;
                    let addresses = fields.addresses().map_err(talking)?;
                    return Ok(OpenedPod { saved, addresses, listeners });
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Removes rules and routes and restores sysctl values in a namespace.
    pub(in crate::redirect) fn undo(&self, saved: Saved, netns: BorrowedFd<'_>) -> Result<(), StepError> {
        let request = saved.write(Packet::new(tag::UNDO));
        request.send(self.channel.as_fd(), &[netns]).map_err(talking)?;
        self.done()
    }

    /// Resets the connections of a namespace that are open past the engine.
    pub(in crate::redirect) fn close_existing(&self, netns: BorrowedFd<'_>) -> Result<(), StepError> {
        Packet::new(tag::CLOSE_EXISTING).send(self.channel.as_fd(), &[netns]).map_err(talking)?;
        self.done()
    }

    /// Opens DNS sockets at an address of a namespace, one for each port, bound to it where it is free.
    pub(in crate::redirect) fn dns_sockets(
        &self,
        address: IpAddr,
        ports: &[u16],
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<UdpSocket>, StepError> {
        let mut request = Packet::new(tag::DNS).address(address);
        for port in ports {
            request = request.u32(u32::from(*port));
        }
        request.send(self.channel.as_fd(), &[netns]).map_err(talking)?;
        let answer = self.answer()?;
        if answer.bytes.first() != Some(&tag::DNS_SOCKETS) || answer.fds.len() != ports.len() {
            return Err(unexpected());
        }
        Ok(answer.fds.into_iter().map(UdpSocket::from).collect())
    }

    /// Makes the namespace for node ports, or brings it to what is wanted now.
    pub(in crate::redirect) fn entry(
        &self,
        wanted: &entry::Wanted,
        node: BorrowedFd<'_>,
    ) -> Result<entry::Opened, StepError> {
        wanted.write(Packet::new(tag::ENTRY)).send(self.channel.as_fd(), &[node]).map_err(talking)?;
        let Answer { bytes, fds } = self.answer()?;
        let mut fields = Reader::new(&bytes);
        let (Ok(tag::ENTRY_OPENED), Some(netns)) = (fields.u8(), fds.into_iter().next()) else {
            return Err(unexpected());
        };
        let device = fields.u32().map_err(talking)?;
        let mut uplinks = Vec::new();
        for _ in 0..fields.u8().map_err(talking)? {
            uplinks.push((fields.text().map_err(talking)?, fields.u32().map_err(talking)?));
        }
        let addresses = fields.addresses().map_err(talking)?;
        Ok(entry::Opened { netns, device, uplinks, addresses })
    }

    /// Attaches a program to a device of a namespace; returns the link.
    pub(in crate::redirect) fn attach(
        &self,
        device: u32,
        netns: BorrowedFd<'_>,
        program: BorrowedFd<'_>,
    ) -> Result<OwnedFd, StepError> {
        Packet::new(tag::ATTACH).u32(device).send(self.channel.as_fd(), &[netns, program]).map_err(talking)?;
        let answer = self.answer()?;
        match (answer.bytes.first(), answer.fds.into_iter().next()) {
            (Some(&tag::ATTACHED), Some(link)) => Ok(link),
            _ => Err(unexpected()),
        }
    }

    /// Opens a listener for each worker on a port of a namespace.
    pub(in crate::redirect) fn listen(
        &self,
        port: u16,
        workers: usize,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<TcpListener>, StepError> {
        let request = Packet::new(tag::LISTEN).u32(u32::from(port)).u32(workers as u32);
        request.send(self.channel.as_fd(), &[netns]).map_err(talking)?;
        let mut listeners = Vec::with_capacity(workers);
        loop {
            let answer = self.answer()?;
            let mut fields = Reader::new(&answer.bytes);
            let (Ok(tag::LISTENING), Ok(left)) = (fields.u8(), fields.u32()) else {
                return Err(unexpected());
            };
            listeners.extend(answer.fds.into_iter().map(TcpListener::from));
            if left == 0 {
                return Ok(listeners);
            }
        }
    }

    /// Removes the namespace for node ports.
    pub(in crate::redirect) fn entry_close(&self, instance: &str) -> Result<(), StepError> {
        Packet::new(tag::ENTRY_CLOSE).text(instance).send(self.channel.as_fd(), &[]).map_err(talking)?;
        self.done()
    }

    /// A socket in a namespace, as workers get them in batches.
    pub(in crate::redirect) fn socket(&self, family: Family, netns: BorrowedFd<'_>) -> Result<OwnedFd, StepError> {
        Packet::new(tag::SOCKET).u8(family as u8).send(self.channel.as_fd(), &[netns]).map_err(talking)?;
        let mut answer = self.answer()?;
        match (answer.bytes.first(), answer.fds.pop()) {
            (Some(&tag::ONE_SOCKET), Some(socket)) => Ok(socket),
            _ => Err(unexpected()),
        }
    }

    /// Stops sockets for a pod.
    pub(in crate::redirect) fn forget(&self, pod: PodId) -> Result<(), StepError> {
        Packet::new(tag::FORGET).u32(pod.0).send(self.channel.as_fd(), &[]).map_err(talking)?;
        self.done()
    }

    fn done(&self) -> Result<(), StepError> {
        let answer = self.answer()?;
        if answer.bytes.first() == Some(&tag::DONE) { Ok(()) } else { Err(unexpected()) }
    }

    /// The next answer, a failure of the helper as an error.
    fn answer(&self) -> Result<Answer, StepError> {
        let mut buffer = [0; PACKET_LENGTH];
        let (length, fds) = wire::receive(self.channel.as_fd(), &mut buffer).map_err(talking)?;
        if length == 0 {
            return Err(talking(io::Error::new(io::ErrorKind::BrokenPipe, "it is gone; restart the daemon")));
        }
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        let mut fields = Reader::new(&bytes);
        if fields.u8().map_err(talking)? == tag::FAILED {
            let source = io::Error::from_raw_os_error(fields.i32().map_err(talking)?);
            return Err(StepError { action: String::from_utf8_lossy(fields.rest()).into_owned(), source });
        }
        Ok(Answer { bytes, fds })
    }
}

fn talking(source: io::Error) -> StepError {
    StepError { action: String::from("talking to the netns helper"), source }
}

fn unexpected() -> StepError {
    talking(io::Error::new(io::ErrorKind::InvalidData, "unexpected answer"))
}

fn worker_listeners(fds: Vec<OwnedFd>) -> Result<WorkerListeners, StepError> {
    let [outbound, plaintext, hbone] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| unexpected())?;
    Ok(WorkerListeners {
        outbound: TcpListener::from(outbound),
        plaintext: TcpListener::from(plaintext),
        hbone: TcpListener::from(hbone),
    })
}
