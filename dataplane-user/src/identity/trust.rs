//! Roots, by trust domain.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::IdentityError;
use super::pem::{Facts, parse_certificates, read_text};

/// The root certificates of each trust domain. A chain is only ever checked against the roots of the domain that its leaf
/// names, so one domain's signer cannot speak for another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustBundle {
    domains: BTreeMap<String, Vec<CertificateDer<'static>>>,
}

impl TrustBundle {
    /// An empty bundle: trusts nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds roots to a domain; those already there stay.
    pub fn add(&mut self, domain: &str, roots: impl IntoIterator<Item = CertificateDer<'static>>) {
        let known = self.domains.entry(domain.to_owned()).or_default();
        for root in roots {
            if !known.contains(&root) {
                known.push(root);
            }
        }
    }

    /// Adds the roots of a PEM file to a domain. Expired roots are left out as long as one valid root remains, so that a
    /// file with old and new roots works through a change of roots.
    ///
    /// # Errors
    /// If the file cannot be read, holds something else, belongs to another trust domain, or no root in it is valid now.
    pub fn add_file(&mut self, domain: &str, path: &Path) -> Result<(), IdentityError> {
        let roots = parse_certificates(&read_text(path)?, path)?;
        let valid = check_roots(&roots, path, domain, SystemTime::now())?;
        self.add(domain, valid);
        Ok(())
    }

    /// The roots of several peers' trust domains, each from its file.
    ///
    /// # Errors
    /// As [`Self::add_file`].
    pub fn of_peers<'a>(peers: impl IntoIterator<Item = (&'a str, &'a Path)>) -> Result<Self, IdentityError> {
        let mut bundle = Self::new();
        for (domain, path) in peers {
            bundle.add_file(domain, path)?;
        }
        Ok(bundle)
    }

    /// Adds everything of another bundle.
    pub fn merge(&mut self, other: &Self) {
        for (domain, roots) in &other.domains {
            self.add(domain, roots.iter().cloned());
        }
    }

    /// The roots of a domain.
    #[must_use]
    pub fn roots(&self, domain: &str) -> Option<&[CertificateDer<'static>]> {
        self.domains.get(domain).map(Vec::as_slice)
    }

    /// All domains with their roots, in order.
    pub fn domains(&self) -> impl Iterator<Item = (&str, &[CertificateDer<'static>])> {
        self.domains.iter().map(|(domain, roots)| (domain.as_str(), roots.as_slice()))
    }
}

/// Roots that are valid now; an error if there is none or one belongs elsewhere.
pub(super) fn check_roots(
    roots: &[CertificateDer<'static>],
    path: &Path,
    domain: &str,
    now: SystemTime,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut valid = Vec::new();
    let mut first_error = None;
    for root in roots {
        let facts = Facts::of(root).map_err(|reason| IdentityError::Malformed { path: path.to_owned(), reason })?;
        facts.check_domain(path, domain)?;
        match facts.check_time(path, now) {
            Ok(()) => valid.push(root.clone()),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    match (valid.is_empty(), first_error) {
        (true, Some(error)) => Err(error),
        _ => Ok(valid),
    }
}
