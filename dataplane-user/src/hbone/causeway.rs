//! Headers of our own, spoken only between peers that both announce them. They are optional, ignored when malformed and
//! never authorise anything.

use std::fmt;
use std::net::SocketAddr;

/// Most addresses a hint may carry.
pub const MAX_HINT_ADDRESSES: usize = 32;
/// Longest hint in bytes.
pub const MAX_HINT_BYTES: usize = 1024;

/// The extension version to speak with a peer that sent this `x-causeway` value: the lower of its and ours.
#[must_use]
pub fn peer_version(value: &[u8]) -> Option<u32> {
    const OURS: u32 = 1;
    if value.is_empty() || value.len() > 9 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let theirs: u32 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (theirs >= 1).then_some(theirs.min(OURS))
}

/// Which endpoint answered: 1 to 64 characters of `[A-Za-z0-9._-]`, opaque, stable for one pod's life.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(String);

impl EndpointId {
    /// Reads a header value; nothing if it is malformed.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let good = (1..=64).contains(&value.len())
            && value.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        good.then(|| Self(value.iter().map(|b| char::from(*b)).collect()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Other entry points of a gateway's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewaysHint {
    /// The addresses, in the sender's order, without duplicates.
    pub addresses: Vec<SocketAddr>,
}

impl GatewaysHint {
    /// Reads a header value. One malformed, surplus or unusable address discards the whole hint: half a list would look
    /// like the gateways had changed.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.is_empty() || value.len() > MAX_HINT_BYTES {
            return None;
        }
        let text = std::str::from_utf8(value).ok()?;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for part in text.split(',') {
            let address: SocketAddr = part.parse().ok()?;
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            let ip = address.ip();
            // Nobody's gateway is at one of these; a peer must not be able to aim us at ourselves.
            if address.port() == 0 || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
                return None;
            }
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        (addresses.len() <= MAX_HINT_ADDRESSES).then_some(Self { addresses })
    }

    /// The header value: as many addresses, from the front, as the limits allow; nothing if there are none.
    #[must_use]
    pub fn to_header(&self) -> Option<String> {
        let mut header = String::new();
        for address in self.addresses.iter().take(MAX_HINT_ADDRESSES) {
            let text = address.to_string();
            if header.len() + text.len() + 1 > MAX_HINT_BYTES {
                break;
            }
            if !header.is_empty() {
                header.push(',');
            }
            header.push_str(&text);
        }
        (!header.is_empty()).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn version_is_the_lower_of_both() {
        let rows: [(&[u8], Option<u32>); 7] = [
            (b"1", Some(1)),
            (b"7", Some(1)),
            (b"0", None),
            (b"", None),
            (b"1.0", None),
            (b"-1", None),
            (b"99999999999", None),
        ];
        for (value, expected) in rows {
            assert_eq!(peer_version(value), expected, "{value:?}");
        }
    }

    #[test]
    fn endpoint_id_keeps_to_its_alphabet_and_length() {
        assert!(EndpointId::parse(b"pod-1.default_x").is_some());
        assert!(EndpointId::parse(&[b'a'; 64]).is_some());
        for bad in [&b""[..], &[b'a'; 65], b"a b", b"a/b", b"\xc3\xa9"] {
            assert_eq!(EndpointId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn hint_with_one_bad_address_is_discarded() {
        let good = GatewaysHint::parse(b"172.30.2.1:15008,[fd00::2]:31000").unwrap();
        assert_eq!(good.addresses.len(), 2);
        for bad in [&b""[..], b"172.30.2.1:15008,", b"172.30.2.1", b"127.0.0.1:1", b"[::]:1", b"1.2.3.4:0", b"a:1"] {
            assert_eq!(GatewaysHint::parse(bad), None, "{bad:?}");
        }
        let many: Vec<String> = (1..=33).map(|i| format!("10.0.0.{i}:1")).collect();
        assert_eq!(GatewaysHint::parse(many.join(",").as_bytes()), None);
    }

    #[test]
    fn emitted_hint_stays_within_the_limits_and_reads_back() {
        let addresses: Vec<SocketAddr> =
            (1..=100).map(|i| format!("[fd00:1111:2222:3333:4444:5555:6666:{i:x}]:15008").parse().unwrap()).collect();
        let header = GatewaysHint { addresses }.to_header().unwrap();
        assert!(header.len() <= MAX_HINT_BYTES);
        assert!(GatewaysHint::parse(header.as_bytes()).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(value: Vec<u8>) {
            let _ = (peer_version(&value), EndpointId::parse(&value), GatewaysHint::parse(&value));
        }

        #[test]
        fn hints_round_trip(hosts in prop::collection::btree_set((1u8..=223, 1u16..), 1..32)) {
            let addresses: Vec<SocketAddr> = hosts
                .into_iter()
                .map(|(last, port)| SocketAddr::new([10, 0, 0, last].into(), port))
                .collect();
            let hint = GatewaysHint { addresses };
            let header = hint.to_header().unwrap();
            prop_assert_eq!(GatewaysHint::parse(header.as_bytes()), Some(hint));
        }
    }
}
