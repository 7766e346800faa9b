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

/// Connects `socket` to `destination`, bound to `source` first where one is given; the port is the kernel's choice.
///
/// # Errors
/// Those of `bind` and `connect`. `EADDRNOTAVAIL` means that every source port towards `destination` is in use.
pub async fn connect_start(socket: OwnedFd, source: Option<IpAddr>, destination: SocketAddr) -> io::Result<TcpStream> {
    connect_from(socket, source.map(|source| SocketAddr::new(source, 0)), destination).await
}

async fn connect_from(socket: OwnedFd, source: Option<SocketAddr>, destination: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    if let Some(source) = source {
        socket.bind(source)?;
    }
    socket.connect(destination).await
}

/// Connects to the application of `pod` at `destination`, which sees the address of `client`.
///
/// `client` carries the port of the connection that is being delivered if that arrived in the clear, else 0. The delivered
/// connection never has the port of the client's own: both have the same two ends inside the pod, and its SYN would meet the
/// client's connection instead of the application. See [`delivery_port`]. Where every port tried is taken, the kernel chooses.
///
/// # Errors
/// Those of [`SocketSource::take`], `bind` and `connect`.
pub async fn deliver(
    source: &SocketSource,
    pod: PodId,
    client: SocketAddr,
    destination: SocketAddr,
) -> io::Result<TcpStream> {
    let known = (client.port() != 0).then(|| delivery_port(client.port()));
    let [first, second] = tunnelled_ports(TURN.fetch_add(1, Ordering::Relaxed));
    for port in [known.unwrap_or(first), second] {
        let socket = source.take(pod, SocketKind::Delivery, client.ip().into()).await?;
        let attempt = connect_from(socket, Some(SocketAddr::new(client.ip(), port)), destination);
        match tokio::time::timeout(DELIVERY_PATIENCE, attempt).await {
            // The port is in use or in TIME_WAIT, or it is that of a connection in the clear of the same client.
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            Err(_elapsed) => {}
            Ok(result) => return result,
        }
    }
    let socket = source.take(pod, SocketKind::Delivery, client.ip().into()).await?;
    connect_start(socket, Some(client.ip()), destination).await
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
