//! Sockets the standard library does not make, and `connect` on sockets that exist already.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Dissolves the association of a connected socket, as `connect` with `AF_UNSPEC` does.
pub fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let address = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is valid for the length passed.
    check(unsafe { libc::connect(socket.as_raw_fd(), &raw const address, length) })
}

/// A multipath TCP socket; `None` where the kernel has none.
pub fn multipath() -> Option<OwnedFd> {
    const IPPROTO_MPTCP: i32 = 262;
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, IPPROTO_MPTCP) };
    // SAFETY: the kernel has just made the descriptor for the caller.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to an IPv4 address.
pub fn connect(socket: BorrowedFd<'_>, to: SocketAddr) -> io::Result<()> {
    let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is valid for the length passed.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
