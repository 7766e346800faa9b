//! Certificates of the identities this process speaks for.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::anchors::Trust;
use super::authority::Authority;
use super::crl::RevocationFile;
use super::files::load_files;
use super::remote::Remote;
use super::source::Source;
use super::tls::{KeyAndChain, provider};
use super::{Credential, IdentityError, SpiffeId, TrustBundle};

/// Where certificates come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// A directory with an intermediate authority (`ca-cert.pem`, `ca-key.pem`, `root-cert.pem`, `cert-chain.pem`).
    Directory(PathBuf),
    /// Ready-made certificates.
    Files {
        /// One entry per identity.
        certificates: Vec<CertificateFiles>,
        /// Roots of the own trust domain.
        roots: PathBuf,
    },
    /// An authority that is asked over the network; [`CertificateStore::with_authority`] takes it.
    Authority,
}

/// PEM files of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// Whose.
    pub identity: SpiffeId,
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What a store needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Where certificates come from.
    pub source: CertificateSource,
    /// The own trust domain.
    pub trust_domain: String,
    /// Life of a leaf made from an intermediate, and that asked of an authority.
    pub ttl: Duration,
    /// PEM file with revocation lists; it is watched.
    pub revocation: Option<PathBuf>,
}

/// Hands out certificates, renews them, and holds whom we trust.
pub struct CertificateStore {
    pub(super) config: StoreConfig,
    pub(super) provider: Arc<CryptoProvider>,
    trust: Arc<Trust>,
    generation: AtomicU64,
    inner: Mutex<Inner>,
    /// Raised whenever the state of an identity has changed.
    pub(super) changed: watch::Sender<u64>,
    /// There may be a request to make.
    pub(super) wake: Notify,
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_struct("CertificateStore").field("config", &self.config).finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) source: Source,
    peers: TrustBundle,
    pub(super) entries: HashMap<SpiffeId, Entry>,
    revoked: Option<RevocationFile>,
    /// What was last said about files that cannot be used.
    complaint: String,
}

pub(super) struct Entry {
    pub(super) credential: Arc<Credential>,
    rotate_at: SystemTime,
    failure: Option<String>,
}

impl CertificateStore {
    /// Reads and checks the source.
    ///
    /// # Errors
    /// Names the file and what is wrong with it: unreadable, expired, not yet valid, of another trust domain, not matching
    /// its key, not signed by the root.
    pub fn open(config: StoreConfig) -> Result<Arc<Self>, IdentityError> {
        let provider = provider();
        let source = Source::load(&config, &provider)?;
        Self::build(config, provider, source)
    }

    /// A store that asks `authority`. Nothing is asked before [`Self::run`] runs.
    ///
    /// # Errors
    /// None today; the roots come with the first certificate.
    pub fn with_authority(config: StoreConfig, authority: Arc<dyn Authority>) -> Result<Arc<Self>, IdentityError> {
        Self::build(config, provider(), Source::Remote(Box::new(Remote::new(authority))))
    }

    fn build(config: StoreConfig, provider: Arc<CryptoProvider>, source: Source) -> Result<Arc<Self>, IdentityError> {
        let revoked = config.revocation.as_deref().map(RevocationFile::new);
        let store = Self {
            trust: Arc::new(Trust::new(provider.clone())),
            generation: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                source,
                peers: TrustBundle::new(),
                entries: HashMap::new(),
                revoked,
                complaint: String::new(),
            }),
            provider,
            config,
            changed: watch::Sender::new(0),
            wake: Notify::new(),
        };
        {
            let mut inner = store.lock();
            store.apply_trust(&inner)?;
            store.adopt_files(&mut inner)?;
        }
        store.poll_revocation();
        Ok(Arc::new(store))
    }

    /// The certificate of an identity; made on first use where there is an authority, which an answer is waited for.
    ///
    /// # Errors
    /// If nothing here can speak for it. A certificate that could not be renewed is handed out until it expires.
    pub async fn credential(&self, id: &SpiffeId) -> Result<Arc<Credential>, IdentityError> {
        if self.is_remote() { self.request(id).await } else { self.obtain(id, SystemTime::now()) }
    }

    /// [`Self::credential`] for a moment and without waiting; makes a key, which takes a fraction of a millisecond.
    ///
    /// # Errors
    /// As [`Self::credential`].
    pub fn obtain(&self, id: &SpiffeId, now: SystemTime) -> Result<Arc<Credential>, IdentityError> {
        let mut inner = self.lock();
        if let Some(credential) = inner.valid(id, now) {
            return Ok(credential);
        }
        self.renew(&mut inner, id, now)
    }

    /// Renews every certificate whose time has come (half of its life, give or take a tenth) and returns whose were
    /// replaced. A failure keeps the old one and is listed by [`Self::failures`].
    pub fn rotate_due(&self, now: SystemTime) -> Vec<SpiffeId> {
        let mut inner = self.lock();
        if !matches!(inner.source, Source::Directory { .. }) {
            // Files are renewed by whoever writes them, an authority is asked by `run`.
            return Vec::new();
        }
        let due: Vec<SpiffeId> =
            inner.entries.iter().filter(|(_, entry)| now >= entry.rotate_at).map(|(id, _)| id.clone()).collect();
        due.into_iter()
            .filter(|id| match self.renew(&mut inner, id, now) {
                Ok(_) => true,
                Err(error) => {
                    if let Some(entry) = inner.entries.get_mut(id) {
                        entry.failure = Some(error.to_string());
                        entry.rotate_at = now + RETRY;
                    }
                    false
                }
            })
            .collect()
    }

    /// Identities whose last renewal failed, with the reason.
    #[must_use]
    pub fn failures(&self) -> Vec<(SpiffeId, String)> {
        self.lock().entries.iter().filter_map(|(id, entry)| Some((id.clone(), entry.failure.clone()?))).collect()
    }

    /// The certificates in use now, by identity.
    #[must_use]
    pub fn held(&self) -> Vec<Arc<Credential>> {
        let mut held: Vec<_> = self.lock().entries.values().map(|entry| entry.credential.clone()).collect();
        held.sort_by(|a, b| a.id.cmp(&b.id));
        held
    }

    /// When the next certificate wants to be renewed.
    #[must_use]
    pub fn next_rotation(&self) -> Option<SystemTime> {
        self.lock().entries.values().map(|e| e.rotate_at).min()
    }

    /// What revocation lists did so far.
    pub fn revocations(&self) -> super::Revocations {
        self.trust.revocations()
    }

    /// Sets the roots of other trust domains (roots given for the own domain are added to its own).
    ///
    /// # Errors
    /// If a root is unusable; the old trust stays then.
    pub fn set_trust(&self, peers: TrustBundle) -> Result<(), IdentityError> {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.peers, peers);
        let applied = self.apply_trust(&inner);
        if applied.is_err() {
            inner.peers = before;
        }
        applied
    }

    /// Reads the source again. When it changed, all certificates are made anew from it.
    ///
    /// # Errors
    /// As [`Self::open`]; everything stays as it was then.
    pub fn reload(&self) -> Result<Vec<SpiffeId>, IdentityError> {
        if self.is_remote() {
            return Ok(Vec::new());
        }
        let fresh = Source::load(&self.config, &self.provider)?;
        let mut inner = self.lock();
        if inner.source.same_text(&fresh) {
            return Ok(Vec::new());
        }
        let before = std::mem::replace(&mut inner.source, fresh);
        if let Err(error) = self.apply_trust(&inner) {
            inner.source = before;
            return Err(error);
        }
        let now = SystemTime::now();
        if matches!(inner.source, Source::Files { .. }) {
            inner.entries.clear();
            self.adopt_files(&mut inner)?;
            return Ok(inner.entries.keys().cloned().collect());
        }
        let ids: Vec<SpiffeId> = inner.entries.keys().cloned().collect();
        for id in &ids {
            self.renew(&mut inner, id, now)?;
        }
        Ok(ids)
    }

    /// Looks at the revocation lists; a list that changed ends the tunnels of those on it.
    pub(super) fn poll_revocation(&self) {
        if let Some(lists) = self.lock().revoked.as_mut().and_then(RevocationFile::poll) {
            self.trust.set_revoked(lists);
        }
    }

    /// The own trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.config.trust_domain
    }

    /// Says once that files cannot be used, and once that they can again (an empty text).
    pub(super) fn complain(&self, text: &str) {
        let mut inner = self.lock();
        if inner.complaint != text {
            match text {
                "" => info!("certificates can be read again"),
                text => warn!("the last good certificates stay in force: {text}"),
            }
            text.clone_into(&mut inner.complaint);
        }
    }

    /// A random number from 0 to 1; without randomness there is no jitter, which harms nobody.
    pub(super) fn random_share(&self) -> f64 {
        let mut random = [0; 2];
        let _ = self.provider.secure_random.fill(&mut random);
        f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX)
    }

    pub(super) fn is_remote(&self) -> bool {
        matches!(self.lock().source, Source::Remote(_))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn apply_trust(&self, inner: &Inner) -> Result<(), IdentityError> {
        let mut bundle = inner.peers.clone();
        bundle.add(&self.config.trust_domain, inner.source.roots());
        self.trust.set(&bundle)
    }

    fn renew(&self, inner: &mut Inner, id: &SpiffeId, now: SystemTime) -> Result<Arc<Credential>, IdentityError> {
        let unavailable = |reason: String| IdentityError::Unavailable { identity: id.to_string(), reason };
        if id.trust_domain() != self.config.trust_domain {
            return Err(unavailable(format!("it is of another trust domain than ours ({})", self.config.trust_domain)));
        }
        let ca = match &inner.source {
            Source::Directory { ca, .. } => ca,
            Source::Files { .. } => {
                return Err(unavailable("no file is configured for it, or the certificate has expired".into()));
            }
            Source::Remote(_) => return Err(unavailable("the authority has to be asked for it first".into())),
        };
        let material = ca.issue(id, self.config.ttl, now)?;
        self.insert(inner, id, material, now)
    }

    fn adopt_files(&self, inner: &mut Inner) -> Result<(), IdentityError> {
        let Source::Files { texts, .. } = &inner.source else {
            return Ok(());
        };
        let now = SystemTime::now();
        for (id, material) in load_files(texts)? {
            self.insert(inner, &id, material, now)?;
        }
        Ok(())
    }

    pub(super) fn insert(
        &self,
        inner: &mut Inner,
        id: &SpiffeId,
        material: KeyAndChain,
        now: SystemTime,
    ) -> Result<Arc<Credential>, IdentityError> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let rotate_at = half_life(&material, self.random_share(), now);
        let credential = Arc::new(Credential::new(id.clone(), generation, material, &self.provider, &self.trust)?);
        inner.entries.insert(id.clone(), Entry { credential: credential.clone(), rotate_at, failure: None });
        self.changed.send_modify(|generation| *generation += 1);
        Ok(credential)
    }
}

/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_secs(5);

/// Half of what is left of the life, give or take a tenth, so that a node's certificates do not all fall due at once.
fn half_life(material: &KeyAndChain, share: f64, now: SystemTime) -> SystemTime {
    let left = material.not_after.duration_since(now).unwrap_or_default();
    // At the end of the signer's own life what is left shrinks to nothing; a renewal each second is enough.
    now + left.mul_f64(0.45 + 0.1 * share).max(Duration::from_secs(1))
}

impl Inner {
    pub(super) fn valid(&self, id: &SpiffeId, now: SystemTime) -> Option<Arc<Credential>> {
        let entry = self.entries.get(id)?;
        (now < entry.credential.not_after).then(|| entry.credential.clone())
    }

    /// Why the last renewal failed, if it did.
    pub(super) fn failure(&self, id: &SpiffeId) -> Option<String> {
        self.entries.get(id)?.failure.clone()
    }

    pub(super) fn rotate_at(&self, id: &SpiffeId) -> Option<SystemTime> {
        self.entries.get(id).map(|entry| entry.rotate_at)
    }
}
