//! What an Ethernet frame is about, as far as node ports care: the two ends of a TCP segment, of a piece of one, or of the
//! segment an ICMP error quotes.

use crate::abi::{Addr, mapped};

/// Length of an Ethernet header; a VLAN tag that the kernel has taken off is not part of the frame any more.
pub const ETHERNET_LENGTH: usize = 14;
/// EtherType of IPv4.
pub const ETHERTYPE_V4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_V6: u16 = 0x86dd;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers looked behind; more are not in use between hosts (RFC 8504, 5.3 lets receivers limit them).
const EXTENSIONS: usize = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Bytes of a frame.
pub trait Packet {
    /// The `N` bytes from `offset` on; nothing if the frame is shorter.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// Both ends of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who sends it.
    pub source: Addr,
    /// Whom it is for.
    pub target: Addr,
    /// The sender's port.
    pub source_port: u16,
    /// The receiver's port.
    pub target_port: u16,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A TCP segment, or the first piece of one.
    Tcp {
        /// Its ends.
        ends: Ends,
        /// Whether it asks for a connection.
        opens: bool,
        /// What it has in common with the pieces that follow, if it is the first one.
        pieces: Option<u32>,
    },
    /// A later piece of a datagram, without ports.
    Piece {
        /// Who sends it.
        source: Addr,
        /// Whom it is for.
        target: Addr,
        /// What it has in common with the first piece.
        id: u32,
    },
    /// An ICMP error about a TCP segment that was sent by its target.
    Error {
        /// The ends of the segment it quotes.
        quoted: Ends,
    },
    /// Anything else.
    Other,
}

/// An IP header and what it says of its payload.
struct Network {
    source: Addr,
    target: Addr,
    protocol: u8,
    /// Offset of the payload.
    payload: usize,
    /// What all pieces of the datagram have in common, if it is in pieces.
    id: Option<u32>,
    /// Whether this is a later piece.
    later: bool,
}

/// Looks at a frame with this EtherType. A frame that is cut short is anything else: the kernel drops it.
#[inline(always)]
pub fn content(ethertype: u16, packet: &impl Packet) -> Content {
    inspect(ethertype, packet).unwrap_or(Content::Other)
}

#[inline(always)]
fn inspect(ethertype: u16, packet: &impl Packet) -> Option<Content> {
    let v4 = ethertype == ETHERTYPE_V4;
    if !v4 && ethertype != ETHERTYPE_V6 {
        return None;
    }
    let network = network(v4, packet, ETHERNET_LENGTH)?;
    if network.later {
        let (source, target, id) = (network.source, network.target, network.id?);
        return Some(Content::Piece { source, target, id });
    }
    if network.protocol == TCP {
        let head: [u8; 14] = packet.bytes(network.payload)?;
        let opens = head[13] & (SYN | ACK) == SYN;
        return Some(Content::Tcp { ends: ends(&network, &head), opens, pieces: network.id });
    }
    if network.protocol != if v4 { ICMP } else { ICMP6 } {
        return None;
    }
    let [kind] = packet.bytes(network.payload)?;
    // Destination unreachable, time exceeded, parameter problem; over IPv6 packet too big has a type of its own.
    if !(if v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }) {
        return None;
    }
    let inner = self::network(v4, packet, network.payload + 8)?;
    if inner.protocol != TCP || inner.later {
        return None;
    }
    let ports: [u8; 4] = packet.bytes(inner.payload)?;
    Some(Content::Error { quoted: ends(&inner, &ports) })
}

#[inline(always)]
fn ends(network: &Network, head: &[u8]) -> Ends {
    Ends {
        source: network.source,
        target: network.target,
        source_port: u16::from_be_bytes([head[0], head[1]]),
        target_port: u16::from_be_bytes([head[2], head[3]]),
    }
}

#[inline(always)]
fn network(v4: bool, packet: &impl Packet, at: usize) -> Option<Network> {
    if v4 { network4(packet, at) } else { network6(packet, at) }
}

#[inline(always)]
fn network4(packet: &impl Packet, at: usize) -> Option<Network> {
    let head: [u8; 20] = packet.bytes(at)?;
    let length = usize::from(head[0] & 0xf) * 4;
    if head[0] >> 4 != 4 || length < 20 {
        return None;
    }
    let fragment = u16::from_be_bytes([head[6], head[7]]);
    // Bit 13 says that more follow, the bits below where this one belongs.
    let (more, later) = (fragment & 0x2000 != 0, fragment & 0x1fff != 0);
    Some(Network {
        source: mapped(word(&head, 12)),
        target: mapped(word(&head, 16)),
        protocol: head[9],
        payload: at + length,
        id: (more || later).then(|| u32::from(u16::from_be_bytes([head[4], head[5]]))),
        later,
    })
}

#[inline(always)]
fn network6(packet: &impl Packet, at: usize) -> Option<Network> {
    let head: [u8; 40] = packet.bytes(at)?;
    if head[0] >> 4 != 6 {
        return None;
    }
    let mut network = Network {
        source: [word(&head, 8), word(&head, 12), word(&head, 16), word(&head, 20)],
        target: [word(&head, 24), word(&head, 28), word(&head, 32), word(&head, 36)],
        protocol: head[6],
        payload: at + 40,
        id: None,
        later: false,
    };
    for _ in 0..EXTENSIONS {
        let length = match network.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {
                let head: [u8; 8] = packet.bytes(network.payload)?;
                let kind = network.protocol;
                network.protocol = head[0];
                if kind == FRAGMENT {
                    let place = u16::from_be_bytes([head[2], head[3]]);
                    network.later = place & 0xfff8 != 0;
                    // A lone piece is a whole datagram.
                    if place & 0xfff9 != 0 {
                        network.id = Some(word(&head, 4));
                    }
                    8
                } else if kind == AUTHENTICATION {
                    (usize::from(head[1]) + 2) * 4
                } else {
                    (usize::from(head[1]) + 1) * 8
                }
            }
            _ => return Some(network),
        };
        network.payload += length;
        if network.later {
            return Some(network);
        }
    }
    Some(network)
}

/// Four bytes as they lie in memory.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;
    use std::net::IpAddr;

    /// A frame under construction.
    #[derive(Clone, Default)]
    pub struct Frame(pub Vec<u8>);

    impl Packet for Frame {
        fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            self.0.get(offset..offset + N)?.try_into().ok()
        }
    }

    /// The Ethernet header alone; what kind of frame it is, is told apart.
    pub fn frame() -> Frame {
        Frame(vec![0; ETHERNET_LENGTH])
    }

    impl Frame {
        /// An IP header; the flags and offset of a fragment are for IPv4, `protocol` may be an extension header over IPv6.
        pub fn ip(mut self, from: &str, to: &str, protocol: u8, fragment: u16) -> Self {
            match (from.parse().unwrap(), to.parse().unwrap()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    self.0.extend([0x46, 0, 0, 0, 0xab, 0xcd]);
                    self.0.extend(fragment.to_be_bytes());
                    self.0.extend([64, protocol, 0, 0]);
                    self.0.extend(from.octets());
                    self.0.extend(to.octets());
                    // Four bytes of options.
                    self.0.extend([1, 1, 1, 0]);
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    self.0.extend([0x60, 0, 0, 0, 0, 0, protocol, 64]);
                    self.0.extend(from.octets());
                    self.0.extend(to.octets());
                }
                _ => panic!("{from} and {to} are of two families"),
            }
            self
        }

        /// Bytes as they are.
        pub fn raw(mut self, bytes: &[u8]) -> Self {
            self.0.extend(bytes);
            self
        }

        /// A TCP header.
        pub fn tcp(self, from: u16, to: u16, flags: u8) -> Self {
            let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
            self.raw(&from).raw(&to).raw(&[0; 8]).raw(&[0x50, flags]).raw(&[0; 6])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Frame, frame};
    use super::*;
    use crate::decide::testing::addr;

    const V4: u16 = ETHERTYPE_V4;
    const V6: u16 = ETHERTYPE_V6;

    fn ends(from: &str, from_port: u16, to: &str, to_port: u16) -> Ends {
        Ends { source: addr(from), target: addr(to), source_port: from_port, target_port: to_port }
    }

    #[test]
    fn table() {
        let (a, b) = ("192.0.2.1", "198.51.100.1");
        let (a6, b6) = ("2001:db8::1", "2001:db8:1::1");
        let tcp = |ends, opens, pieces| Content::Tcp { ends, opens, pieces };
        let four = ends(a, 4000, b, 30080);
        let six = ends(a6, 4000, b6, 30080);
        let syn4 = frame().ip(a, b, TCP, 0).tcp(4000, 30080, SYN);
        let quoted4 = frame().ip(a, b, ICMP, 0).raw(&[3, 4, 0, 0, 0, 0, 5, 0]).ip(b, a, TCP, 0).tcp(30080, 4000, ACK);
        let extended = frame()
            .ip(a6, b6, HOP_BY_HOP, 0)
            .raw(&[60, 0, 0, 0, 0, 0, 0, 0])
            .raw(&[43, 1])
            .raw(&[0; 14])
            .raw(&[6, 0, 0, 0, 0, 0, 0, 0]);
        let mut unfinished = frame().ip(a6, b6, HOP_BY_HOP, 0);
        for _ in 0..EXTENSIONS {
            unfinished = unfinished.raw(&[60, 0, 0, 0, 0, 0, 0, 0]);
        }
        let rows: Vec<(u16, Frame, Content, &str)> = vec![
            (V4, syn4.clone(), tcp(four, true, None), "a SYN behind four bytes of options"),
            (
                V4,
                frame().ip(a, b, TCP, 0x4000).tcp(4000, 30080, SYN | ACK),
                tcp(four, false, None),
                "a SYN-ACK opens nothing",
            ),
            (V4, frame().ip(a, b, TCP, 0).tcp(4000, 30080, ACK), tcp(four, false, None), "an ordinary segment"),
            (V4, frame().ip(a, b, TCP, 0x2000).tcp(4000, 30080, ACK), tcp(four, false, Some(0xabcd)), "a first piece"),
            (
                V4,
                frame().ip(a, b, TCP, 0x2005).tcp(4000, 30080, ACK),
                Content::Piece { source: addr(a), target: addr(b), id: 0xabcd },
                "a later piece has no ports, whatever its bytes say",
            ),
            (V4, frame().ip(a, b, 17, 0).tcp(4000, 30080, SYN), Content::Other, "UDP"),
            (V4, quoted4.clone(), Content::Error { quoted: ends(b, 30080, a, 4000) }, "an error quotes what we sent"),
            (V4, frame().ip(a, b, ICMP, 0).raw(&[8; 64]), Content::Other, "an echo request"),
            (
                V4,
                frame().ip(a, b, ICMP, 0).raw(&[3, 4, 0, 0, 0, 0, 5, 0]).ip(b, a, 17, 0).raw(&[0; 20]),
                Content::Other,
                "an error about UDP",
            ),
            (V6, frame().ip(a6, b6, TCP, 0).tcp(4000, 30080, SYN), tcp(six, true, None), "IPv6"),
            (V6, extended.tcp(4000, 30080, SYN), tcp(six, true, None), "behind three extension headers"),
            (V6, unfinished.tcp(4000, 30080, SYN), Content::Other, "a chain of extension headers without end"),
            (
                V6,
                frame().ip(a6, b6, AUTHENTICATION, 0).raw(&[6, 4]).raw(&[0; 22]).tcp(4000, 30080, ACK),
                tcp(six, false, None),
                "an authentication header counts in units of its own",
            ),
            (
                V6,
                frame().ip(a6, b6, FRAGMENT, 0).raw(&[6, 0, 0, 1, 0, 0, 0, 9]).tcp(4000, 30080, ACK),
                tcp(six, false, Some(9u32.to_be())),
                "a first piece over IPv6",
            ),
            (
                V6,
                frame().ip(a6, b6, FRAGMENT, 0).raw(&[6, 0, 0, 0, 0, 0, 0, 9]).tcp(4000, 30080, SYN),
                tcp(six, true, None),
                "a lone piece is whole",
            ),
            (
                V6,
                frame().ip(a6, b6, FRAGMENT, 0).raw(&[6, 0, 0, 9, 0, 0, 0, 9]).raw(&[7; 32]),
                Content::Piece { source: addr(a6), target: addr(b6), id: 9u32.to_be() },
                "a later piece over IPv6",
            ),
            (
                V6,
                frame().ip(a6, b6, ICMP6, 0).raw(&[2, 0, 0, 0, 0, 0, 5, 0]).ip(b6, a6, TCP, 0).tcp(30080, 4000, ACK),
                Content::Error { quoted: ends(b6, 30080, a6, 4000) },
                "packet too big",
            ),
            (V6, frame().ip(a6, b6, ICMP6, 0).raw(&[135; 64]), Content::Other, "a neighbour solicitation"),
            (0x0806, syn4.clone(), Content::Other, "ARP"),
            (V6, syn4.clone(), Content::Other, "a version that is not the EtherType's"),
            (V4, Frame(syn4.0[..40].to_vec()), Content::Other, "cut short in the TCP header"),
            (V4, Frame(quoted4.0[..64].to_vec()), Content::Other, "cut short in the quoted header"),
        ];
        for (ethertype, frame, expected, why) in rows {
            assert_eq!(content(ethertype, &frame), expected, "{why}");
        }
    }

    #[test]
    fn a_quoted_segment_needs_only_eight_bytes() {
        let frame = frame().ip("192.0.2.1", "198.51.100.1", ICMP, 0).raw(&[11, 0, 0, 0, 0, 0, 0, 0]);
        let frame = frame.ip("198.51.100.1", "192.0.2.1", TCP, 0).raw(&[0x75, 0x80, 0x0f, 0xa0, 0, 0, 0, 1]);
        let quoted = ends("198.51.100.1", 30080, "192.0.2.1", 4000);
        assert_eq!(content(V4, &frame), Content::Error { quoted });
    }

    #[test]
    fn no_bytes_do_harm() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for length in 0..4000usize {
            let mut bytes = vec![0u8; length % 160];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
            let version = if length % 2 == 0 { (V4, 0x45) } else { (V6, 0x60) };
            if let Some(first) = bytes.get_mut(ETHERNET_LENGTH) {
                *first = version.1;
            }
            content(version.0, &Frame(bytes));
        }
    }
}
