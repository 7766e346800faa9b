//! The helper's side: one thread for the control channel, one for each worker channel.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::diag;
use super::entry;
use super::podnet::{self, Opened, Saved, StepError};
use super::wire::{self, MAX_FDS, PACKET_LENGTH, Packet, Reader, tag};
use crate::redirect::bpf;
use crate::redirect::privileges;
use crate::redirect::sockets::{Family, SocketKind};
use crate::redirect::system::{check, current_netns, enter_netns, own};

/// Namespaces of the open pods.
#[derive(Clone, Debug, Default)]
struct Pods(Arc<Mutex<HashMap<u32, Arc<OwnedFd>>>>);

impl Pods {
    fn insert(&self, pod: u32, netns: OwnedFd) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pod, Arc::new(netns));
    }
    fn remove(&self, pod: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod);
    }
    fn get(&self, pod: u32) -> Option<Arc<OwnedFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&pod).cloned()
    }
}

/// Serves the control channel that was inherited as descriptor `fd`, until the other side closes it.
///
/// # Errors
/// If `fd` is not a channel, or the channel fails.
pub fn serve(fd: RawFd, proc: &Path) -> io::Result<()> {
    if fd < 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the helper needs a channel: it is started by the daemon",
        ));
    }
    // SAFETY: no pointer is passed. An end of the parent that closes nothing still ends this process.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: no pointer is passed. A signal to the whole group is for the daemon, which drains with this process's
        // help and then closes the channel.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    privileges::keep_only(privileges::Role::NetnsHelper)?;
    let channel = own(fd);
    let home = Arc::new(current_netns()?);
    let pods = Pods::default();
    let mut buffer = [0; PACKET_LENGTH];
    loop {
        let (length, fds) = match wire::receive(channel.as_fd(), &mut buffer) {
            // A daemon that died with an answer unread leaves a reset instead of an end.
            Ok((0, _)) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            other => other?,
        };
        let mut fields = Reader::new(buffer.get(..length).unwrap_or_default());
        let mut fds = fds.into_iter();
        match fields.u8()? {
            tag::CHANNEL => {
                let worker = fds.next().ok_or_else(missing_descriptor)?;
                let (pods, home) = (pods.clone(), Arc::clone(&home));
                std::thread::Builder::new()
                    .name("sockets".into())
                    .spawn(move || serve_worker(&worker, &pods, &home))?;
            }
            tag::OPEN => {
                let (pod, workers, apart) = (fields.u32()?, fields.u32()?, fields.u8()? != 0);
                let netns = fds.next().ok_or_else(missing_descriptor)?;
                match inside(netns.as_fd(), home.as_fd(), || podnet::open(workers as usize, apart, proc)) {
                    Ok(opened) => {
                        pods.insert(pod, netns);
                        answer_opened(channel.as_fd(), opened)?;
                    }
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::UNDO => {
                let saved = Saved::read(&mut fields)?;
                let netns = fds.next().ok_or_else(missing_descriptor)?;
                match inside(netns.as_fd(), home.as_fd(), || podnet::undo(saved, proc)) {
                    Ok(()) => Packet::new(tag::DONE).send(channel.as_fd(), &[])?,
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::DNS => {
                let netns = fds.next().ok_or_else(missing_descriptor)?;
                match inside(netns.as_fd(), home.as_fd(), || podnet::dns_sockets(&mut fields)) {
                    Ok(sockets) => {
                        let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
                        Packet::new(tag::DNS_SOCKETS).send(channel.as_fd(), &sockets)?;
                    }
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::SOCKET => {
                let family = Family::from_number(fields.u8()?);
                let netns = fds.next().ok_or_else(missing_descriptor)?;
                let made = inside(netns.as_fd(), home.as_fd(), || {
                    podnet::outgoing(SocketKind::Upstream, family)
                        .map_err(|source| StepError { action: String::from("making a socket"), source })
                });
                match made {
                    Ok(socket) => Packet::new(tag::ONE_SOCKET).send(channel.as_fd(), &[socket.as_fd()])?,
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::CLOSE_EXISTING => {
                let netns = fds.next().ok_or_else(missing_descriptor)?;
                match inside(netns.as_fd(), home.as_fd(), diag::close_existing) {
                    Ok(()) => Packet::new(tag::DONE).send(channel.as_fd(), &[])?,
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::ENTRY => {
                let wanted = entry::Wanted::read(&mut fields)?;
                let node = fds.next().ok_or_else(missing_descriptor)?;
                match entry::open(&wanted, node.as_fd(), home.as_fd()) {
                    Ok(opened) => answer_entry(channel.as_fd(), &opened)?,
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::ATTACH => {
                let device = fields.u32()?;
                let netns = fds.next().ok_or_else(missing_descriptor)?;
                let program = fds.next().ok_or_else(missing_descriptor)?;
                let attach = || podnet::step("attaching", bpf::device_link(program.as_fd(), device));
                match inside(netns.as_fd(), home.as_fd(), attach) {
                    Ok(link) => Packet::new(tag::ATTACHED).send(channel.as_fd(), &[link.as_fd()])?,
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::LISTEN => {
                let (port, workers) = (fields.u32()? as u16, fields.u32()? as usize);
                let netns = fds.next().ok_or_else(missing_descriptor)?;
                match inside(netns.as_fd(), home.as_fd(), || entry::listeners(port, workers)) {
                    Ok(listeners) => answer_listeners(channel.as_fd(), &listeners)?,
                    Err(error) => answer_failed(channel.as_fd(), &error)?,
                }
            }
            tag::ENTRY_CLOSE => match entry::close(&fields.text()?) {
                Ok(()) => Packet::new(tag::DONE).send(channel.as_fd(), &[])?,
                Err(error) => answer_failed(channel.as_fd(), &error)?,
            },
            tag::FORGET => {
                pods.remove(fields.u32()?);
                Packet::new(tag::DONE).send(channel.as_fd(), &[])?;
            }
            other => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown request {other}")));
            }
        }
    }
}

fn missing_descriptor() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "request without its descriptor")
}

/// Runs `action` inside `netns` and comes back: a thread that stayed would keep the namespace alive.
pub(super) fn inside<T>(
    netns: BorrowedFd<'_>,
    home: BorrowedFd<'_>,
    action: impl FnOnce() -> Result<T, StepError>,
) -> Result<T, StepError> {
    let failed = |action: &str| {
        let action = action.to_owned();
        move |source| StepError { action, source }
    };
    enter_netns(netns).map_err(failed("entering the network namespace (needs CAP_SYS_ADMIN)"))?;
    let result = action();
    enter_netns(home).map_err(failed("leaving the network namespace"))?;
    result
}

fn answer_opened(channel: BorrowedFd<'_>, opened: Opened) -> io::Result<()> {
    for [outbound, plaintext, hbone] in &opened.listeners {
        Packet::new(tag::LISTENERS).send(channel, &[outbound.as_fd(), plaintext.as_fd(), hbone.as_fd()])?;
    }
    let mut packet = opened.saved.write(Packet::new(tag::OPENED));
    // A packet has room for some 240 IPv6 addresses; a pod with more is not one we know how to enrol.
    for address in opened.addresses.iter().take(200) {
        packet = packet.address(*address);
    }
    packet.send(channel, &[])
}

fn answer_entry(channel: BorrowedFd<'_>, opened: &entry::Opened) -> io::Result<()> {
    let mut packet = Packet::new(tag::ENTRY_OPENED).u32(opened.device).u8(opened.uplinks.len() as u8);
    for (name, index) in &opened.uplinks {
        packet = packet.text(name).u32(*index);
    }
    let packet = opened.addresses.iter().fold(packet, |packet, address| packet.address(*address));
    packet.send(channel, &[opened.netns.as_fd()])
}

fn answer_listeners(channel: BorrowedFd<'_>, listeners: &[OwnedFd]) -> io::Result<()> {
    let mut left = listeners.len();
    for some in listeners.chunks(MAX_FDS) {
        left -= some.len();
        let some: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
        Packet::new(tag::LISTENING).u32(left as u32).send(channel, &some)?;
    }
    Ok(())
}

fn answer_failed(channel: BorrowedFd<'_>, error: &StepError) -> io::Result<()> {
    let code = error.source.raw_os_error().unwrap_or(libc::EIO);
    Packet::new(tag::FAILED).i32(code).bytes(error.action.as_bytes()).send(channel, &[])
}

/// Makes sockets for one worker until it closes its channel.
fn serve_worker(channel: &OwnedFd, pods: &Pods, home: &OwnedFd) {
    let mut buffer = [0; PACKET_LENGTH];
    while let Ok((length, _)) = wire::receive(channel.as_fd(), &mut buffer) {
        if length == 0 || serve_request(channel.as_fd(), buffer.get(..length).unwrap_or_default(), pods, home).is_err()
        {
            return;
        }
    }
}

fn serve_request(channel: BorrowedFd<'_>, request: &[u8], pods: &Pods, home: &OwnedFd) -> io::Result<()> {
    let mut fields = Reader::new(request);
    if fields.u8()? != tag::SOCKETS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "unknown request of a worker"));
    }
    let pod = fields.u32()?;
    let (kind, family, count) = (fields.u8()?, fields.u8()?, usize::from(fields.u8()?));
    let wanted_kind = SocketKind::from_number(kind);
    let wanted_family = Family::from_number(family);
    let (sockets, error) = match pods.get(pod) {
        None => (Vec::new(), libc::ENOENT),
        Some(netns) => batch(&netns, home, wanted_kind, wanted_family, count.clamp(1, MAX_FDS)),
    };
    let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    Packet::new(tag::BATCH).u32(pod).u8(kind).u8(family).i32(error).send(channel, &borrowed)
}

/// As many of `count` sockets as can be made, and the errno of the first that could not.
fn batch(netns: &OwnedFd, home: &OwnedFd, kind: SocketKind, family: Family, count: usize) -> (Vec<OwnedFd>, i32) {
    let mut sockets = Vec::with_capacity(count);
    let made = inside(netns.as_fd(), home.as_fd(), || {
        for _ in 0..count {
            let socket = podnet::outgoing(kind, family)
                .map_err(|source| StepError { action: String::from("making a socket"), source })?;
            sockets.push(socket);
        }
        Ok(())
    });
    let error = made.err().map_or(0, |error| error.source.raw_os_error().unwrap_or(libc::EIO));
    (sockets, error)
}
