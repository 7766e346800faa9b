//! The `:authority` of a CONNECT request.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// Longest host name in text form (RFC 1035, 255 octets on the wire).
const MAX_HOST: usize = 253;

/// Where a CONNECT request wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// A socket address; never IPv4-mapped IPv6, never port 0.
    Ip(SocketAddr),
    /// A host name, lower case and without a trailing dot, and a port that is never 0.
    Host {
        /// The normalised name.
        name: String,
        /// The port, as the sender named it (a service port where the name is a service's).
        port: u16,
    },
}

/// Why an authority was refused. The answer on the wire is status 400 in every case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Nothing at all.
    #[error("authority is empty")]
    Empty,
    /// No `:port` at the end.
    #[error("authority {0:?} has no port; expected ip:port or host:port")]
    NoPort(String),
    /// The port is not a number from 1 to 65535.
    #[error("authority {0:?} has a port that is not a number from 1 to 65535")]
    BadPort(String),
    /// Something before an `@`.
    #[error("authority {0:?} carries user information, which CONNECT forbids (RFC 9113 section 8.5)")]
    UserInfo(String),
    /// A host that is neither an address nor a name.
    #[error("authority {0:?} has a host that is neither an address nor a name; IPv6 addresses need brackets")]
    BadHost(String),
}

impl Authority {
    /// Parses `ip:port`, `[ip6]:port` or `host:port`.
    ///
    /// A socket address is tried first. IPv4-mapped addresses become IPv4, names become lower case and lose one trailing
    /// dot, so that equal targets compare equal.
    ///
    /// # Errors
    /// Says which part is wrong; nothing is guessed.
    pub fn parse(text: &str) -> Result<Self, AuthorityError> {
        if text.is_empty() {
            return Err(AuthorityError::Empty);
        }
        if text.contains('@') {
            return Err(AuthorityError::UserInfo(shorten(text)));
        }
        if let Ok(address) = SocketAddr::from_str(text) {
            return Self::from_socket(address, text);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AuthorityError::NoPort(shorten(text)))?;
        if host.starts_with('[') && !host.ends_with(']') {
            // "[fd00::1]" alone splits inside the brackets.
            return Err(AuthorityError::NoPort(shorten(text)));
        }
        let port = parse_port(port).ok_or_else(|| AuthorityError::BadPort(shorten(text)))?;
        let name = normalise_host(host).ok_or_else(|| AuthorityError::BadHost(shorten(text)))?;
        Ok(Self::Host { name, port })
    }

    fn from_socket(address: SocketAddr, text: &str) -> Result<Self, AuthorityError> {
        if address.port() == 0 {
            return Err(AuthorityError::BadPort(shorten(text)));
        }
        if let SocketAddr::V6(v6) = address
            && (v6.scope_id() != 0 || v6.flowinfo() != 0)
        {
            // A zone only has a meaning on the sender's machine.
            return Err(AuthorityError::BadHost(shorten(text)));
        }
        Ok(Self::Ip(SocketAddr::new(address.ip().to_canonical(), address.port())))
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }

    /// The address, if there is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Host { .. } => None,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// `u16::from_str` would take a leading plus sign.
fn parse_port(text: &str) -> Option<u16> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

fn normalise_host(host: &str) -> Option<String> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let fits = !host.is_empty() && host.len() <= MAX_HOST;
    let labels_good = host.split('.').all(|label| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    });
    // "10.0.0.1." is no name: without its dot it would mean an address.
    let is_address = host.parse::<IpAddr>().is_ok();
    (fits && labels_good && !is_address).then(|| host.to_ascii_lowercase())
}

/// Keeps a hostile authority from filling the log.
fn shorten(text: &str) -> String {
    const MAX: usize = 128;
    if text.chars().count() <= MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(MAX).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepted_authorities_are_normalised() {
        let rows = [
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("[::ffff:10.0.0.1]:15008", "10.0.0.1:15008"),
            ("web.default.svc.cluster.local:80", "web.default.svc.cluster.local:80"),
            ("Web.Default.svc:65535", "web.default.svc:65535"),
            ("web.default.svc.cluster.local.:80", "web.default.svc.cluster.local:80"),
            ("localhost:1", "localhost:1"),
            ("a_b-c.d:9", "a_b-c.d:9"),
        ];
        for (text, shown) in rows {
            let parsed = Authority::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(parsed.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn refused_authorities_name_the_wrong_part() {
        type Check = fn(&AuthorityError) -> bool;
        let no_port: Check = |e| matches!(e, AuthorityError::NoPort(_));
        let bad_port: Check = |e| matches!(e, AuthorityError::BadPort(_));
        let bad_host: Check = |e| matches!(e, AuthorityError::BadHost(_));
        let rows: [(&str, Check); 21] = [
            ("10.0.0.1.:80", bad_host),
            ("", |e| matches!(e, AuthorityError::Empty)),
            ("web", no_port),
            ("1.2.3.4", no_port),
            ("[fd00::1]", no_port),
            ("web:", bad_port),
            ("web:0", bad_port),
            ("1.2.3.4:0", bad_port),
            ("[fd00::1]:0", bad_port),
            ("web:65536", bad_port),
            ("web:+80", bad_port),
            ("web: 80", bad_port),
            (":80", bad_host),
            (".:80", bad_host),
            ("fd00::1:80", bad_host),
            ("[web]:80", bad_host),
            ("a..b:80", bad_host),
            ("web..:80", bad_host),
            ("wéb:80", bad_host),
            ("[fe80::1%3]:80", bad_host),
            ("user@web:80", |e| matches!(e, AuthorityError::UserInfo(_))),
        ];
        for (text, expected) in rows {
            let error = Authority::parse(text).expect_err(text);
            assert!(expected(&error), "{text}: {error}");
        }
    }

    #[test]
    fn error_text_of_a_hostile_authority_is_short() {
        let error = Authority::parse(&"é".repeat(100_000)).expect_err("no port");
        assert!(error.to_string().len() < 500);
    }

    proptest! {
        #[test]
        fn any_text_never_panics_and_what_parses_is_a_fixed_point(text in ".{0,80}") {
            if let Ok(parsed) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(&parsed.to_string()), Ok(parsed));
            }
        }

        #[test]
        fn socket_addresses_round_trip(ip: std::net::IpAddr, port in 1u16..) {
            let address = SocketAddr::new(ip.to_canonical(), port);
            prop_assert_eq!(Authority::parse(&address.to_string()), Ok(Authority::Ip(address)));
        }

        #[test]
        fn hosts_round_trip(name in "[a-z][a-z0-9]{0,20}(\\.[a-z0-9_-]{1,20}){0,4}", port in 1u16..) {
            let text = format!("{name}:{port}");
            if text.parse::<SocketAddr>().is_err() {
                prop_assert_eq!(Authority::parse(&text), Ok(Authority::Host { name, port }));
            }
        }
    }
}
