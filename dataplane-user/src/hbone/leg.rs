//! The fixed steps of a connection, and the error that names the one that failed.

use std::{cell::Cell, fmt, time::Instant};

use super::advice;

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

    /// The field of the access log with the time this leg took.
    pub fn field(self) -> &'static str {
        match self {
            Leg::Accept => "policy_ms",
            Leg::Resolve => "resolve_ms",
            Leg::OuterTcp => "outer_tcp_ms",
            Leg::OuterTls => "outer_tls_ms",
            Leg::Connect => "connect_ms",
            Leg::InnerTls => "inner_tls_ms",
            Leg::Backend => "backend_ms",
        }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long each leg of one connection took, in microseconds; 0 for a leg it did not walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegTimes([u32; Leg::ALL.len()]);

impl LegTimes {
    /// The legs that were walked, in order, with their microseconds.
    pub fn walked(self) -> impl Iterator<Item = (Leg, u32)> {
        Leg::ALL.into_iter().zip(self.0).filter(|(_, micros)| *micros > 0)
    }

    /// The microseconds of `leg`, if it was walked.
    pub fn of(self, leg: Leg) -> Option<u32> {
        self.0.get(leg as usize).copied().filter(|micros| *micros > 0)
    }
}

/// Takes the times of one connection while it is made. A leg that is walked twice, on two endpoints, takes their sum.
#[derive(Debug, Default)]
pub struct Walk(Cell<LegTimes>);

impl Walk {
    /// Notes that `leg` was walked from `since` until now.
    pub fn done(&self, leg: Leg, since: Instant) {
        let micros = u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX);
        self.add(leg, micros.max(1));
    }

    /// Adds what another walk took.
    pub fn absorb(&self, times: LegTimes) {
        for (leg, micros) in times.walked() {
            self.add(leg, micros);
        }
    }

    /// The times so far.
    pub fn times(&self) -> LegTimes {
        self.0.get()
    }

    /// The times so far, to begin anew.
    pub fn take(&self) -> LegTimes {
        self.0.take()
    }

    fn add(&self, leg: Leg, micros: u32) {
        let mut times = self.0.get();
        if let Some(time) = times.0.get_mut(leg as usize) {
            *time = time.saturating_add(micros);
        }
        self.0.set(times);
    }
}

/// What Istio's metrics tell apart among failures, beyond the leg.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// Nothing of the below.
    #[default]
    Other,
    /// No answer in time: what a NetworkPolicy that drops packets looks like.
    Timeout,
    /// The own workload has no certificate.
    NoCertificate,
    /// The peer's certificate or its signer stands on a revocation list.
    Revoked,
    /// TLS was agreed on, HTTP/2 was not.
    Preface,
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
    /// What kind of failure it is, where that matters to somebody.
    pub cause: Cause,
}

impl ConnError {
    /// An error that another endpoint may not have.
    pub fn retryable(leg: Leg, peer: impl fmt::Display, reason: impl fmt::Display) -> Self {
        let (peer, reason) = (peer.to_string(), reason.to_string());
        Self { leg, peer, reason, status: None, retryable: true, cause: Cause::Other }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// An error that every endpoint would answer alike.
    pub fn fatal(leg: Leg, peer: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self { retryable: false, ..Self::retryable(leg, peer, reason) }
    }

    /// A CONNECT that was answered with something other than 200.
    pub fn status(leg: Leg, peer: impl fmt::Display, status: u16) -> Self {
        Self {
            leg,
            peer: peer.to_string(),
            reason: advice::status(leg, status),
            status: Some(status),
            // 400 and 401 are verdicts on the request itself; asking elsewhere would only repeat them.
            retryable: status >= 500,
            cause: Cause::Other,
        }
    }
}

impl fmt::Display for ConnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: {}", self.leg, self.peer, self.reason)
    }
}

impl std::error::Error for ConnError {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_legs_that_were_walked_have_a_time() {
        let walk = Walk::default();
        assert_eq!(walk.times().walked().count(), 0);
        let before = Instant::now().checked_sub(Duration::from_millis(2)).unwrap_or_else(Instant::now);
        walk.done(Leg::Resolve, before);
        walk.done(Leg::Backend, Instant::now());
        let times = walk.times();
        assert!(times.of(Leg::Resolve) >= Some(2_000), "{times:?}");
        assert!(times.of(Leg::Backend).is_some(), "a leg that took no measurable time was walked all the same");
        let legs: Vec<Leg> = times.walked().map(|(leg, _)| leg).collect();
        assert_eq!(legs, [Leg::Resolve, Leg::Backend]);
    }

    #[test]
    fn a_leg_walked_twice_takes_the_sum() {
        let (walk, second) = (Walk::default(), Walk::default());
        walk.add(Leg::OuterTcp, 30);
        second.add(Leg::OuterTcp, 12);
        second.add(Leg::OuterTls, 5);
        walk.absorb(second.times());
        assert_eq!(walk.times().of(Leg::OuterTcp), Some(42));
        assert_eq!(walk.times().of(Leg::OuterTls), Some(5));
        walk.add(Leg::OuterTcp, u32::MAX);
        assert_eq!(walk.times().of(Leg::OuterTcp), Some(u32::MAX));
    }

    #[test]
    fn legs_stand_in_their_order() {
        for (index, leg) in Leg::ALL.into_iter().enumerate() {
            assert_eq!(leg as usize, index, "{leg} is looked up by its place");
        }
    }
}
