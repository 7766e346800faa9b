//! A local intermediate authority that makes leaf certificates for the workloads of its own node.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use time::OffsetDateTime;

use super::pem::{Facts, parse_certificates, read_text};
use super::tls::KeyAndChain;
use super::trust::check_roots;
use super::{IdentityError, SpiffeId};

/// Leaves begin in the past, so that a peer whose clock lags accepts them.
const BACKDATE: Duration = Duration::from_secs(120);

/// File names of the layout that Istio's `cacerts` secret and cert-manager's istio-csr use.
pub(super) const CA_CERT: &str = "ca-cert.pem";
pub(super) const CA_KEY: &str = "ca-key.pem";
pub(super) const ROOT_CERT: &str = "root-cert.pem";
pub(super) const CERT_CHAIN: &str = "cert-chain.pem";

/// The files of a directory as they were read: equal text means nothing to do on a reload.
#[derive(PartialEq, Eq)]
pub(super) struct CaFiles {
    directory: PathBuf,
    certificate: String,
    key: String,
    roots: String,
    chain: Option<String>,
}

impl CaFiles {
    pub(super) fn read(directory: &Path) -> Result<Self, IdentityError> {
        let chain = directory.join(CERT_CHAIN);
        Ok(Self {
            certificate: read_text(&directory.join(CA_CERT))?,
            key: read_text(&directory.join(CA_KEY))?,
            roots: read_text(&directory.join(ROOT_CERT))?,
            // Optional: without it the chain is the intermediate alone.
            chain: if chain.exists() { Some(read_text(&chain)?) } else { None },
            directory: directory.to_owned(),
        })
    }
}

/// An intermediate that signs leaves.
pub(super) struct LocalCa {
    issuer: Issuer<'static, KeyPair>,
    /// What follows the leaf in a handshake.
    chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    certificate_path: PathBuf,
    facts: Facts,
}

impl LocalCa {
    /// Builds the authority and checks everything that can be wrong with it, down to a test leaf.
    pub(super) fn new(
        files: &CaFiles,
        trust_domain: &str,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<Self, IdentityError> {
        let certificate_path = files.directory.join(CA_CERT);
        let key_path = files.directory.join(CA_KEY);
        let roots_path = files.directory.join(ROOT_CERT);
        let malformed = |path: &Path, reason: String| IdentityError::Malformed { path: path.to_owned(), reason };

        let certificate = parse_certificates(&files.certificate, &certificate_path)?
            .into_iter()
            .next()
            .ok_or_else(|| malformed(&certificate_path, "holds no certificate".into()))?;
        let facts = Facts::of(&certificate).map_err(|reason| malformed(&certificate_path, reason))?;
        facts.check_time(&certificate_path, now)?;
        facts.check_domain(&certificate_path, trust_domain)?;
        if !facts.is_ca {
            return Err(malformed(
                &certificate_path,
                "is not an authority (basicConstraints CA is not set); an intermediate is needed here".into(),
            ));
        }
        let key = KeyPair::from_pem(&files.key).map_err(|error| {
            malformed(&key_path, format!("not a private key in PEM (PKCS#8, SEC1 or PKCS#1): {error}"))
        })?;
        if key.subject_public_key_info() != facts.public_key {
            return Err(IdentityError::KeyMismatch { key: key_path, certificate: certificate_path });
        }
        let roots = parse_certificates(&files.roots, &roots_path)?;
        let roots = check_roots(&roots, &roots_path, trust_domain, now)?;
        let chain = presented_chain(files, &certificate, &roots)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| malformed(&certificate_path, error.to_string()))?;

        let ca = Self { issuer, chain, roots, certificate_path, facts };
        ca.prove_chain(trust_domain, &roots_path, provider, now)?;
        Ok(ca)
    }

    /// Issues a leaf nobody will use and verifies it as a peer would: finds a wrong root, a forbidding path length, a
    /// signature by another key of the same name.
    fn prove_chain(
        &self,
        trust_domain: &str,
        roots_path: &Path,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let unproven = |reason: String| IdentityError::NotSignedByRoot {
            certificate: self.certificate_path.clone(),
            roots: roots_path.to_owned(),
            reason,
        };
        let probe = SpiffeId::new(trust_domain, "causeway", "probe").map_err(|error| IdentityError::Unavailable {
            identity: trust_domain.to_owned(),
            reason: error.to_string(),
        })?;
        let leaf = self.issue(&probe, Duration::from_secs(600), now)?;
        let mut store = RootCertStore::empty();
        for root in &self.roots {
            store.add(root.clone()).map_err(|error| unproven(error.to_string()))?;
        }
        let (first, rest) = leaf.chain.split_first().ok_or_else(|| unproven("empty chain".into()))?;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let parsed = ParsedCertificate::try_from(first).map_err(|error| unproven(error.to_string()))?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &store,
            rest,
            UnixTime::since_unix_epoch(since_epoch),
            provider.signature_verification_algorithms.all,
        )
        .map_err(|error| unproven(error.to_string()))
    }

    /// Makes a fresh P-256 key and a leaf for it.
    pub(super) fn issue(&self, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<KeyAndChain, IdentityError> {
        self.facts.check_time(&self.certificate_path, now)?;
        let refused =
            |error: rcgen::Error| IdentityError::Unavailable { identity: id.to_string(), reason: error.to_string() };
        let not_before = now.checked_sub(BACKDATE).unwrap_or(now);
        let not_after = now.checked_add(ttl).map_or(self.facts.not_after, |end| end.min(self.facts.not_after));
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::from(not_before);
        params.not_after = OffsetDateTime::from(not_after);
        // An empty subject makes the SAN extension critical, as RFC 5280 section 4.2.1.6 asks.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(refused)?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(refused)?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(refused)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.chain.iter().cloned());
        Ok(KeyAndChain { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(), not_before, not_after })
    }
}

/// The intermediates to send: `cert-chain.pem` without roots, which a peer has or must not trust, the signer first.
fn presented_chain(
    files: &CaFiles,
    signer: &CertificateDer<'static>,
    roots: &[CertificateDer<'static>],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut chain = vec![signer.clone()];
    if let Some(text) = &files.chain {
        let path = files.directory.join(CERT_CHAIN);
        for certificate in parse_certificates(text, &path)? {
            if !chain.contains(&certificate) {
                chain.push(certificate);
            }
        }
    }
    chain.retain(|certificate| !roots.contains(certificate));
    Ok(chain)
}
