//! The PROXY protocol header, version 2, that tells an application tunnel who its client is.
//!
//! Layout: section 2.2 of the PROXY protocol specification (HAProxy). The client's identity travels in a TLV of type 0xD0,
//! in the range the specification leaves to applications; waypoints of Istio read it there.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;
/// A stream over IPv4.
const STREAM_V4: u8 = 0x11;
/// A stream over IPv6.
const STREAM_V6: u8 = 0x21;
/// Type of the TLV that carries the client's identity.
const TLV_IDENTITY: u8 = 0xd0;

/// The header of a connection from `source` to `destination` by `identity`, a SPIFFE URI.
///
/// The format knows one family per header: with two, the IPv4 end is written as a v4-mapped IPv6 address. An identity too
/// long for a TLV (65,535 bytes with the addresses) is left out.
#[must_use]
pub fn proxy_header(source: SocketAddr, destination: SocketAddr, identity: Option<&str>) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    let family = match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            addresses.extend(source.octets());
            addresses.extend(destination.octets());
            STREAM_V4
        }
        (source, destination) => {
            for ip in [source, destination] {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => ip,
                };
                addresses.extend(ip.octets());
            }
            STREAM_V6
        }
    };
    addresses.extend(source.port().to_be_bytes());
    addresses.extend(destination.port().to_be_bytes());
    let most = usize::from(u16::MAX) - addresses.len() - 3;
    if let Some(identity) = identity.filter(|identity| identity.len() <= most) {
        addresses.push(TLV_IDENTITY);
        addresses.extend((identity.len() as u16).to_be_bytes());
        addresses.extend(identity.as_bytes());
    }
    let mut header = Vec::with_capacity(16 + addresses.len());
    header.extend(SIGNATURE);
    header.extend([VERSION_COMMAND, family]);
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    header
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn ipv4_header_with_identity_has_the_published_layout() {
        let header = proxy_header("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), Some("spiffe://a"));
        let expected = [
            &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x19"[..],
            &[10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 80, 0xd0, 0, 10],
            b"spiffe://a",
        ]
        .concat();
        assert_eq!(header, expected);
    }

    #[test]
    fn mixed_families_are_written_as_ipv6() {
        let header = proxy_header("10.0.0.1:1000".parse().unwrap(), "[fd00::2]:80".parse().unwrap(), None);
        assert_eq!(header.get(12..16), Some(&[0x21, 0x21, 0, 36][..]));
        assert_eq!(header.len(), 16 + 36);
    }
}
