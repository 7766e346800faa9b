//! The fixed steps of a connection, and the error that names the one that failed.

use std::fmt;

/// The step of a connection at which it failed. Log lines, counters and the command line print the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Leg {
    /// Accepting the application's or the peer's connection, and policy at the destination.
    Accept,
    /// Finding out where the connection should go.
    Resolve,
    /// TCP to the next hop.
    OuterTcp,
    /// TLS to the next hop.
    OuterTls,
    /// The CONNECT answered by the next hop.
    Connect,
    /// TLS with the destination, inside the outer tunnel.
    InnerTls,
    /// The CONNECT answered by the destination, and the connection to its application.
    Backend,
}

impl Leg {
    /// Every leg, in the order in which a connection passes them.
    pub const ALL: [Leg; 7] =
        [Leg::Accept, Leg::Resolve, Leg::OuterTcp, Leg::OuterTls, Leg::Connect, Leg::InnerTls, Leg::Backend];

    /// The word used in logs and labels.
    pub fn name(self) -> &'static str {
        match self {
            Leg::Accept => "accept/policy",
            Leg::Resolve => "resolve",
            Leg::OuterTcp => "outer-tcp",
            Leg::OuterTls => "outer-tls",
            Leg::Connect => "connect",
            Leg::InnerTls => "inner-tls",
            Leg::Backend => "backend",
        }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A connection that could not be made, or that broke: which leg, towards whom, and why.
#[derive(Debug, Clone)]
pub struct ConnError {
    /// The step that failed.
    pub leg: Leg,
    /// The other side of that step, as an address or an authority.
    pub peer: String,
    /// What happened, in words.
    pub reason: String,
    /// The HTTP status of the answer, where one came.
    pub status: Option<u16>,
    /// Whether another endpoint may be tried: true only while no application byte was consumed.
    pub retryable: bool,
}

impl ConnError {
    /// An error that another endpoint may not have.
    pub fn retryable(leg: Leg, peer: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self { leg, peer: peer.to_string(), reason: reason.to_string(), status: None, retryable: true }
    }

    /// An error that every endpoint would answer alike.
    pub fn fatal(leg: Leg, peer: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self { retryable: false, ..Self::retryable(leg, peer, reason) }
    }

    /// A CONNECT that was answered with something other than 200.
    pub fn status(leg: Leg, peer: impl fmt::Display, status: u16) -> Self {
        let reason = match status {
            401 | 403 => format!("denied by the policy of the peer (status {status})"),
            400 => "refused as malformed (status 400)".to_owned(),
            503 => "the peer has no endpoint for it (status 503)".to_owned(),
            other => format!("status {other}"),
        };
        Self {
            leg,
            peer: peer.to_string(),
            reason,
            status: Some(status),
            // 400 and 401 are verdicts on the request itself; asking elsewhere would only repeat them.
            retryable: status >= 500,
        }
    }
}

impl fmt::Display for ConnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: {}", self.leg, self.peer, self.reason)
    }
}

impl std::error::Error for ConnError {}
