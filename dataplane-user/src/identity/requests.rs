//! Which certificate to ask an authority for next, and when to ask again.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::SpiffeId;
use super::authority::AuthorityError;

/// Requests on their way at once.
pub(super) const IN_FLIGHT: usize = 8;
/// Pauses after failures, per identity: doubling between these.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(150);

/// In what order requests are made: the first first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// A connection waits.
    RealTime,
    /// A workload of this node will need it.
    WarmUp,
    /// There is one that still lives.
    Background,
}

#[derive(Debug)]
struct Request {
    due: SystemTime,
    priority: Priority,
    busy: bool,
    /// Failures in a row.
    failures: u32,
    error: Option<(AuthorityError, SystemTime)>,
}

/// What becomes of a connection that needs a certificate which is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A request is on its way, or will be shortly.
    Wait,
    /// The authority said no and will not be asked again now.
    Refused(String),
}

/// All identities this node wants certificates for.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_id: HashMap<SpiffeId, Request>,
    in_flight: usize,
}

impl Requests {
    /// A connection needs this one now. An authority that could not be reached is asked again, at most once a second.
    pub(super) fn demand(&mut self, id: &SpiffeId, now: SystemTime) -> Demand {
        let request = self.by_id.entry(id.clone()).or_insert_with(|| Request::new(now, Priority::RealTime));
        request.priority = Priority::RealTime;
        match &request.error {
            Some((AuthorityError::Refused(why), _)) if !request.busy && now < request.due => {
                Demand::Refused(why.clone())
            }
            Some((AuthorityError::Unreachable(_), at)) => {
                request.due = request.due.min(*at + FIRST_PAUSE);
                Demand::Wait
            }
            _ => {
                request.due = request.due.min(now);
                Demand::Wait
            }
        }
    }

    /// From now on exactly these are needed, besides those somebody waits for; others are forgotten.
    pub(super) fn need(&mut self, needed: impl Fn(&SpiffeId) -> bool, all: &[SpiffeId], now: SystemTime) {
        self.by_id.retain(|id, request| request.busy || needed(id));
        for id in all {
            self.by_id.entry(id.clone()).or_insert_with(|| Request::new(now, Priority::WarmUp));
        }
    }

    /// The most urgent request that is due, now marked as made.
    pub(super) fn next(&mut self, now: SystemTime) -> Option<SpiffeId> {
        if self.in_flight >= IN_FLIGHT {
            return None;
        }
        let due = self.by_id.iter_mut().filter(|(_, request)| !request.busy && request.due <= now);
        let (id, request) = due.min_by_key(|(_, request)| (request.priority, request.due))?;
        request.busy = true;
        self.in_flight += 1;
        Some(id.clone())
    }

    /// A request was answered with a certificate, to be renewed at `renew_at`. What could not be asked for before is due.
    pub(super) fn succeeded(&mut self, id: &SpiffeId, renew_at: SystemTime, now: SystemTime) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(request) = self.by_id.get_mut(id) {
            *request = Request::new(renew_at, Priority::Background);
        }
        for request in self.by_id.values_mut() {
            if matches!(request.error, Some((AuthorityError::Unreachable(_), _))) {
                request.due = request.due.min(now);
            }
        }
    }

    /// A request failed; returns the pause before the next one. `share` is a random number from 0 to 1.
    pub(super) fn failed(&mut self, id: &SpiffeId, error: AuthorityError, now: SystemTime, share: f64) -> Duration {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(request) = self.by_id.get_mut(id) else {
            return Duration::ZERO;
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << request.failures.min(10)).min(LAST_PAUSE);
        let pause = pause.mul_f64(0.8 + 0.4 * share);
        request.busy = false;
        request.failures += 1;
        request.error = Some((error, now));
        request.due = now + pause;
        pause
    }

    /// All certificates are to be renewed now, as after a change of roots.
    pub(super) fn renew_all(&mut self, now: SystemTime) {
        for request in self.by_id.values_mut().filter(|request| request.error.is_none()) {
            request.due = request.due.min(now);
        }
    }

    /// Why the last request for this one failed, if it did.
    pub(super) fn error(&self, id: &SpiffeId) -> Option<&AuthorityError> {
        self.by_id.get(id)?.error.as_ref().map(|(error, _)| error)
    }

    /// All identities wanted.
    pub(super) fn ids(&self) -> impl Iterator<Item = &SpiffeId> {
        self.by_id.keys()
    }
}

impl Request {
    fn new(due: SystemTime, priority: Priority) -> Self {
        Self { due, priority, busy: false, failures: 0, error: None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    fn id(account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", account).unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn refused() -> AuthorityError {
        AuthorityError::Refused("no".into())
    }

    #[test]
    fn waiting_connections_go_before_prefetch_and_prefetch_before_renewal() {
        let mut requests = Requests::default();
        let all = [id("warm"), id("old")];
        requests.need(|_| true, &all, at(0));
        for _ in 0..2 {
            requests.next(at(0)).unwrap();
        }
        requests.succeeded(&id("old"), at(5), at(0));
        requests.failed(&id("warm"), refused(), at(0), 0.5);
        assert_eq!(requests.demand(&id("now"), at(10)), Demand::Wait);
        assert_eq!(requests.next(at(10)), Some(id("now")));
        assert_eq!(requests.next(at(10)), Some(id("warm")));
        assert_eq!(requests.next(at(10)), Some(id("old")));
        assert_eq!(requests.next(at(10)), None);
    }

    #[test]
    fn eight_requests_are_made_at_once() {
        let mut requests = Requests::default();
        let all: Vec<SpiffeId> = (0..20).map(|number| id(&format!("a{number}"))).collect();
        requests.need(|_| true, &all, at(0));
        let made: Vec<SpiffeId> = std::iter::from_fn(|| requests.next(at(0))).collect();
        assert_eq!(made.len(), IN_FLIGHT);
        requests.succeeded(&made[0], at(100), at(0));
        assert!(requests.next(at(0)).is_some());
        assert_eq!(requests.next(at(0)), None);
    }

    #[test]
    fn pauses_double_to_a_cap_and_vary_by_a_fifth() {
        let mut requests = Requests::default();
        requests.demand(&id("a"), at(0));
        let pauses: Vec<u64> = (0..10)
            .map(|_| {
                requests.next(at(1_000_000)).unwrap();
                requests.failed(&id("a"), refused(), at(0), 0.5).as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
        for (share, milliseconds) in [(0.0, 800), (1.0, 1200)] {
            requests = Requests::default();
            requests.demand(&id("a"), at(0));
            requests.next(at(0)).unwrap();
            assert_eq!(requests.failed(&id("a"), refused(), at(0), share).as_millis(), milliseconds);
        }
    }

    #[test]
    fn a_refusal_is_told_at_once_and_an_outage_is_waited_for() {
        let mut requests = Requests::default();
        let (no, away) = (id("no"), id("away"));
        requests.demand(&no, at(0));
        requests.demand(&away, at(0));
        while requests.next(at(0)).is_some() {}
        for _ in 0..8 {
            requests.failed(&no, refused(), at(0), 0.5);
            requests.failed(&away, AuthorityError::Unreachable("down".into()), at(0), 0.5);
        }
        assert_eq!(requests.demand(&no, at(1)), Demand::Refused("no".into()));
        assert_eq!(requests.next(at(1)), None, "the refusal's pause holds against demand");
        assert_eq!(requests.demand(&away, at(1)), Demand::Wait);
        assert_eq!(requests.next(at(1)), Some(away.clone()), "an outage's does not");
        requests.failed(&away, AuthorityError::Unreachable("down".into()), at(1), 0.5);
        requests.demand(&id("other"), at(2));
        assert_eq!(requests.next(at(1)), None);
        assert_eq!(requests.next(at(2)), Some(id("other")));
        requests.succeeded(&id("other"), at(500), at(2));
        assert_eq!(requests.next(at(2)), Some(away), "one success means that the outage is over");
    }

    #[test]
    fn what_nobody_needs_is_forgotten_and_a_change_of_roots_renews_the_rest() {
        let mut requests = Requests::default();
        requests.need(|_| true, &[id("a"), id("b")], at(0));
        while let Some(made) = requests.next(at(0)) {
            requests.succeeded(&made, at(1000), at(0));
        }
        requests.need(|id| id.as_str().ends_with("/a"), &[id("a")], at(1));
        assert_eq!(requests.ids().collect::<Vec<_>>(), [&id("a")]);
        assert_eq!(requests.next(at(1)), None);
        requests.renew_all(at(2));
        assert_eq!(requests.next(at(2)), Some(id("a")));
    }
}
