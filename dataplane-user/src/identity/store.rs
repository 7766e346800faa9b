//! Certificates of the identities this process speaks for.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;

use super::files::{FileTexts, load_files};
use super::issuer::{CaFiles, LocalCa};
use super::tls::{KeyAndChain, provider};
use super::verify::Trust;
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
    /// Life of a leaf made from an intermediate.
    pub ttl: Duration,
}

/// Hands out certificates, renews them, and holds whom we trust.
pub struct CertificateStore {
    config: StoreConfig,
    provider: Arc<CryptoProvider>,
    trust: Arc<Trust>,
    generation: AtomicU64,
    inner: Mutex<Inner>,
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the keys.
        f.debug_struct("CertificateStore").field("config", &self.config).finish_non_exhaustive()
    }
}

struct Inner {
    source: Source,
    peers: TrustBundle,
    entries: HashMap<SpiffeId, Entry>,
}

enum Source {
    Directory { files: CaFiles, ca: Box<LocalCa> },
    Files { texts: FileTexts, roots: Vec<CertificateDer<'static>> },
}

struct Entry {
    credential: Arc<Credential>,
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
        let trust = Arc::new(Trust::new(provider.clone()));
        let source = Source::load(&config, &provider)?;
        let store = Self {
            trust,
            generation: AtomicU64::new(0),
            inner: Mutex::new(Inner { source, peers: TrustBundle::new(), entries: HashMap::new() }),
            provider,
            config,
        };
        {
            let mut inner = store.lock();
            store.apply_trust(&inner)?;
            store.adopt_files(&mut inner)?;
        }
        Ok(Arc::new(store))
    }

    /// The certificate of an identity; made on first use where there is an authority.
    ///
    /// # Errors
    /// If nothing here can speak for it. A certificate that could not be renewed is handed out until it expires.
    #[allow(
        clippy::unused_async,
        reason = "an authority behind the network answers later; callers must not depend on an instant answer"
    )]
    pub async fn credential(&self, id: &SpiffeId) -> Result<Arc<Credential>, IdentityError> {
        self.obtain(id, SystemTime::now())
    }

    /// [`Self::credential`] for a moment and without waiting; makes a key, which takes a fraction of a millisecond.
    ///
    /// # Errors
    /// As [`Self::credential`].
    pub fn obtain(&self, id: &SpiffeId, now: SystemTime) -> Result<Arc<Credential>, IdentityError> {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get(id)
            && now < entry.credential.not_after
        {
            return Ok(entry.credential.clone());
        }
        self.renew(&mut inner, id, now)
    }

    /// Renews every certificate whose time has come (half of its life, give or take a tenth) and returns whose were
    /// replaced. A failure keeps the old one and is listed by [`Self::failures`].
    pub fn rotate_due(&self, now: SystemTime) -> Vec<SpiffeId> {
        let mut inner = self.lock();
        if matches!(inner.source, Source::Files { .. }) {
            // Files are renewed by whoever writes them.
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

    /// Forgets identities that nobody here needs any more.
    pub fn retain(&self, mut needed: impl FnMut(&SpiffeId) -> bool) {
        self.lock().entries.retain(|id, _| needed(id));
    }

    /// The own trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.config.trust_domain
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_trust(&self, inner: &Inner) -> Result<(), IdentityError> {
        let mut bundle = inner.peers.clone();
        bundle.add(&self.config.trust_domain, inner.source.roots().iter().cloned());
        self.trust.set(&bundle)
    }

    fn renew(&self, inner: &mut Inner, id: &SpiffeId, now: SystemTime) -> Result<Arc<Credential>, IdentityError> {
        let unavailable = |reason: String| IdentityError::Unavailable { identity: id.to_string(), reason };
        if id.trust_domain() != self.config.trust_domain {
            return Err(unavailable(format!("it is of another trust domain than ours ({})", self.config.trust_domain)));
        }
        let Source::Directory { ca, .. } = &inner.source else {
            return Err(unavailable("no file is configured for it, or the certificate has expired".into()));
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

    fn insert(
        &self,
        inner: &mut Inner,
        id: &SpiffeId,
        material: KeyAndChain,
        now: SystemTime,
    ) -> Result<Arc<Credential>, IdentityError> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        let rotate_at = half_life(&material, &self.provider, now);
        let credential = Arc::new(Credential::new(id.clone(), generation, material, &self.provider, &self.trust)?);
        inner.entries.insert(id.clone(), Entry { credential: credential.clone(), rotate_at, failure: None });
        Ok(credential)
    }
}

/// Pause after a failed renewal.
const RETRY: Duration = Duration::from_secs(5);

/// Half of what is left of the life, give or take a tenth, so that a node's certificates do not all fall due at once.
fn half_life(material: &KeyAndChain, provider: &CryptoProvider, now: SystemTime) -> SystemTime {
    let left = material.not_after.duration_since(now).unwrap_or_default();
    let mut random = [0; 2];
    // Without randomness there is no jitter, which harms nobody.
    let _ = provider.secure_random.fill(&mut random);
    let share = 0.45 + 0.1 * f64::from(u16::from_le_bytes(random)) / f64::from(u16::MAX);
    // At the end of the signer's own life what is left shrinks to nothing; a renewal each second is enough.
    now + left.mul_f64(share).max(Duration::from_secs(1))
}

impl Source {
    fn load(config: &StoreConfig, provider: &CryptoProvider) -> Result<Self, IdentityError> {
        let now = SystemTime::now();
        match &config.source {
            CertificateSource::Directory(directory) => {
                let files = CaFiles::read(directory)?;
                let ca = LocalCa::new(&files, &config.trust_domain, provider, now)?;
                Ok(Self::Directory { files, ca: Box::new(ca) })
            }
            CertificateSource::Files { certificates, roots } => {
                let texts = FileTexts::read(certificates, roots)?;
                let roots = texts.check(&config.trust_domain, provider, now)?;
                Ok(Self::Files { texts, roots })
            }
        }
    }

    fn roots(&self) -> &[CertificateDer<'static>] {
        match self {
            Self::Directory { ca, .. } => &ca.roots,
            Self::Files { roots, .. } => roots,
        }
    }

    fn same_text(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Directory { files: a, .. }, Self::Directory { files: b, .. }) => a == b,
            (Self::Files { texts: a, .. }, Self::Files { texts: b, .. }) => a == b,
            _ => false,
        }
    }
}
