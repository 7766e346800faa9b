//! Keeping certificates of an authority that has to be asked over the network.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::authority::{Authority, AuthorityError, Issued, check};
use super::pem::show;
use super::requests::{Demand, Requests};
use super::source::Source;
use super::store::CertificateStore;
use super::{Credential, IdentityError, SpiffeId};

/// How often files and due renewals are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long a connection waits for its first certificate.
const PATIENCE: Duration = Duration::from_secs(10);

/// An authority, what it is asked for, and its roots.
pub(super) struct Remote {
    authority: Arc<dyn Authority>,
    requests: Requests,
    roots: Roots,
    roots_version: u64,
}

/// Roots seen, with the time from which on each is no longer accepted. A root that the authority stopped naming stays for as
/// long as a certificate below it may live, so that peers have time to get theirs renewed.
#[derive(Debug, Default)]
struct Roots(Vec<(CertificateDer<'static>, Option<SystemTime>)>);

/// What is known of one identity's certificate.
#[derive(Debug, Clone)]
pub struct CertificateState {
    /// Whose.
    pub id: SpiffeId,
    /// Whether there is one.
    pub state: State,
    /// The certificate, which may live on while its renewal fails.
    pub credential: Option<Arc<Credential>>,
}

/// Whether there is a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It was asked for and has not come yet.
    Initializing,
    /// There is a valid one, and nothing is wrong.
    Available,
    /// The last request failed; why.
    Unavailable(String),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Initializing => f.write_str("Initializing"),
            Self::Available => f.write_str("Available"),
            Self::Unavailable(why) => write!(f, "Unavailable: {why}"),
        }
    }
}

impl Remote {
    pub(super) fn new(authority: Arc<dyn Authority>) -> Self {
        let roots_version = authority.roots_version();
        Self { authority, requests: Requests::default(), roots: Roots::default(), roots_version }
    }

    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.0.iter().map(|(root, _)| root.clone()).collect()
    }
}

impl Roots {
    /// Takes over what the authority names now; true if a root came or went.
    fn adopt(&mut self, named: &[CertificateDer<'static>], overlap: Duration, now: SystemTime) -> bool {
        for (root, until) in &mut self.0 {
            if named.contains(root) {
                *until = None;
            } else {
                until.get_or_insert(now + overlap);
            }
        }
        let before = self.0.len();
        for root in named {
            if self.0.iter().all(|(known, _)| known != root) {
                self.0.push((root.clone(), None));
            }
        }
        self.0.len() != before
    }

    /// Forgets roots whose time is over; true if there was one.
    fn expire(&mut self, now: SystemTime) -> bool {
        let before = self.0.len();
        self.0.retain(|(_, until)| until.is_none_or(|until| now < until));
        self.0.len() != before
    }
}

impl CertificateStore {
    /// Keeps certificates: asks for what is due, renews, follows files. Never returns; to be spawned once.
    pub async fn run(self: Arc<Self>) {
        let mut requests: JoinSet<Result<Issued, AuthorityError>> = JoinSet::new();
        let mut asked: HashMap<Id, SpiffeId> = HashMap::new();
        let mut tick = tokio::time::interval(TICK);
        loop {
            while let Some((id, issuing)) = self.next_request() {
                asked.insert(requests.spawn(issuing).id(), id);
            }
            tokio::select! {
                Some(done) = requests.join_next_with_id() => {
                    let (task, result) = match done {
                        Ok((task, result)) => (task, result),
                        Err(error) => (error.id(), Err(AuthorityError::Unreachable(format!("internal: {error}")))),
                    };
                    if let Some(id) = asked.remove(&task) {
                        self.answered(&id, result, SystemTime::now());
                    }
                }
                () = self.wake.notified() => {}
                _ = tick.tick() => self.tick(),
            }
        }
    }

    /// From now on these identities are needed: their certificates are asked for ahead of use, those of others forgotten.
    pub fn need(&self, ids: impl IntoIterator<Item = SpiffeId>) {
        let needed: HashSet<SpiffeId> = ids.into_iter().collect();
        let mut inner = self.lock();
        match &mut inner.source {
            // Made by others; there is nothing to save.
            Source::Files { .. } => return,
            Source::Directory { .. } => {}
            Source::Remote(remote) => {
                let own: Vec<SpiffeId> =
                    needed.iter().filter(|id| id.trust_domain() == self.config.trust_domain).cloned().collect();
                remote.requests.need(|id| needed.contains(id), &own, SystemTime::now());
            }
        }
        inner.entries.retain(|id, _| needed.contains(id));
        drop(inner);
        self.wake.notify_one();
    }

    /// Every identity that is or was wanted, with the state of its certificate, by name.
    #[must_use]
    pub fn states(&self) -> Vec<CertificateState> {
        let inner = self.lock();
        let mut ids: HashSet<&SpiffeId> = inner.entries.keys().collect();
        if let Source::Remote(remote) = &inner.source {
            ids.extend(remote.requests.ids());
        }
        let mut states: Vec<CertificateState> = ids
            .into_iter()
            .map(|id| {
                let credential = inner.valid(id, SystemTime::now());
                let failure = match &inner.source {
                    Source::Remote(remote) => remote.requests.error(id).map(ToString::to_string),
                    _ => inner.failure(id),
                };
                let state = match (failure, &credential) {
                    (Some(why), _) => State::Unavailable(why),
                    (None, Some(_)) => State::Available,
                    (None, None) => State::Initializing,
                };
                CertificateState { id: id.clone(), state, credential }
            })
            .collect();
        states.sort_by(|a, b| a.id.cmp(&b.id));
        states
    }

    /// Number of roots of the own trust domain that are accepted now; two or more while they change.
    #[must_use]
    pub fn roots_accepted(&self) -> usize {
        self.lock().source.roots().len()
    }

    /// The certificate of an identity, asked for if need be.
    pub(super) async fn request(&self, id: &SpiffeId) -> Result<Arc<Credential>, IdentityError> {
        let unavailable = |reason: String| IdentityError::Unavailable { identity: id.to_string(), reason };
        let deadline = Instant::now() + PATIENCE;
        let mut changes = self.changed.subscribe();
        loop {
            changes.mark_unchanged();
            {
                let now = SystemTime::now();
                let mut inner = self.lock();
                if let Some(credential) = inner.valid(id, now) {
                    return Ok(credential);
                }
                if id.trust_domain() != self.config.trust_domain {
                    let own = &self.config.trust_domain;
                    return Err(unavailable(format!("it is of another trust domain than ours ({own})")));
                }
                if let Source::Remote(remote) = &mut inner.source
                    && let Demand::Refused(why) = remote.requests.demand(id, now)
                {
                    return Err(unavailable(why));
                }
            }
            self.wake.notify_one();
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                let last = match &self.lock().source {
                    Source::Remote(remote) => remote.requests.error(id).map(ToString::to_string),
                    _ => None,
                };
                let waited = format!("none came within {} s", PATIENCE.as_secs());
                return Err(unavailable(last.map_or(waited.clone(), |last| format!("{waited}; {last}"))));
            }
        }
    }

    fn next_request(&self) -> Option<(SpiffeId, super::Issuing)> {
        let mut inner = self.lock();
        let Source::Remote(remote) = &mut inner.source else {
            return None;
        };
        let id = remote.requests.next(SystemTime::now())?;
        let issuing = remote.authority.issue(&id, self.config.ttl);
        Some((id, issuing))
    }

    /// Takes over the answer to a request.
    fn answered(&self, id: &SpiffeId, result: Result<Issued, AuthorityError>, now: SystemTime) {
        let checked = result.and_then(|issued| {
            check(id, issued, &self.provider, now)
                .map_err(|reason| AuthorityError::Refused(format!("the certificate authority {reason}")))
        });
        let outcome = checked.and_then(|(material, roots)| {
            let mut inner = self.lock();
            self.adopt_roots(&mut inner, &roots, now)
                .and_then(|()| self.insert(&mut inner, id, material, now))
                .map_err(|error| AuthorityError::Refused(error.to_string()))
        });
        let mut inner = self.lock();
        let renew_at = inner.rotate_at(id).unwrap_or(now);
        let share = self.random_share();
        let Source::Remote(remote) = &mut inner.source else {
            return;
        };
        match outcome {
            Ok(credential) => {
                info!(
                    "certificate of {id} from {}, valid until {}",
                    remote.authority.name(),
                    show(credential.not_after)
                );
                remote.requests.succeeded(id, renew_at, now);
            }
            Err(error) => {
                let known = remote.requests.error(id) == Some(&error);
                let pause = remote.requests.failed(id, error.clone(), now, share);
                if !known {
                    warn!(
                        "no certificate for {id} from {}: {error}; next attempt in {:.1} s",
                        remote.authority.name(),
                        pause.as_secs_f64()
                    );
                }
            }
        }
        drop(inner);
        self.changed.send_modify(|generation| *generation += 1);
    }

    fn adopt_roots(
        &self,
        inner: &mut super::store::Inner,
        roots: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let Source::Remote(remote) = &mut inner.source else {
            return Ok(());
        };
        let first = remote.roots.0.is_empty();
        if !remote.roots.adopt(roots, self.config.ttl, now) {
            return Ok(());
        }
        if !first {
            let name = remote.authority.name();
            info!(
                "{name} names new roots: {} are accepted now, old ones for the life of a certificate",
                remote.roots.0.len()
            );
            // Certificates below the new root make the change short.
            remote.requests.renew_all(now);
        }
        self.apply_trust(inner)
    }

    fn tick(&self) {
        self.poll_revocation();
        let now = SystemTime::now();
        let mut inner = self.lock();
        if let Source::Remote(remote) = &mut inner.source {
            let version = remote.authority.roots_version();
            if version != remote.roots_version {
                remote.roots_version = version;
                info!("the root bundle of {} changed: certificates are renewed", remote.authority.name());
                remote.requests.renew_all(now);
            }
            if remote.roots.expire(now) {
                info!("roots that the authority no longer names are accepted no more");
                if let Err(error) = self.apply_trust(&inner) {
                    warn!("{error}");
                }
            }
            return;
        }
        drop(inner);
        if let Err(error) = self.reload() {
            self.complain(&error.to_string());
        } else {
            self.complain("");
        }
        for id in self.rotate_due(now) {
            info!("renewed the certificate of {id}");
        }
    }
}
