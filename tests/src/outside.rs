//! Clients outside all clusters: a namespace behind the router, with as many addresses as a test needs.

use crate::{Error, Place, Result, Topology, context, netns, peer};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

/// The client's first address.
pub const CLIENT4: &str = "203.0.113.1";
/// As [`CLIENT4`].
pub const CLIENT6: &str = "2001:db8:113::1";
/// Every address in here is the client's as well.
pub const CLIENTS4: &str = "198.18.0.0/15";
/// As [`CLIENTS4`].
pub const CLIENTS6: &str = "2001:db8:18::/48";
/// How long one connection may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Connections open at a time.
const AT_ONCE: usize = 20;

/// A namespace of clients.
#[derive(Debug)]
pub struct Outside {
    place: Place,
}

impl Outside {
    /// Connects a namespace to the router of a topology; it goes with the topology.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn new(topology: &Topology) -> Result<Self> {
        let wan = topology.wan_place();
        let name = format!("{}outside", topology.prefix());
        netns::create(&name)?;
        netns::batch(None, &format!("link add outside netns {} type veth peer name eth0 netns {name}\n", wan.netns))?;
        netns::batch(
            Some(&wan.netns),
            &format!(
                "addr add 203.0.113.254/24 dev outside\naddr add 2001:db8:113::fe/64 dev outside nodad\n\
                 link set outside up\nroute add {CLIENTS4} via {CLIENT4}\nroute add {CLIENTS6} via {CLIENT6}\n"
            ),
        )?;
        netns::batch(
            Some(&name),
            &format!(
                "link set lo up\naddr add {CLIENT4}/24 dev eth0\naddr add {CLIENT6}/64 dev eth0 nodad\n\
                 link set eth0 up\nroute add default via 203.0.113.254\nroute add default via 2001:db8:113::fe\n\
                 route add local {CLIENTS4} dev lo\nroute add local {CLIENTS6} dev lo\n"
            ),
        )?;
        // Without this a socket may not be bound to an address that only a route makes ours.
        netns::sysctl(&name, "net/ipv6/ip_nonlocal_bind", "1")?;
        Ok(Self { place: Place { netns: name, ..wan } })
    }

    /// Where programs of clients run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Lets the last link before the client carry no more than `bytes` in a packet. The client itself does not know.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn narrow(&self, topology: &Topology, bytes: u32) -> Result<()> {
        netns::batch(Some(&topology.wan_place().netns), &format!("link set outside mtu {bytes}\n"))
    }

    /// Asks `to` for `path` by HTTP once from each of these addresses; the answers are whole, or say why there is none.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn ask(
        &self,
        clients: &[IpAddr],
        to: SocketAddr,
        path: &str,
    ) -> Result<Vec<std::result::Result<String, String>>> {
        ask_in(&self.place.netns, clients, to, path)
    }

    /// As [`Outside::ask`] for one client that must get an answer.
    ///
    /// # Errors
    /// Why it got none.
    pub fn ask_one(&self, client: &str, to: SocketAddr, path: &str) -> Result<String> {
        let client = client.parse().map_err(context(client))?;
        let answer = self.ask(&[client], to, path)?.pop();
        answer.unwrap_or_else(|| Err("nobody asked".to_owned())).map_err(Error)
    }
}

/// As [`Outside::ask`], from a namespace in which these addresses are local.
///
/// # Errors
/// If the namespace is gone.
pub fn ask_in(
    netns: &str,
    clients: &[IpAddr],
    to: SocketAddr,
    path: &str,
) -> Result<Vec<std::result::Result<String, String>>> {
    let (clients, path) = (clients.to_vec(), path.to_owned());
    netns::within(netns, move || {
        peer::block_on(async {
            let mut answers = Vec::with_capacity(clients.len());
            for some in clients.chunks(AT_ONCE) {
                let asked: Vec<_> = some.iter().map(|client| tokio::spawn(ask(*client, to, path.clone()))).collect();
                for one in asked {
                    answers.push(one.await.map_err(context("a client"))?);
                }
            }
            Ok(answers)
        })
    })?
}

async fn ask(client: IpAddr, to: SocketAddr, path: String) -> std::result::Result<String, String> {
    let exchange = async {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(client, 0))?;
        let mut stream = socket.connect(to).await?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{client} to {to}: {error} ({:?})", error.kind())),
        Err(_) => Err(format!("{client} to {to}: no answer within {} s", PATIENCE.as_secs())),
    }
}
