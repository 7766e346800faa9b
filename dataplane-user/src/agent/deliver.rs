//! The last step of what arrives: a connection to the application, with the client's address where it can be had.

use std::net::{IpAddr, SocketAddr};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::worker::{Pod, Worker};
use crate::{
    decide::InboundTarget,
    hbone::{Authority, Cause, ConnError, Leg, advice, proxy_header},
    identity::SpiffeId,
    redirect::{self, Family, SocketKind, connect_start},
    state::Model,
    tunnel::settings::CONNECT_TIMEOUT,
};

/// Who is to be delivered, and what it asked for.
pub struct Client<'a> {
    /// The client as the application is to see it; the port is 0 where it is the other end of a tunnel.
    pub address: SocketAddr,
    /// The identity it proved.
    pub identity: Option<&'a SpiffeId>,
    /// What its CONNECT named.
    pub authority: Option<&'a Authority>,
}

/// Connects to the application of `pod`.
///
/// # Errors
/// Leg `backend`; another endpoint may do better.
pub async fn deliver(
    worker: &Worker,
    pod: &Pod,
    client: &Client<'_>,
    target: &InboundTarget,
) -> Result<TcpStream, ConnError> {
    let to = SocketAddr::new(target.address, target.port);
    let failed = |error: &dyn std::fmt::Display| ConnError {
        status: Some(503),
        ..ConnError::retryable(Leg::Backend, to, error)
    };
    let connecting = async {
        if target.proxy_header {
            return announced(worker, pod, client, target).await;
        }
        if client.address.is_ipv4() != to.is_ipv4() {
            // A client at a node port of the family that the pod does not have: there is no address to show.
            let socket = worker.sockets.take(pod.id, SocketKind::Upstream, Family::from(to.ip())).await?;
            return connect_start(socket, to).await;
        }
        redirect::deliver(&worker.sockets, pod.id, pod.addresses(), client.address, to).await
    };
    let socket = match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return Err(failed(&advice::connect(&error))),
        Err(_) => return Err(failed(&"the application did not accept within 10 s").because(Cause::Timeout)),
    };
    // Small answers must not wait for an acknowledgement; a socket that refuses the option still works.
    let _ = socket.set_nodelay(true);
    Ok(socket)
}

/// An application tunnel listens on loopback and learns the client from a PROXY header.
async fn announced(
    worker: &Worker,
    pod: &Pod,
    client: &Client<'_>,
    target: &InboundTarget,
) -> std::io::Result<TcpStream> {
    let loopback: IpAddr = match target.address {
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let named = asked_for(&worker.model(), client.authority, target);
    let identity = client.identity.map(SpiffeId::as_str);
    let header = proxy_header(client.address, named, identity);
    let socket = worker.sockets.take(pod.id, SocketKind::Upstream, Family::from(loopback)).await?;
    let mut socket = connect_start(socket, SocketAddr::new(loopback, target.port)).await?;
    socket.write_all(&header).await?;
    Ok(socket)
}

/// The address the client asked for: of a named service its VIP in our network, IPv4 first.
fn asked_for(model: &Model, authority: Option<&Authority>, target: &InboundTarget) -> SocketAddr {
    let own = SocketAddr::new(target.address, target.port);
    match authority {
        Some(Authority::Ip(address)) => *address,
        Some(Authority::Host { port, .. }) => {
            let vips = target.service.iter().flat_map(|service| &service.vips);
            let local = vips.filter(|vip| vip.network == model.node.network);
            local.min_by_key(|vip| vip.ip.is_ipv6()).map_or(own, |vip| SocketAddr::new(vip.ip, *port))
        }
        None => own,
    }
}
