//! The `forwarded` header: the application's own address and the service it named.

use std::fmt;
use std::net::SocketAddr;

/// Content of a `forwarded` header (the parts of RFC 7239 that HBONE peers use).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The application's address as the source node saw it.
    pub for_: Option<SocketAddr>,
    /// Host name of the service that was addressed.
    pub host: Option<String>,
}

impl Forwarded {
    /// Reads the first header line. A line with a byte outside ASCII is ignored as a whole; unknown parts are skipped.
    #[must_use]
    pub fn parse(line: &[u8]) -> Self {
        let text = match std::str::from_utf8(line) {
            Ok(text) if text.is_ascii() => text,
            _ => return Self::default(),
        };
        let mut forwarded = Self::default();
        let (mut for_seen, mut host_seen) = (false, false);
        for part in text.split(';').map(str::trim) {
            if let Some(value) = part.strip_prefix("host=")
                && !host_seen
            {
                host_seen = true;
                let host = unquote(value);
                forwarded.host = (!host.is_empty()).then(|| host.to_owned());
            } else if let Some(value) = part.strip_prefix("for=")
                && !for_seen
            {
                for_seen = true;
                forwarded.for_ = unquote(value).parse().ok();
            }
        }
        forwarded
    }

    /// The header value, or nothing when there is nothing to say.
    #[must_use]
    pub fn to_header(&self) -> Option<String> {
        let text = self.to_string();
        (!text.is_empty()).then_some(text)
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A host that would break the header is left out: the value is for telemetry only.
        let host = self.host.as_deref().filter(|host| {
            !host.is_empty() && host.bytes().all(|b| matches!(b, 0x21..=0x7e) && b != b';' && b != b'"')
        });
        match (self.for_, host) {
            (Some(address), Some(host)) => write!(f, "for=\"{address}\";host={host}"),
            (Some(address), None) => write!(f, "for=\"{address}\""),
            (None, Some(host)) => write!(f, "host={host}"),
            (None, None) => Ok(()),
        }
    }
}

/// Removes one leading and one trailing double quote, each on its own, as the reference reader does.
fn unquote(text: &str) -> &str {
    let text = text.strip_prefix('"').unwrap_or(text);
    text.strip_suffix('"').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn emitted_form_is_the_reference_one() {
        let both = Forwarded { for_: Some("10.0.0.1:4000".parse().unwrap()), host: Some("web.default.svc".into()) };
        assert_eq!(both.to_string(), "for=\"10.0.0.1:4000\";host=web.default.svc");
        let v6 = Forwarded { for_: Some("[fd00::1]:4000".parse().unwrap()), host: None };
        assert_eq!(v6.to_string(), "for=\"[fd00::1]:4000\"");
        assert_eq!(Forwarded::default().to_header(), None);
    }

    #[test]
    fn reading_follows_the_tolerance_rules() {
        let rows: [(&[u8], Option<&str>, bool); 9] = [
            (b"for=\"10.0.0.1:4000\";host=web", Some("web"), true),
            (b"for=10.0.0.1:4000; host=\"web\"", Some("web"), true),
            (b"host=a;host=b", Some("a"), false),
            (b"host=;host=b", None, false),
            (b"Host=web", None, false),
            (b"host=\"web", Some("web"), false),
            (b"host=w\xc3\xa9b", None, false),
            (b"for=unknown;proto=http", None, false),
            (b"", None, false),
        ];
        for (line, host, has_for) in rows {
            let read = Forwarded::parse(line);
            assert_eq!(read.host.as_deref(), host, "{line:?}");
            assert_eq!(read.for_.is_some(), has_for, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(line: Vec<u8>) {
            let read = Forwarded::parse(&line);
            if let Some(header) = read.to_header() {
                let again = Forwarded::parse(header.as_bytes());
                prop_assert_eq!(again.for_, read.for_);
            }
        }

        #[test]
        fn addresses_and_hosts_round_trip(ip: std::net::IpAddr, port: u16, host in "[a-z0-9.-]{1,40}") {
            let sent = Forwarded { for_: Some(SocketAddr::new(ip, port)), host: Some(host) };
            prop_assert_eq!(Forwarded::parse(sent.to_string().as_bytes()), sent);
        }
    }
}
