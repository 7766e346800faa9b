//! Where a redirected connection was meant to go.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use aya::maps::{MapData, MapError, SkStorage};
use causeway_ebpf::abi::{Addr, Flow, LAYOUT_VERSION, flow_kind, is_mapped, mapped};

use super::maps::Plain;

/// Tells the original destination of accepted connections. Cheap to clone, to be had by every worker. By default no connection
/// was redirected, as where no program runs.
#[derive(Clone, Debug, Default)]
pub struct OriginalDst(Option<Arc<SkStorage<MapData, Plain<Flow>>>>);

impl OriginalDst {
    pub(super) fn new(storage: SkStorage<MapData, Plain<Flow>>) -> Self {
        Self(Some(Arc::new(storage)))
    }

    /// Original destination of a connection the outbound listener accepted: one system call. `None` means that the connection
    /// was not redirected, or that the kernel had no memory to keep its destination: it must be reset.
    ///
    /// # Errors
    /// Those of the map look-up, `InvalidData` if another version of the programs wrote the value.
    pub fn get(&self, socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        let Some(storage) = &self.0 else { return Ok(None) };
        let flow = match storage.get(&socket, 0) {
            Ok(Plain(flow)) => flow,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(MapError::SyscallError(error)) => return Err(error.io_error),
            Err(error) => return Err(io::Error::other(error)),
        };
        if flow.layout != LAYOUT_VERSION || flow.kind != flow_kind::REDIRECT {
            let message = format!("original destination of layout {} and kind {}", flow.layout, flow.kind);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Some(SocketAddr::new(address(&flow.addr), flow.port)))
    }
}

/// The address behind 16 bytes of a map.
pub(super) fn address(addr: &Addr) -> IpAddr {
    if is_mapped(addr) {
        return IpAddr::V4(Ipv4Addr::from(addr[3].to_ne_bytes()));
    }
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(addr) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(bytes))
}

/// The 16 bytes of an address in a map; v4-mapped IPv6 addresses are the IPv4 address.
pub(super) fn words(address: IpAddr) -> Addr {
    match address.to_canonical() {
        IpAddr::V4(v4) => mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(v6.octets().chunks_exact(4)) {
                *word = bytes.try_into().map_or(0, u32::from_ne_bytes);
            }
            words
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn addresses_survive_the_map() {
        for text in ["10.1.2.3", "0.0.0.0", "2001:db8::1", "::", "::1", "fe80::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(address(&words(ip)), ip);
        }
        assert_eq!(words("::ffff:10.1.2.3".parse().unwrap()), words("10.1.2.3".parse().unwrap()));
    }
}
