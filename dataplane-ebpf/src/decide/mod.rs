//! The verdict of every program as a pure function over its context and a view of the maps.

pub mod dns;
pub mod hold;
pub mod inbound;
pub mod node_port;
pub mod outbound;
pub mod packet;
pub mod sockets;

use crate::abi::{Addr, Config, is_mapped};

/// Whether `addr` is a loopback address (127.0.0.0/8 or `::1`).
#[inline(always)]
pub fn is_loopback(addr: &Addr) -> bool {
    if is_mapped(addr) {
        addr[3].to_ne_bytes()[0] == 127
    } else {
        addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && addr[3] == 1u32.to_be()
    }
}

/// Whether `addr` is unspecified (`0.0.0.0` or `::`), which the kernel connects to loopback.
#[inline(always)]
pub fn is_unspecified(addr: &Addr) -> bool {
    addr[3] == 0 && (is_mapped(addr) || (addr[0] == 0 && addr[1] == 0 && addr[2] == 0))
}

/// Whether `addr` is an IPv6 link-local address (`fe80::/10`). It has no meaning outside its link, so the engine could not dial
/// it, and no workload of a mesh has one.
#[inline(always)]
pub fn is_link_local_v6(addr: &Addr) -> bool {
    let bytes = addr[0].to_ne_bytes();
    bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80
}

/// Whether `port` is one of the rewrite targets.
#[inline(always)]
pub fn in_range(config: &Config, port: u16) -> bool {
    port.wrapping_sub(config.port_base) <= config.port_mask
}

#[cfg(test)]
pub(crate) mod testing {
    use std::collections::{HashMap, HashSet};
    use std::net::IpAddr;

    use crate::abi::{Addr, Config, Flow, FlowKey, mapped};

    /// The maps as a host test sees them.
    #[derive(Default)]
    pub struct View {
        pub owners: HashMap<Addr, u64>,
        pub engine: bool,
        pub ports: HashSet<(u16, u16)>,
        pub cidrs: HashSet<Addr>,
        pub flows: HashMap<FlowKey, Flow>,
    }

    pub fn addr(text: &str) -> Addr {
        match text.parse().unwrap_or_else(|error| panic!("{text}: {error}")) {
            IpAddr::V4(ip) => mapped(u32::from_ne_bytes(ip.octets())),
            IpAddr::V6(ip) => {
                let mut words = [0; 4];
                for (word, bytes) in words.iter_mut().zip(ip.octets().chunks(4)) {
                    *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
                words
            }
        }
    }

    pub fn config() -> Config {
        Config { layout: 1, port_base: 16384, port_mask: 1023, flags: u32::MAX }
    }

    #[test]
    fn address_classes() {
        for (text, loopback, unspecified, link_local) in [
            ("127.0.0.1", true, false, false),
            ("127.255.3.4", true, false, false),
            ("::1", true, false, false),
            ("::ffff:127.0.0.1", true, false, false),
            ("0.0.0.0", false, true, false),
            ("::", false, true, false),
            ("fe80::1", false, false, true),
            ("febf::1", false, false, true),
            ("fec0::1", false, false, false),
            ("128.0.0.1", false, false, false),
            ("169.254.169.254", false, false, false),
            ("2001:db8::1", false, false, false),
        ] {
            let addr = addr(text);
            assert_eq!(super::is_loopback(&addr), loopback, "{text} loopback");
            assert_eq!(super::is_unspecified(&addr), unspecified, "{text} unspecified");
            assert_eq!(super::is_link_local_v6(&addr), link_local, "{text} link-local");
        }
    }

    #[test]
    fn range_has_exact_ends() {
        let config = config();
        for (port, inside) in [(16383, false), (16384, true), (17407, true), (17408, false), (0, false), (65535, false)]
        {
            assert_eq!(super::in_range(&config, port), inside, "{port}");
        }
    }
}
