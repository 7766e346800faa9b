//! Ready-made certificates in PEM files.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;

use super::pem::{Facts, parse_certificates, read_text};
use super::store::CertificateFiles;
use super::tls::KeyAndChain;
use super::trust::check_roots;
use super::{IdentityError, SpiffeId};

/// The files as they were read: equal text means nothing to do on a reload.
#[derive(PartialEq, Eq)]
pub(super) struct FileTexts {
    roots_path: PathBuf,
    roots: String,
    entries: Vec<FileText>,
}

#[derive(PartialEq, Eq)]
struct FileText {
    files: CertificateFiles,
    chain: String,
    key: String,
}

impl FileTexts {
    pub(super) fn read(certificates: &[CertificateFiles], roots: &Path) -> Result<Self, IdentityError> {
        let entries = certificates
            .iter()
            .map(|files| {
                Ok(FileText { chain: read_text(&files.chain)?, key: read_text(&files.key)?, files: files.clone() })
            })
            .collect::<Result<_, IdentityError>>()?;
        Ok(Self { roots_path: roots.to_owned(), roots: read_text(roots)?, entries })
    }

    /// Checks every entry as a peer would and returns the roots.
    pub(super) fn check(
        &self,
        trust_domain: &str,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let roots = parse_certificates(&self.roots, &self.roots_path)?;
        let roots = check_roots(&roots, &self.roots_path, trust_domain, now)?;
        let mut store = RootCertStore::empty();
        for root in &roots {
            store.add(root.clone()).map_err(|error| IdentityError::Malformed {
                path: self.roots_path.clone(),
                reason: error.to_string(),
            })?;
        }
        for entry in &self.entries {
            entry.check(trust_domain, &store, &self.roots_path, provider, now)?;
        }
        Ok(roots)
    }
}

impl FileText {
    fn check(
        &self,
        trust_domain: &str,
        roots: &RootCertStore,
        roots_path: &Path,
        provider: &CryptoProvider,
        now: SystemTime,
    ) -> Result<(), IdentityError> {
        let path = &self.files.chain;
        let (leaf, rest, facts) = self.leaf()?;
        facts.check_time(path, now)?;
        facts.check_domain(path, trust_domain)?;
        if facts.spiffe_ids().as_slice() != std::slice::from_ref(&self.files.identity) {
            return Err(IdentityError::OtherIdentity {
                path: path.clone(),
                found: facts.uris.join(", "),
                configured: self.files.identity.to_string(),
            });
        }
        let key = KeyPair::from_pem(&self.key).map_err(|error| IdentityError::Malformed {
            path: self.files.key.clone(),
            reason: format!("not a private key in PEM (PKCS#8, SEC1 or PKCS#1): {error}"),
        })?;
        if key.subject_public_key_info() != facts.public_key {
            return Err(IdentityError::KeyMismatch { key: self.files.key.clone(), certificate: path.clone() });
        }
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        ParsedCertificate::try_from(&leaf)
            .and_then(|parsed| {
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    roots,
                    &rest,
                    UnixTime::since_unix_epoch(since_epoch),
                    provider.signature_verification_algorithms.all,
                )
            })
            .map_err(|error| IdentityError::NotSignedByRoot {
                certificate: path.clone(),
                roots: roots_path.to_owned(),
                reason: error.to_string(),
            })
    }

    fn leaf(&self) -> Result<(CertificateDer<'static>, Vec<CertificateDer<'static>>, Facts), IdentityError> {
        let path = &self.files.chain;
        let malformed = |reason: String| IdentityError::Malformed { path: path.clone(), reason };
        let mut chain = parse_certificates(&self.chain, path)?.into_iter();
        let leaf = chain.next().ok_or_else(|| malformed("holds no certificate".into()))?;
        let facts = Facts::of(&leaf).map_err(malformed)?;
        Ok((leaf, chain.collect(), facts))
    }
}

/// The material of files that [`FileTexts::check`] has accepted.
pub(super) fn load_files(texts: &FileTexts) -> Result<Vec<(SpiffeId, KeyAndChain)>, IdentityError> {
    texts
        .entries
        .iter()
        .map(|entry| {
            let (leaf, rest, facts) = entry.leaf()?;
            let key =
                PrivateKeyDer::from_pem_slice(entry.key.as_bytes()).map_err(|error| IdentityError::Malformed {
                    path: entry.files.key.clone(),
                    reason: format!("not a private key in PEM: {error}"),
                })?;
            let mut chain = vec![leaf];
            chain.extend(rest);
            Ok((
                entry.files.identity.clone(),
                KeyAndChain { chain, key, not_before: facts.not_before, not_after: facts.not_after },
            ))
        })
        .collect()
}
