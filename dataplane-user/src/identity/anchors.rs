//! What every handshake and every live tunnel is checked against: roots by trust domain, and revocation lists.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::sync::watch;
use webpki::{CertRevocationList, EndEntityCert, KeyUsage, RevocationOptionsBuilder, UnknownStatusPolicy};

use super::verify::{PeerError, leaf_identity};
use super::{IdentityError, SpiffeId, TrustBundle};

/// What a peer is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// It accepted our connection.
    Server,
    /// It connected to us.
    Client,
}

/// Roots and revocation lists, replaced as a whole; every handshake sees the newest.
pub(super) struct Trust {
    domains: ArcSwap<HashMap<String, RootCertStore>>,
    revoked: ArcSwap<Vec<CertRevocationList<'static>>>,
    pub(super) provider: Arc<CryptoProvider>,
    /// Raised by every change that may take a peer's standing away.
    changed: watch::Sender<u64>,
    rejected: AtomicU64,
    untracked: AtomicU64,
}

/// What revocation lists did so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocations {
    /// Peers refused, and tunnels ended, because a certificate or its signer stands on a list.
    pub rejected: u64,
    /// Tunnels that no list can end, because the peer's chain is not known.
    pub untracked: u64,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trust").field(&self.names()).finish()
    }
}

impl Trust {
    pub(super) fn new(provider: Arc<CryptoProvider>) -> Self {
        Self {
            domains: ArcSwap::default(),
            revoked: ArcSwap::default(),
            provider,
            changed: watch::Sender::new(0),
            rejected: AtomicU64::new(0),
            untracked: AtomicU64::new(0),
        }
    }

    pub(super) fn revocations(&self) -> Revocations {
        Revocations { rejected: self.rejected.load(Relaxed), untracked: self.untracked.load(Relaxed) }
    }

    /// Replaces all roots; on an error the old ones stay.
    pub(super) fn set(&self, bundle: &TrustBundle) -> Result<(), IdentityError> {
        let mut domains = HashMap::new();
        for (domain, roots) in bundle.domains().filter(|(_, roots)| !roots.is_empty()) {
            let mut store = RootCertStore::empty();
            for root in roots {
                store.add(root.clone()).map_err(|error| IdentityError::Tls {
                    what: "root certificate",
                    reason: format!("trust domain {domain}: {error}"),
                })?;
            }
            domains.insert(domain.to_owned(), store);
        }
        self.domains.store(Arc::new(domains));
        self.changed.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// Replaces the revocation lists.
    pub(super) fn set_revoked(&self, lists: Vec<CertRevocationList<'static>>) {
        self.revoked.store(Arc::new(lists));
        self.changed.send_modify(|generation| *generation += 1);
    }

    fn names(&self) -> String {
        let domains = self.domains.load();
        let mut names: Vec<_> = domains.keys().map(String::as_str).collect();
        names.sort_unstable();
        names.join(", ")
    }

    /// Checks a chain against the roots of the domain its leaf names and against the revocation lists. Certificates whose
    /// issuer has no list pass, as in Istio's proxies.
    pub(super) fn verify(
        &self,
        presented: &SpiffeId,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: PeerRole,
        at: UnixTime,
    ) -> Result<(), PeerError> {
        let domains = self.domains.load();
        let Some(roots) = domains.get(presented.trust_domain()) else {
            return Err(PeerError::UntrustedDomain { presented: presented.clone(), trusted: self.names() });
        };
        let lists = self.revoked.load();
        let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_status_policy(UnknownStatusPolicy::Allow).build());
        let usage = match role {
            PeerRole::Server => KeyUsage::server_auth(),
            PeerRole::Client => KeyUsage::client_auth(),
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verified = EndEntityCert::try_from(end_entity).and_then(|leaf| {
            leaf.verify_for_usage(algorithms, &roots.roots, intermediates, at, usage, revocation, None).map(|_| ())
        });
        verified.map_err(|error| match error {
            webpki::Error::CertRevoked => {
                self.rejected.fetch_add(1, Relaxed);
                PeerError::Revoked { presented: presented.clone() }
            }
            other => PeerError::Chain {
                presented: presented.clone(),
                domain: presented.trust_domain().to_owned(),
                reason: words(&other),
            },
        })
    }

    pub(super) fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    pub(super) fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The verifier's findings for a person.
pub(super) fn words(error: &webpki::Error) -> String {
    let since = |at: UnixTime, mark: UnixTime| at.as_secs().abs_diff(mark.as_secs());
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            format!("the certificate, or one above it, expired {} s ago", since(*time, *not_after))
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            format!("the certificate, or one above it, is not valid for another {} s", since(*time, *not_before))
        }
        webpki::Error::UnknownIssuer => "it leads to none of these roots".to_owned(),
        webpki::Error::InvalidSignatureForPublicKey => {
            "a signature in it was not made by the authority of that name".to_owned()
        }
        other => format!("{other:?}"),
    }
}

/// Whether the peer of a tunnel would still be accepted. Made before the handshake, so that no change is missed.
#[derive(Debug)]
pub struct Standing {
    trust: Arc<Trust>,
    role: PeerRole,
    changes: watch::Receiver<u64>,
}

impl Standing {
    pub(super) fn new(trust: &Arc<Trust>, role: PeerRole) -> Self {
        Self { trust: trust.clone(), role, changes: trust.changed.subscribe() }
    }

    /// Waits until a chain that was accepted is so no more, because it or its root was withdrawn, and says why. A
    /// certificate that merely grows old never ends what it began.
    pub async fn lost(mut self, chain: Vec<CertificateDer<'static>>) -> String {
        let begin = UnixTime::now();
        let Some((leaf, rest)) = chain.split_first() else {
            self.trust.untracked.fetch_add(1, Relaxed);
            return std::future::pending().await;
        };
        loop {
            if self.changes.changed().await.is_err() {
                return std::future::pending().await;
            }
            let checked = leaf_identity(leaf).and_then(|id| self.trust.verify(&id, leaf, rest, self.role, begin));
            if let Err(error) = checked {
                return error.to_string();
            }
        }
    }
}
