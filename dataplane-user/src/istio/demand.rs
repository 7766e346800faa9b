//! What a server is asked for on demand, and who waits for its answers. No input or output, no clock of its own.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Most names asked for at once.
const MOST: usize = 10_000;
/// How long the absence of an address counts: it may become a pod's at any time, and istiod does not tell.
const ABSENT_ADDRESS: Duration = Duration::from_secs(1);
/// How long the absence of a name counts. A server tells when it appears; this is for those that forget to.
const ABSENT_NAME: Duration = Duration::from_secs(10);
/// A question that is not answered for so long is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// Somebody wants to know about a name.
#[derive(Debug)]
pub(super) struct Want {
    /// `network/address`, `namespace/hostname` or a uid.
    pub(super) name: String,
    /// Told when the server has answered.
    pub(super) answered: oneshot::Sender<()>,
}

#[derive(Debug)]
enum State {
    Pending { since: Instant, waiting: Vec<oneshot::Sender<()>> },
    Known,
    Absent { since: Instant },
}

/// Names to subscribe to and to let go first: servers do not answer a second time for what is already subscribed to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) unsubscribe: Vec<String>,
    pub(super) subscribe: Vec<String>,
}

/// All that is asked of one server.
#[derive(Debug, Default)]
pub(super) struct Demand {
    names: HashMap<String, State>,
}

impl Demand {
    /// Takes a wish in; says what the server has to be asked. Whoever cannot be helped finds its channel closed.
    pub(super) fn want(&mut self, want: Want, now: Instant) -> Ask {
        let Want { name, answered } = want;
        let mut ask = Ask::default();
        match self.names.get_mut(&name) {
            Some(State::Pending { since, waiting }) => {
                waiting.retain(|waiter| !waiter.is_closed());
                waiting.push(answered);
                if now.saturating_duration_since(*since) < AGAIN {
                    return ask;
                }
                *since = now;
                ask.unsubscribe.push(name.clone());
            }
            Some(State::Absent { since }) if now.saturating_duration_since(*since) < keeps(&name) => {
                let _ = answered.send(());
                return ask;
            }
            // Known once, and asked for all the same: it is gone from the model.
            Some(state) => {
                *state = State::Pending { since: now, waiting: vec![answered] };
                ask.unsubscribe.push(name.clone());
            }
            None => {
                if self.names.len() >= MOST {
                    ask.unsubscribe = self.make_room(now);
                    if self.names.len() >= MOST {
                        return ask;
                    }
                }
                self.names.insert(name.clone(), State::Pending { since: now, waiting: vec![answered] });
            }
        }
        ask.subscribe.push(name);
        ask
    }

    /// Forgets what was absent and may be asked for again.
    fn make_room(&mut self, now: Instant) -> Vec<String> {
        let old = |(name, state): (&String, &State)| match state {
            State::Absent { since } if now.saturating_duration_since(*since) >= keeps(name) => Some(name.clone()),
            _ => None,
        };
        let names: Vec<String> = self.names.iter().filter_map(old).collect();
        for name in &names {
            self.names.remove(name);
        }
        names
    }

    /// Takes an answer in: `removed` are the names that it says are not there, `known` tells of all others what is.
    pub(super) fn told(&mut self, removed: &[String], known: impl Fn(&str) -> bool, now: Instant) {
        for name in removed {
            if let Some(state) = self.names.get_mut(name) {
                tell(state, State::Absent { since: now });
            }
        }
        for (name, state) in &mut self.names {
            if matches!(state, State::Pending { .. }) && known(name) {
                tell(state, State::Known);
            }
        }
    }

    /// What a new stream has to subscribe to. What was absent is forgotten: nobody tells any more when it appears.
    pub(super) fn resume(&mut self) -> Vec<String> {
        self.names.retain(|_, state| !matches!(state, State::Absent { .. }));
        self.names.keys().cloned().collect()
    }
}

fn tell(state: &mut State, new: State) {
    if let State::Pending { waiting, .. } = std::mem::replace(state, new) {
        for waiter in waiting {
            // Whoever has given up waiting needs no answer.
            let _ = waiter.send(());
        }
    }
}

fn keeps(name: &str) -> Duration {
    if is_address(name) { ABSENT_ADDRESS } else { ABSENT_NAME }
}

fn is_address(name: &str) -> bool {
    name.split_once('/').is_some_and(|(_, rest)| rest.parse::<std::net::IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn want(demand: &mut Demand, name: &str, now: Instant) -> (Ask, oneshot::Receiver<()>) {
        let (answered, answer) = oneshot::channel();
        (demand.want(Want { name: name.to_owned(), answered }, now), answer)
    }

    fn ask(unsubscribe: &[&str], subscribe: &[&str]) -> Ask {
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        Ask { unsubscribe: texts(unsubscribe), subscribe: texts(subscribe) }
    }

    #[test]
    fn a_name_is_asked_for_once_and_all_who_wait_are_told() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let (first, mut one) = want(&mut demand, "net/10.0.0.1", now);
        let (second, mut two) = want(&mut demand, "net/10.0.0.1", now);
        assert_eq!((first, second), (ask(&[], &["net/10.0.0.1"]), Ask::default()));
        assert!(one.try_recv().is_err());
        demand.told(&[], |name| name == "net/10.0.0.1", now);
        assert!(one.try_recv().is_ok() && two.try_recv().is_ok());
        let (again, _) = want(&mut demand, "net/10.0.0.1", now);
        assert_eq!(again, ask(&["net/10.0.0.1"], &["net/10.0.0.1"]), "gone from the model: asked for anew");
    }

    #[test]
    fn an_absence_counts_for_a_while_and_is_asked_about_again() {
        for (name, keeps) in [("net/10.0.0.1", ABSENT_ADDRESS), ("ns/web.ns.svc", ABSENT_NAME)] {
            let (mut demand, now) = (Demand::default(), Instant::now());
            let (_, mut answer) = want(&mut demand, name, now);
            demand.told(&[name.to_owned(), "other".to_owned()], |_| false, now);
            assert!(answer.try_recv().is_ok());
            let (none, mut answer) = want(&mut demand, name, now + keeps / 2);
            assert!(none == Ask::default() && answer.try_recv().is_ok(), "{name}: told at once");
            let (again, mut answer) = want(&mut demand, name, now + keeps);
            assert!(again == ask(&[name], &[name]) && answer.try_recv().is_err(), "{name}");
        }
    }

    #[test]
    fn a_silent_server_is_asked_again_and_a_new_stream_repeats_what_is_open() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for name in ["a/a", "b/b", "c/c"] {
            want(&mut demand, name, now);
        }
        let (again, _) = want(&mut demand, "a/a", now + AGAIN);
        assert_eq!(again, ask(&["a/a"], &["a/a"]));
        demand.told(&["b/b".to_owned()], |name| name == "c/c", now);
        let mut names = demand.resume();
        names.sort();
        assert_eq!(names, ["a/a", "c/c"]);
    }

    #[test]
    fn no_client_can_ask_without_end() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        let names: Vec<String> = (0..MOST).map(|number| format!("net/10.0.{}.{}", number >> 8, number & 255)).collect();
        for name in &names {
            want(&mut demand, name, now);
        }
        let (refused, mut answer) = want(&mut demand, "net/9.9.9.9", now);
        assert_eq!(refused, Ask::default());
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        demand.told(&names, |_| false, now);
        let (asked, _) = want(&mut demand, "net/9.9.9.9", now + ABSENT_ADDRESS);
        assert_eq!((asked.unsubscribe.len(), asked.subscribe), (MOST, vec!["net/9.9.9.9".to_owned()]));
    }
}
