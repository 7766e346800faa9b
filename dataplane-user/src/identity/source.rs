//! The three places certificates come from: an authority of our own, files, and an authority elsewhere.

use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;

use super::IdentityError;
use super::files::FileTexts;
use super::issuer::{CaFiles, LocalCa};
use super::remote::Remote;
use super::store::{CertificateSource, StoreConfig};

/// A source as it was last read or asked.
pub(super) enum Source {
    /// An intermediate on this machine.
    Directory { files: CaFiles, ca: Box<LocalCa> },
    /// Ready-made certificates.
    Files { texts: FileTexts, roots: Vec<CertificateDer<'static>> },
    /// An authority behind the network.
    Remote(Box<Remote>),
}

impl Source {
    /// Reads and checks what is configured.
    pub(super) fn load(config: &StoreConfig, provider: &CryptoProvider) -> Result<Self, IdentityError> {
        let now = SystemTime::now();
        match &config.source {
            CertificateSource::Directory(directory) => {
                let files = CaFiles::read(directory)?;
                let ca = LocalCa::new(&files, &config.trust_domain, provider, now)?;
                Ok(Self::Directory { files, ca: Box::new(ca) })
            }
            CertificateSource::Authority => Err(IdentityError::Unavailable {
                identity: "any workload".to_owned(),
                reason: "the configured authority is behind the network and was not given".to_owned(),
            }),
            CertificateSource::Files { certificates, roots } => {
                let texts = FileTexts::read(certificates, roots)?;
                let roots = texts.check(&config.trust_domain, provider, now)?;
                Ok(Self::Files { texts, roots })
            }
        }
    }

    /// The roots of the own trust domain.
    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        match self {
            Self::Directory { ca, .. } => ca.roots.clone(),
            Self::Files { roots, .. } => roots.clone(),
            Self::Remote(remote) => remote.roots(),
        }
    }

    /// Whether both were read from equal files.
    pub(super) fn same_text(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Directory { files: a, .. }, Self::Directory { files: b, .. }) => a == b,
            (Self::Files { texts: a, .. }, Self::Files { texts: b, .. }) => a == b,
            _ => false,
        }
    }
}
