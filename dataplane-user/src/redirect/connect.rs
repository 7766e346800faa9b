//! Connecting the sockets of a [`super::SocketSource`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use super::enrol::PodId;
use super::sockets::{SocketKind, SocketSource};

/// A delivery stays inside the pod and is answered in microseconds; one that is not, hit something else.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(1);

/// The same in every namespace.
const LOOPBACK: &[u8] = b"lo";

/// Connects `socket` to `destination`; the port is the kernel's choice.
///
/// # Errors
/// Those of `connect`. `EADDRNOTAVAIL` means that every source port towards `destination` is in use.
pub async fn connect_start(socket: OwnedFd, destination: SocketAddr) -> io::Result<TcpStream> {
    stream_socket(socket).connect(destination).await
}

fn stream_socket(socket: OwnedFd) -> TcpSocket {
    TcpSocket::from_std_stream(std::net::TcpStream::from(socket))
}

/// Connects to the application of `pod` at `destination`, which sees the address of `client`.
///
/// `client` carries the port of the connection that is being delivered if that arrived in the clear, else 0. The delivered
/// connection never has the port of the client's own: both have the same two ends inside the pod, and its SYN would meet the
/// client's connection instead of the application. See [`delivery_port`]. Where every port tried is taken, the kernel chooses.
///
/// The delivered connection is bound to the loopback device, and the socket program binds the application's end: so a later
/// connection in the clear with the same two ends meets neither. What the engine took in the clear is bound to the pod's device
/// where the pod has only one, and does not meet deliveries. `own` are the pod's addresses; a client that has one of them is
/// the pod itself.
///
/// # Errors
/// Those of [`SocketSource::take`], `bind` and `connect`.
pub async fn deliver(
    source: &SocketSource,
    pod: PodId,
    own: &[IpAddr],
    client: SocketAddr,
    destination: SocketAddr,
) -> io::Result<TcpStream> {
    // Towards an address of the pod the kernel names the pod's own device, whatever a socket is bound to.
    let device = if own.contains(&client.ip()) { None } else { Some(LOOPBACK) };
    let known = (client.port() != 0).then(|| delivery_port(client.port()));
    let [first, second] = tunnelled_ports(TURN.fetch_add(1, Ordering::Relaxed));
    let connect_from = async |port| {
        let socket = stream_socket(source.take(pod, SocketKind::Delivery, client.ip().into()).await?);
        socket.bind_device(device)?;
        socket.bind(SocketAddr::new(client.ip(), port))?;
        socket.connect(destination).await
    };
    for port in [known.unwrap_or(first), second] {
        match tokio::time::timeout(DELIVERY_PATIENCE, connect_from(port)).await {
            // The port is in use or in TIME_WAIT, or it is that of a connection in the clear of the same client.
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            Err(_elapsed) => {}
            Ok(result) => return result,
        }
    }
    connect_from(0).await
}

/// Counts the deliveries of tunnelled connections, which take their ports in turn.
static TURN: AtomicU32 = AtomicU32::new(0);

/// Two source ports to try for a connection that came through a tunnel. Neither is in the usual ephemeral range: a later
/// connection in the clear of the same client from the same port would meet the delivered one inside the pod and time out.
/// The first is from the half below that range, as large as the range itself: each may be in TIME_WAIT for a minute.
fn tunnelled_ports(turn: u32) -> [u16; 2] {
    let below = 1024 + turn % (32_768 - 1024);
    let above = 61_000 + turn % (65_536 - 61_000);
    [below as u16, above as u16]
}

/// Source port for delivering the connection of a client that came from `port`: one to one over the ports clients use, and
/// from the other half, so that it is never the port of a live connection of a client with the usual ephemeral range.
pub fn delivery_port(port: u16) -> u16 {
    /// First port that needs no privilege; the lower half starts there.
    const OFFSET: u16 = 0x8000 - 1024;
    if port >= 0x8000 { port - OFFSET } else { port + 0x8000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_ports_are_distinct_and_disjoint_from_the_ephemeral_range() {
        let ports: std::collections::HashSet<u16> = (32768..=60999).map(delivery_port).collect();
        assert_eq!(ports.len(), 60999 - 32768 + 1);
        assert!(ports.iter().all(|port| (1024..32768).contains(port)));
        assert!((1..=u16::MAX).all(|port| delivery_port(port) != port && delivery_port(port) >= 1024));
    }
    #[test]
    fn tunnelled_connections_are_delivered_from_ports_outside_the_ephemeral_range() {
        for turn in (0..100_000).chain([u32::MAX]) {
            let [below, above] = tunnelled_ports(turn);
            assert!(above > 60_999 && (1024..32_768).contains(&below), "{turn}: {above} {below}");
        }
        let distinct: std::collections::HashSet<u16> = (0..31_744).map(|turn| tunnelled_ports(turn)[0]).collect();
        assert_eq!(distinct.len(), 31_744);
    }
}
