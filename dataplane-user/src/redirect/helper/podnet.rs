//! What is set up inside a pod's namespace, and how it is undone. Everything here runs on a thread that has entered it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use causeway_ebpf::abi::{
    DELIVERY_MARK, DNS_SERVERS, HBONE_PORT, MARK_MASK, OUTBOUND_PORT, PLAINTEXT_PORT, UPSTREAM_MARK,
};

use super::netlink::{Family, Netlink};
use super::wire::{Packet, Reader};
use crate::redirect::sockets::{Family as SocketFamily, SocketKind};
use crate::redirect::system::{check, set_option, socket};

/// Files below the proc file system; those below `sys/net` are those of the namespace the opening thread is in.
const FWMARK_ACCEPT: &str = "sys/net/ipv4/tcp_fwmark_accept";
/// A port without a listener answers a delivery with a reset; without the mark that goes to the client's node instead of back.
const REFLECT4: &str = "sys/net/ipv4/fwmark_reflect";
const REFLECT6: &str = "sys/net/ipv6/fwmark_reflect";
const SOMAXCONN: &str = "sys/net/core/somaxconn";
const BACKLOG: i32 = 8192;
/// Congestion control between an application and the engine, which never leave the pod's loopback: the node's default may pace
/// every segment with a timer (BBR does), for a wire that is not there. Every kernel has this one, for everybody.
const WITHIN_A_POD: [u8; 4] = *b"reno";

/// A step that failed, with what it was.
#[derive(Debug)]
pub(in crate::redirect) struct StepError {
    pub(in crate::redirect) action: String,
    pub(in crate::redirect) source: io::Error,
}

/// Names the step of an error.
pub(super) fn step<T>(action: impl Into<String>, result: io::Result<T>) -> Result<T, StepError> {
    result.map_err(|source| StepError { action: action.into(), source })
}

/// Sysctl values from before enrolment; negative where nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::redirect) struct Saved {
    pub(in crate::redirect) fwmark_accept: i32,
    pub(in crate::redirect) somaxconn: i32,
    pub(in crate::redirect) reflect4: i32,
    pub(in crate::redirect) reflect6: i32,
}

impl Saved {
    /// Nothing changed yet.
    const NONE: Self = Self { fwmark_accept: -1, somaxconn: -1, reflect4: -1, reflect6: -1 };

    pub(super) fn read(fields: &mut Reader<'_>) -> io::Result<Self> {
        Ok(Self {
            fwmark_accept: fields.i32()?,
            somaxconn: fields.i32()?,
            reflect4: fields.i32()?,
            reflect6: fields.i32()?,
        })
    }

    pub(super) fn write(self, packet: Packet) -> Packet {
        packet.i32(self.fwmark_accept).i32(self.somaxconn).i32(self.reflect4).i32(self.reflect6)
    }
}

/// What an opened namespace gave.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) saved: Saved,
    pub(super) addresses: Vec<IpAddr>,
    /// Outbound, plaintext and HBONE listener of each worker.
    pub(super) listeners: Vec<[OwnedFd; 3]>,
}

/// Sets the current namespace up for `workers` workers. On an error nothing is left changed.
pub(super) fn open(workers: usize, apart: bool, proc: &Path) -> Result<Opened, StepError> {
    let mut saved = Saved::NONE;
    let choice = if apart { Choice::Free } else { Choice::Preferred };
    let result = open_steps(workers, choice, proc, &mut saved);
    if result.is_err() {
        let _ = undo(saved, proc);
    }
    result
}

fn open_steps(workers: usize, choice: Choice, proc: &Path, saved: &mut Saved) -> Result<Opened, StepError> {
    saved.fwmark_accept = raise_sysctl(&proc.join(FWMARK_ACCEPT), 1)?;
    saved.somaxconn = raise_sysctl(&proc.join(SOMAXCONN), BACKLOG)?;
    saved.reflect4 = raise_sysctl(&proc.join(REFLECT4), 1)?;
    // A kernel without IPv6 has no such file, and nothing to deliver over it.
    if fs::exists(proc.join(REFLECT6)).unwrap_or(false) {
        saved.reflect6 = raise_sysctl(&proc.join(REFLECT6), 1)?;
    }
    let netlink = step("opening a netlink socket", Netlink::route())?;
    let devices = step("listing addresses", netlink.addresses())?;
    let only = devices.first().map(|(device, _)| *device).filter(|only| devices.iter().all(|(other, _)| other == only));
    let addresses: Vec<IpAddr> = devices.into_iter().map(|(_, address)| address).collect();
    for family in [Family::V4, Family::V6] {
        let added = netlink.add_rule(family, DELIVERY_MARK, MARK_MASK).and_then(|()| netlink.add_local_route(family));
        let used = addresses.iter().any(|address| address.is_ipv6() == (family == Family::V6));
        // A pod without an address of a family may have that family switched off altogether.
        if used {
            step(format!("adding the delivery rule and route ({family:?})"), added)?;
        }
    }
    let kinds = [OUTBOUND_PORT, PLAINTEXT_PORT, HBONE_PORT];
    let mut groups = Vec::with_capacity(kinds.len());
    for port in kinds {
        // What comes in by the pod's device is told from what is delivered over loopback between the same two ends.
        let device = only.filter(|_| port == PLAINTEXT_PORT);
        let group = listen(port, workers, choice, device);
        groups.push(step(format!("opening listeners on port {port}"), group)?.into_iter());
    }
    let mut listeners = Vec::with_capacity(workers);
    let mut groups = groups.into_iter();
    if let (Some(outbound), Some(plaintext), Some(hbone)) = (groups.next(), groups.next(), groups.next()) {
        for ((outbound, plaintext), hbone) in outbound.zip(plaintext).zip(hbone) {
            listeners.push([outbound, plaintext, hbone]);
        }
    }
    Ok(Opened { saved: *saved, addresses, listeners })
}

/// Removes rules and routes and restores sysctl values in the current namespace.
pub(in crate::redirect) fn undo(saved: Saved, proc: &Path) -> Result<(), StepError> {
    let netlink = step("opening a netlink socket", Netlink::route())?;
    for family in [Family::V4, Family::V6] {
        let removed =
            netlink.remove_rule(family, DELIVERY_MARK, MARK_MASK).and_then(|()| netlink.remove_local_route(family));
        match removed {
            // A kernel without IPv6 had nothing to remove.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
            other => step(format!("removing the delivery rule and route ({family:?})"), other)?,
        }
    }
    for (path, value) in [
        (FWMARK_ACCEPT, saved.fwmark_accept),
        (SOMAXCONN, saved.somaxconn),
        (REFLECT4, saved.reflect4),
        (REFLECT6, saved.reflect6),
    ] {
        if value >= 0 {
            let path = proc.join(path);
            step(format!("restoring {}", path.display()), fs::write(path, value.to_string()))?;
        }
    }
    Ok(())
}

/// Raises a sysctl of the current namespace to `least`; returns the value to restore, negative if it was high enough.
///
/// The files below /proc/sys/net are those of the namespace the opening thread is in.
pub(super) fn raise_sysctl(path: &Path, least: i32) -> Result<i32, StepError> {
    let text = step(format!("reading {}", path.display()), fs::read_to_string(path))?;
    let value: i32 = text.trim().parse().unwrap_or(0);
    if value >= least {
        return Ok(-1);
    }
    step(format!("writing {}", path.display()), fs::write(path, least.to_string()))?;
    Ok(value)
}

/// Which port a group of listeners has. Where the socket lookup selects the listener any will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The named one.
    Named,
    /// The named one, or one of the kernel's choice if the application holds that.
    Preferred,
    /// One of the kernel's choice.
    Free,
}

/// One listener for each worker on `port`, or on another.
pub(super) fn listen(port: u16, workers: usize, choice: Choice, device: Option<u32>) -> io::Result<Vec<OwnedFd>> {
    let mut group: Vec<OwnedFd> = Vec::with_capacity(workers);
    let mut bound = if choice == Choice::Free { 0 } else { port };
    for index in 0..workers.max(1) {
        let listener = match listener(bound, device) {
            Err(error) if choice == Choice::Preferred && index == 0 && error.kind() == io::ErrorKind::AddrInUse => {
                listener(0, device)?
            }
            other => other?,
        };
        if index == 0 {
            bound = std::net::TcpListener::from(listener.try_clone()?).local_addr()?.port();
        }
        if port == OUTBOUND_PORT {
            set_option(listener.as_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, &WITHIN_A_POD)?;
        }
        group.push(listener);
    }
    if let Some(first) = group.first().filter(|_| workers > 1) {
        steer_by_cpu(first.as_fd(), workers as u32)?;
    }
    Ok(group)
}

/// A non-blocking listener on every address of both families, or of IPv4 alone where the kernel has no IPv6.
fn listener(port: u16, device: Option<u32>) -> io::Result<OwnedFd> {
    let stream = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    let (fd, v6) = match socket(libc::AF_INET6, stream, libc::IPPROTO_TCP) {
        Ok(fd) => (fd, true),
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            (socket(libc::AF_INET, stream, libc::IPPROTO_TCP)?, false)
        }
        Err(error) => return Err(error),
    };
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, &1i32)?;
    set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &UPSTREAM_MARK)?;
    if v6 {
        set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &0i32)?;
    }
    if let Some(device) = device {
        set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &device)?;
    }
    bind_any(fd.as_fd(), v6, port)?;
    // SAFETY: no pointer is passed.
    check(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&fd), BACKLOG) })?;
    Ok(fd)
}

fn bind_any(fd: BorrowedFd<'_>, v6: bool, port: u16) -> io::Result<()> {
    use std::mem::size_of;
    use std::os::fd::AsRawFd;
    let result = if v6 {
        let address = libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as libc::sa_family_t,
            sin6_port: port.to_be(),
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        };
        let length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        // SAFETY: the pointer is valid for the length passed.
        unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }
    } else {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: 0 },
            sin_zero: [0; 8],
        };
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: the pointer is valid for the length passed.
        unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) }
    };
    check(result).map(drop)
}

/// Lets the worker whose number is that of the CPU a SYN arrives on (modulo the workers) accept the connection.
fn steer_by_cpu(listener: BorrowedFd<'_>, workers: u32) -> io::Result<()> {
    const LOAD_WORD: u16 = 0x20;
    const MODULO: u16 = 0x94;
    const RETURN_ACCUMULATOR: u16 = 0x16;
    /// Offset of the extension that reads the CPU number.
    const CPU: u32 = (-0x1000_i32 + 36) as u32;
    let mut filter = [
        libc::sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: CPU },
        libc::sock_filter { code: MODULO, jt: 0, jf: 0, k: workers },
        libc::sock_filter { code: RETURN_ACCUMULATOR, jt: 0, jf: 0, k: 0 },
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    set_option(listener, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// DNS sockets in the current namespace at the address and, where they are free, the ports of a request.
pub(super) fn dns_sockets(request: &mut Reader<'_>) -> Result<Vec<OwnedFd>, StepError> {
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "request without address");
    let address = step("reading a request", request.address().and_then(|address| address.ok_or_else(missing)))?;
    let mut sockets = Vec::with_capacity(DNS_SERVERS);
    while let Ok(port) = request.u32() {
        let port = u16::try_from(port).unwrap_or(0);
        let socket = dns_socket(address, port).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse => dns_socket(address, 0),
            _ => Err(error),
        });
        sockets.push(step(format!("opening a DNS socket at {address}"), socket)?);
    }
    Ok(sockets)
}

fn dns_socket(address: IpAddr, port: u16) -> io::Result<OwnedFd> {
    let socket = std::net::UdpSocket::bind((address, port))?;
    socket.set_nonblocking(true)?;
    set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &UPSTREAM_MARK)?;
    Ok(socket.into())
}

/// A socket in the current namespace, ready to be connected by a worker.
pub(super) fn outgoing(kind: SocketKind, family: SocketFamily) -> io::Result<OwnedFd> {
    let domain = if family == SocketFamily::V4 { libc::AF_INET } else { libc::AF_INET6 };
    if kind == SocketKind::Datagram {
        let fd = socket(domain, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, libc::IPPROTO_UDP)?;
        set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &UPSTREAM_MARK)?;
        return Ok(fd);
    }
    let fd = socket(domain, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, libc::IPPROTO_TCP)?;
    set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
    match kind {
        SocketKind::Datagram => {}
        SocketKind::Upstream => set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &UPSTREAM_MARK)?,
        SocketKind::Delivery => {
            set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, &DELIVERY_MARK)?;
            set_option(fd.as_fd(), libc::IPPROTO_TCP, libc::TCP_CONGESTION, &WITHIN_A_POD)?;
            set_option(fd.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)?;
            // Connections of one client to several ports of the pod may share a source port.
            set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
            match family {
                SocketFamily::V4 => set_option(fd.as_fd(), libc::IPPROTO_IP, libc::IP_TRANSPARENT, &1i32)?,
                SocketFamily::V6 => set_option(fd.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, &1i32)?,
            }
        }
    }
    Ok(fd)
}
