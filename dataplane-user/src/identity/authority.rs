//! An authority elsewhere, which makes certificates on request: Istio's, or another with the same duties.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::SpiffeId;
use super::anchors::words;
use super::pem::{Facts, show};
use super::tls::KeyAndChain;

/// A certificate as an authority handed it out.
pub struct Issued {
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key; made here where the protocol allows it.
    pub key: PrivateKeyDer<'static>,
    /// The roots of the own trust domain, as the authority sees them now.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why an authority handed out nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// It could not be asked, or not now.
    #[error("{0}")]
    Unreachable(String),
    /// It says no.
    #[error("{0}")]
    Refused(String),
}

/// What [`Authority::issue`] returns.
pub type Issuing = Pin<Box<dyn Future<Output = Result<Issued, AuthorityError>> + Send>>;

/// A source of certificates behind a network. What it sends is checked before use.
pub trait Authority: Send + Sync {
    /// Its name for the log, with its address.
    fn name(&self) -> String;

    /// Asks for a certificate that lives for `ttl`.
    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Issuing;

    /// A value that changes when its roots did: then certificates are renewed without waiting for half of their life.
    fn roots_version(&self) -> u64 {
        0
    }
}

/// Checks that a certificate is what was asked for and will be accepted by peers who trust its roots.
pub(super) fn check(
    id: &SpiffeId,
    issued: Issued,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<(KeyAndChain, Vec<CertificateDer<'static>>), String> {
    let Some((leaf, rest)) = issued.chain.split_first() else {
        return Err("sent an empty chain".into());
    };
    let facts = Facts::of(leaf)?;
    if facts.spiffe_ids().as_slice() != std::slice::from_ref(id) {
        let names = if facts.uris.is_empty() { "nobody".to_owned() } else { facts.uris.join(", ") };
        return Err(format!("sent a certificate for {names} instead of {id}"));
    }
    if now < facts.not_before || now > facts.not_after {
        return Err(format!(
            "sent a certificate valid from {} to {}, which is not now; check this machine's clock",
            show(facts.not_before),
            show(facts.not_after)
        ));
    }
    let key = provider.key_provider.load_private_key(issued.key.clone_key()).map_err(|error| error.to_string())?;
    if key.public_key().is_none_or(|public| public.as_ref() != facts.public_key) {
        return Err("sent a certificate for another key than ours".into());
    }
    let mut roots = RootCertStore::empty();
    for root in &issued.roots {
        roots.add(root.clone()).map_err(|error| format!("sent an unusable root: {error}"))?;
    }
    let at = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    EndEntityCert::try_from(leaf)
        .and_then(|parsed| {
            let algorithms = provider.signature_verification_algorithms.all;
            let usage = KeyUsage::server_auth();
            parsed.verify_for_usage(algorithms, &roots.roots, rest, at, usage, None, None).map(|_| ())
        })
        .map_err(|error| format!("sent a chain that does not hold against its own roots: {}", words(&error)))?;
    // A peer has the roots, or must not take them from us.
    let mut chain = issued.chain;
    chain.retain(|certificate| !issued.roots.contains(certificate));
    let material = KeyAndChain { chain, key: issued.key, not_before: facts.not_before, not_after: facts.not_after };
    Ok((material, issued.roots))
}
