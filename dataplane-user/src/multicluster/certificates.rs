//! The authorities of a cluster as its secrets show them: the certificate that signs, and the roots that are believed.

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::facts::{Cluster, Kind};
use super::objects::text;

/// A certificate of an authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its subject.
    pub subject: String,
    /// SHA-256 of the whole certificate, in hexadecimal.
    pub sha256: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    der: CertificateDer<'static>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (SHA-256 {})", self.subject, self.sha256)
    }
}

/// What a cluster signs with and believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities {
    /// Where the signing one was found.
    pub source: String,
    /// The certificate that signs workloads.
    pub signing: Option<Authority>,
    /// Those between it and a root.
    pub between: Vec<Authority>,
    /// The roots.
    pub roots: Vec<Authority>,
    /// What could not be read.
    pub broken: Vec<String>,
}

impl Authorities {
    /// Of a cluster. Without the right to see secrets only roots are known, from the config map every namespace has.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let namespace = cluster.istio_namespace.as_str();
        let (mut found, mut broken) = (Self::default(), Vec::new());
        for name in ["cacerts", "istio-ca-secret"] {
            let Some(secret) = cluster.named(Kind::Secret, namespace, name) else { continue };
            let mut pem = |key: &str| {
                let data = secret.pointer("/data").and_then(|data| data.get(key))?;
                let bytes = data.as_str().and_then(|data| base64::engine::general_purpose::STANDARD.decode(data).ok());
                if bytes.is_none() {
                    broken.push(format!("{key}: not in base 64"));
                }
                bytes
            };
            let (signing, between, roots) = (pem("ca-cert.pem"), pem("cert-chain.pem"), pem("root-cert.pem"));
            found.source = format!("secret {namespace}/{name}");
            found.signing = signing.as_ref().and_then(|pem| found.read("ca-cert.pem", pem).into_iter().next());
            found.between = between.map(|pem| found.read("cert-chain.pem", &pem)).unwrap_or_default();
            // The self-signed authority of istiod is its own root.
            let roots = roots.filter(|pem| !pem.is_empty()).or(signing);
            found.roots = roots.map(|pem| found.read("root-cert.pem", &pem)).unwrap_or_default();
            break;
        }
        if let Some(map) = cluster.named(Kind::ConfigMap, namespace, "istio-ca-root-cert") {
            let more = found.read("istio-ca-root-cert", text(map, "/data/root-cert.pem").as_bytes());
            let new: Vec<Authority> = more.into_iter().filter(|root| !found.roots.contains(root)).collect();
            found.roots.extend(new);
        }
        found.broken.extend(broken);
        found
    }

    fn read(&mut self, name: &str, pem: &[u8]) -> Vec<Authority> {
        let mut found = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem) {
            match der.map_err(|error| error.to_string()).and_then(authority) {
                Ok(authority) => found.push(authority),
                Err(error) => self.broken.push(format!("{name}: {error}")),
            }
        }
        if found.is_empty() && !pem.is_empty() && !self.broken.iter().any(|one| one.starts_with(name)) {
            self.broken.push(format!("{name}: no certificate in it"));
        }
        found
    }

    /// Whether a chain of signatures leads from the signing certificate to one of these roots.
    #[must_use]
    pub fn lead_to(&self, roots: &[Authority]) -> bool {
        let Some(signing) = &self.signing else { return false };
        let mut reached = vec![signing];
        // Each step may reach those that are between, once.
        for _ in 0..=self.between.len() {
            let next = self.between.iter().filter(|issuer| {
                !reached.contains(issuer) && reached.iter().any(|certificate| certificate.is_signed_by(issuer))
            });
            let next: Vec<&Authority> = next.collect();
            reached.extend(next);
        }
        roots
            .iter()
            .any(|root| reached.iter().any(|certificate| *certificate == root || certificate.is_signed_by(root)))
    }
}

impl Authority {
    /// Whether the signature on this certificate is of `issuer`'s key.
    fn is_signed_by(&self, issuer: &Self) -> bool {
        let (Ok((_, certificate)), Ok((_, issuer))) =
            (X509Certificate::from_der(&self.der), X509Certificate::from_der(&issuer.der))
        else {
            return false;
        };
        if certificate.issuer() != issuer.subject() {
            return false;
        }
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = &issuer.public_key().subject_public_key.data;
        let name = certificate.signature_algorithm.algorithm.as_bytes();
        provider.signature_verification_algorithms.all.iter().any(|algorithm| {
            // An identifier begins with its object identifier: tag, length, and the bytes compared here.
            let same = algorithm.signature_alg_id().as_ref().get(2..).is_some_and(|id| id.starts_with(name));
            same && algorithm
                .verify_signature(key, certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
                .is_ok()
        })
    }
}

fn authority(der: CertificateDer<'static>) -> Result<Authority, String> {
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
    let validity = parsed.validity();
    let (subject, not_before, not_after) =
        (parsed.subject().to_string(), validity.not_before.timestamp(), validity.not_after.timestamp());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Authority { subject, sha256, not_before, not_after, der })
}
