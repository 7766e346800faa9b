//! Events about objects that cannot have what somebody wants for them, each with a line in the log.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ::kube::Client;
use ::kube::runtime::events::{Event, EventType, Recorder, Reporter};
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::task::JoinSet;
use tracing::warn;

/// The same complaint about the same object is repeated after this time.
const REPEAT: Duration = Duration::from_secs(300);
/// The longest an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What has been said of whom.
pub(super) struct Complaints {
    recorder: Recorder,
    said: BTreeMap<String, (String, Instant)>,
    events: JoinSet<()>,
}

/// What could not be done.
#[derive(Clone, Copy)]
pub(super) struct Failed<'a> {
    /// In one word, for events.
    pub(super) reason: &'a str,
    /// What was tried, for events.
    pub(super) action: &'a str,
    /// What the object is not, for the log.
    pub(super) line: &'a str,
}

impl Complaints {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter { controller: "causeway".to_owned(), instance: Some(node.to_owned()) };
        Self { recorder: Recorder::new(client, reporter), said: BTreeMap::new(), events: JoinSet::new() }
    }

    /// Tells whoever looks at an object what it cannot have and why, and what to do.
    pub(super) fn complain(&mut self, about: ObjectReference, failed: Failed<'_>, text: &str) {
        let uid = about.uid.clone().unwrap_or_default();
        let said = self.said.get(&uid);
        if said.is_some_and(|(before, at)| before == text && at.elapsed() < REPEAT) {
            return;
        }
        self.said.insert(uid, (text.to_owned(), Instant::now()));
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        warn!("{}/{} is not {}: {text}", part(&about.namespace), part(&about.name), failed.line);
        let event = Event {
            type_: EventType::Warning,
            reason: failed.reason.to_owned(),
            note: Some(text.chars().take(1000).collect()),
            action: failed.action.to_owned(),
            secondary: None,
        };
        let recorder = self.recorder.clone();
        self.events.spawn(async move {
            match tokio::time::timeout(PATIENCE, recorder.publish(&event, &about)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!("an event cannot be written: {error}"),
                Err(_) => warn!("an event cannot be written: no answer"),
            }
        });
    }

    /// An object has what it should: what was said of it holds no more.
    pub(super) fn settled(&mut self, uid: &str) {
        self.said.remove(uid);
    }

    /// Forgets objects that are gone.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.said.retain(|uid, _| is_there(uid));
    }

    /// Takes in what has ended.
    pub(super) fn work(&mut self) {
        while self.events.try_join_next().is_some() {}
    }
}
