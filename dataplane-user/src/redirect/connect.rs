//! Connecting the sockets of a [`super::SocketSource`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
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
/// client's connection instead of the application. See [`delivery_port`].
///
/// # Errors
/// Those of [`SocketSource::take`], `bind` and `connect`.
pub async fn deliver(
    source: &SocketSource,
    pod: PodId,
    client: SocketAddr,
    destination: SocketAddr,
) -> io::Result<TcpStream> {
    let take = || source.take(pod, SocketKind::Delivery, client.ip().into());
    if client.port() != 0 {
        let from = SocketAddr::new(client.ip(), delivery_port(client.port()));
        match connect_from(take().await?, Some(from), destination).await {
            // The port is still in TIME_WAIT from an earlier connection of the same client: any other will do.
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            result => return result,
        }
    }
    let first = connect_start(take().await?, Some(client.ip()), destination);
    match tokio::time::timeout(DELIVERY_PATIENCE, first).await {
        Ok(result) => result,
        // The kernel's choice may be the port of a connection in the clear of the same client. A second choice is another one.
        Err(_elapsed) => connect_start(take().await?, Some(client.ip()), destination).await,
    }
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
}
