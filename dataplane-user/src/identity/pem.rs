//! Reading certificates and keys from files, and the facts about a certificate that we check.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{IdentityError, SpiffeId};

/// Reads a whole text file.
pub(super) fn read_text(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path)
        .map_err(|error| IdentityError::Io { path: path.to_owned(), reason: error.to_string() })
}

/// Parses all certificates of a PEM text; at least one.
pub(super) fn parse_certificates(text: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let malformed = |reason: String| IdentityError::Malformed { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(format!("not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(malformed("holds no certificate; expected \"-----BEGIN CERTIFICATE-----\"".into()));
    }
    for certificate in &certificates {
        Facts::of(certificate).map_err(malformed)?;
    }
    Ok(certificates)
}

/// What we look at in a certificate.
pub(super) struct Facts {
    pub(super) subject: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    /// URI SANs in order.
    pub(super) uris: Vec<String>,
    /// The public key with its algorithm, DER.
    pub(super) public_key: Vec<u8>,
    pub(super) is_ca: bool,
}

impl Facts {
    /// Parses a certificate; the error is a sentence for a person.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(certificate.as_ref())
            .map_err(|error| format!("not an X.509 certificate: {error}"))?;
        if !rest.is_empty() {
            return Err("bytes after the end of the certificate".into());
        }
        let alternative = parsed
            .subject_alternative_name()
            .map_err(|error| format!("subject alternative names cannot be read: {error}"))?;
        let uris = alternative
            .iter()
            .flat_map(|extension| &extension.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            })
            .collect::<Vec<_>>();
        let subject = match (parsed.subject().to_string(), uris.first()) {
            (text, Some(uri)) if text.is_empty() => uri.clone(),
            (text, _) => text,
        };
        Ok(Self {
            subject,
            not_before: system_time(parsed.validity().not_before.timestamp()),
            not_after: system_time(parsed.validity().not_after.timestamp()),
            uris,
            public_key: parsed.public_key().raw.to_vec(),
            is_ca: parsed.is_ca(),
        })
    }

    /// All URI SANs that are SPIFFE names of Istio's form.
    pub(super) fn spiffe_ids(&self) -> Vec<SpiffeId> {
        self.uris.iter().filter_map(|uri| SpiffeId::parse(uri).ok()).collect()
    }

    /// The trust domain that any URI SAN names, be it of a workload or of a signer (`spiffe://domain`).
    pub(super) fn trust_domain(&self) -> Option<&str> {
        self.uris
            .iter()
            .filter_map(|uri| uri.strip_prefix("spiffe://"))
            .filter_map(|rest| rest.split('/').next())
            .find(|domain| !domain.is_empty())
    }

    /// Checks the time.
    pub(super) fn check_time(&self, path: &Path, now: SystemTime) -> Result<(), IdentityError> {
        if now > self.not_after {
            return Err(IdentityError::Expired {
                path: path.to_owned(),
                subject: self.subject.clone(),
                at: show(self.not_after),
            });
        }
        if now < self.not_before {
            return Err(IdentityError::NotYetValid {
                path: path.to_owned(),
                subject: self.subject.clone(),
                at: show(self.not_before),
            });
        }
        Ok(())
    }

    /// Checks that a signer does not belong to another trust domain; one without a domain belongs to any.
    pub(super) fn check_domain(&self, path: &Path, configured: &str) -> Result<(), IdentityError> {
        match self.trust_domain() {
            Some(found) if found != configured => Err(IdentityError::OtherTrustDomain {
                path: path.to_owned(),
                found: found.to_owned(),
                configured: configured.to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

fn system_time(seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let at =
        if seconds >= 0 { SystemTime::UNIX_EPOCH.checked_add(span) } else { SystemTime::UNIX_EPOCH.checked_sub(span) };
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// RFC 3339 in UTC.
pub(super) fn show(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_else(|_| "an unprintable time".into())
}
