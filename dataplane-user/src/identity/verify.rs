//! Verification of the other side of a tunnel.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, SignatureScheme,
};

use super::anchors::{PeerRole, Trust};
use super::pem::Facts;
use super::{ExpectedPeer, SpiffeId};

/// Why a peer's certificate was refused.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The certificate cannot be read.
    #[error("peer's certificate is malformed: {0}")]
    Malformed(String),
    /// No SAN is a SPIFFE name of Istio's form.
    #[error("peer's certificate names no SPIFFE identity (URI names: {0})")]
    NoIdentity(String),
    /// More than one is, which SPIFFE forbids (X509-SVID section 2).
    #[error("peer's certificate names more than one SPIFFE identity: {0}")]
    SeveralIdentities(String),
    /// Somebody else answered.
    #[error("presented {presented}, expected {expected}")]
    Unexpected {
        /// Who answered.
        presented: SpiffeId,
        /// Who should have.
        expected: String,
    },
    /// No roots are configured for the domain that the peer claims.
    #[error("presented {presented}, whose trust domain is not trusted here; trusted: {trusted}")]
    UntrustedDomain {
        /// Who answered.
        presented: SpiffeId,
        /// The trust domains with roots.
        trusted: String,
    },
    /// The chain does not lead to a root of that domain, or is out of date.
    #[error("presented {presented}, but its chain does not hold against the roots of {domain}: {reason}")]
    Chain {
        /// Who answered.
        presented: SpiffeId,
        /// The domain whose roots were used.
        domain: String,
        /// The verifier's words.
        reason: String,
    },
    /// The leaf or an authority above it stands on a revocation list.
    #[error("CERT_REVOKED: presented {presented}, whose certificate or signer stands on the revocation list")]
    Revoked {
        /// Who answered.
        presented: SpiffeId,
    },
}

// rustls prints the inner error of a refused certificate with `Debug`.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// The identity in a chain that has been verified: the one SPIFFE name of its leaf.
#[must_use]
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    chain.first().and_then(|leaf| leaf_identity(leaf).ok())
}

pub(super) fn leaf_identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let facts = Facts::of(leaf).map_err(PeerError::Malformed)?;
    let mut ids = facts.spiffe_ids();
    match (ids.len(), ids.pop()) {
        (1, Some(id)) => Ok(id),
        (0, _) => Err(PeerError::NoIdentity(if facts.uris.is_empty() { "none".into() } else { facts.uris.join(", ") })),
        _ => Err(PeerError::SeveralIdentities(facts.uris.join(", "))),
    }
}

/// TLS 1.2 is never negotiated; the answer exists because the traits ask for one.
fn tls13_only<T>() -> Result<T, rustls::Error> {
    Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
}

/// Checks the server of a tunnel.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) trust: Arc<Trust>,
    pub(super) expected: ExpectedPeer,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let presented = leaf_identity(end_entity)?;
        if !self.expected.matches(&presented) {
            return Err(PeerError::Unexpected { presented, expected: self.expected.to_string() }.into());
        }
        self.trust.verify(&presented, end_entity, intermediates, PeerRole::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13_only()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.schemes()
    }
}

/// Checks the client of a tunnel: anybody of a trusted domain; what it may do is the policy's matter.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    pub(super) trust: Arc<Trust>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Roots change while connections come in; a client has one certificate to offer anyway.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let presented = leaf_identity(end_entity)?;
        self.trust.verify(&presented, end_entity, intermediates, PeerRole::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        tls13_only()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.trust.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.schemes()
    }
}
