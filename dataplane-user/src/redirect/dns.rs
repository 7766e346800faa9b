//! DNS sockets of pods, and which name server each stands for.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use aya::maps::{HashMap, Map, MapData, MapError};
use causeway_ebpf::abi::{self, Addr, DNS_PORT, DNS_SERVERS, DnsPod, EnginePort};

use super::error::{EnrolError, LoadError};
use super::maps::{Plain, in_map as in_opened_map};
use super::original::{address, words};
use super::pods::{failed, in_map};
use super::redirector::Redirector;

/// Tells which name server a pod's DNS socket stands for. Cheap to clone, to be had by every worker. By default none is known, as
/// where no program runs.
#[derive(Clone, Default)]
pub struct DnsServers(Option<Arc<HashMap<MapData, Plain<EnginePort>, Addr>>>);

impl std::fmt::Debug for DnsServers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("DnsServers").finish_non_exhaustive()
    }
}

impl DnsServers {
    pub(super) fn open(pin: &Path) -> Result<Self, LoadError> {
        let failed = in_opened_map("DNS_SERVERS");
        let map = MapData::from_pin(pin).map_err(&failed)?;
        HashMap::try_from(Map::HashMap(map)).map(|map| Self(Some(Arc::new(map)))).map_err(&failed)
    }

    /// The server behind the DNS socket at `local` in the namespace with this cookie: one system call. It never changes while
    /// the pod is enrolled. `None` before the pod has asked any server through that socket.
    ///
    /// # Errors
    /// Those of the map look-up.
    pub fn get(&self, netns_cookie: u64, local: SocketAddr) -> io::Result<Option<SocketAddr>> {
        let key = EnginePort::new(netns_cookie, &words(local.ip()), local.port());
        let Some(servers) = &self.0 else { return Ok(None) };
        match servers.get(&Plain(key), 0) {
            Ok(server) => Ok(Some(SocketAddr::new(address(&server), DNS_PORT))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(MapError::SyscallError(error)) => Err(error.io_error),
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl Redirector {
    /// Opens the DNS sockets of a pod, at the ports an earlier daemon had where those are free, and directs queries there.
    pub(super) fn capture_dns(
        &mut self,
        uid: &str,
        cookie: u64,
        netns: BorrowedFd<'_>,
        pod: &abi::Pod,
    ) -> Result<Vec<UdpSocket>, EnrolError> {
        let earlier = self.maps.dns_pods.get(&cookie, 0).map(|Plain(pod)| pod).unwrap_or_default();
        let mut value = DnsPod { v4: pod.v4, v6: pod.v6, ..DnsPod::default() };
        let mut sockets = Vec::new();
        for (at, was_at, wanted, ports) in [
            (value.v4, earlier.v4, earlier.ports4, &mut value.ports4),
            (value.v6, earlier.v6, earlier.ports6, &mut value.ports6),
        ] {
            if at == [0; 4] {
                continue;
            }
            let wanted = if was_at == at { wanted } else { [0; DNS_SERVERS] };
            let opened = self.helper.control.dns_sockets(address(&at), &wanted, netns).map_err(failed(uid))?;
            for (port, socket) in ports.iter_mut().zip(&opened) {
                let local = socket.local_addr();
                let step = |source| EnrolError::Step {
                    uid: uid.to_owned(),
                    action: "reading a DNS socket's port".into(),
                    source,
                };
                *port = local.map_err(step)?.port();
            }
            sockets.extend(opened);
        }
        // A socket an application connected to a server through the earlier daemon goes on only if nothing has moved.
        if value != earlier {
            self.forget_servers(cookie);
        }
        self.maps.dns_pods.insert(cookie, Plain(value), 0).map_err(in_map(uid, "DNS_PODS"))?;
        Ok(sockets)
    }

    /// Lets a pod's DNS queries pass from now on. Returns what takes them back.
    pub(super) fn pause_dns(&mut self, cookie: u64) -> Option<DnsPod> {
        let value = self.maps.dns_pods.get(&cookie, 0).map(|Plain(value)| value).ok();
        let _ = self.maps.dns_pods.remove(&cookie);
        value
    }

    /// Lets a pod's DNS queries pass, for good.
    pub(super) fn uncapture_dns(&mut self, cookie: u64) {
        if self.pause_dns(cookie).is_some() {
            self.forget_servers(cookie);
        }
    }

    /// Removes which servers a pod has asked; first the entries that give ports out.
    pub(super) fn forget_servers(&mut self, cookie: u64) {
        let asked: Vec<_> =
            self.maps.dns_ports.keys().filter_map(Result::ok).filter(|key| key.0.netns == cookie).collect();
        for key in asked {
            let _ = self.maps.dns_ports.remove(&key);
        }
        let ports: Vec<_> =
            self.maps.dns_servers.keys().filter_map(Result::ok).filter(|key| key.0.netns == cookie).collect();
        for key in ports {
            let _ = self.maps.dns_servers.remove(&key);
        }
    }
}

/// Whether a datagram that arrived at a pod's DNS socket was sent by the pod itself.
#[must_use]
pub fn is_own(client: IpAddr, own: &[IpAddr]) -> bool {
    let client = client.to_canonical();
    client.is_loopback() || own.iter().any(|ip| ip.to_canonical() == client)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn only_the_pods_own_addresses_may_use_its_dns_sockets() {
        let own: Vec<IpAddr> = ["10.0.0.2", "fd00::2"].iter().map(|text| text.parse().unwrap()).collect();
        for (client, expected) in [
            ("10.0.0.2", true),
            ("::ffff:10.0.0.2", true),
            ("fd00::2", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("10.0.0.3", false),
            ("fd00::3", false),
            ("172.30.1.1", false),
        ] {
            assert_eq!(is_own(client.parse().unwrap(), &own), expected, "{client}");
        }
    }
}
