//! Certificate revocation lists from a PEM file.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject as _;
use tracing::{info, warn};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::IdentityError;
use super::pem::read_text;

/// A file with revocation lists, read again whenever it is looked at.
#[derive(Debug)]
pub(super) struct RevocationFile {
    path: PathBuf,
    text: String,
    failing: bool,
}

impl RevocationFile {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), text: String::new(), failing: false }
    }

    /// The lists, if the file holds others than last time. A file that cannot be used changes nothing; that is logged once.
    pub(super) fn poll(&mut self) -> Option<Vec<CertRevocationList<'static>>> {
        let read = read_text(&self.path).and_then(|text| {
            if text == self.text { Ok(None) } else { parse(&text, &self.path).map(|lists| Some((text, lists))) }
        });
        match read {
            Ok(new) => {
                self.failing = false;
                let (text, lists) = new?;
                info!("{}: {} revocation lists in force", self.path.display(), lists.len());
                self.text = text;
                Some(lists)
            }
            Err(error) => {
                if !self.failing {
                    let kept = if self.text.is_empty() { "nothing is revoked" } else { "the last good lists stay" };
                    warn!("revocation list {error}; {kept} until it can be read");
                }
                self.failing = true;
                None
            }
        }
    }
}

/// An empty file revokes nothing; Kubernetes mounts such before there is a list.
fn parse(text: &str, path: &Path) -> Result<Vec<CertRevocationList<'static>>, IdentityError> {
    let malformed = |reason: String| IdentityError::Malformed { path: path.to_owned(), reason };
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let lists = CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(format!("not PEM: {error}")))?;
    if lists.is_empty() {
        return Err(malformed("holds no revocation list; expected \"-----BEGIN X509 CRL-----\"".into()));
    }
    lists
        .iter()
        .map(|der| {
            OwnedCertRevocationList::from_der(der.as_ref())
                .map(CertRevocationList::from)
                .map_err(|error| malformed(format!("not a revocation list of X.509 version 2: {error}")))
        })
        .collect()
}
