//! SPIFFE identities, trust domains, certificates and their verification.
//!
//! A peer is accepted when its chain leads to a root of the very trust domain its name claims, and the name is one of those
//! expected. Trust domains are a named set; there is no way to skip the check.

pub mod ca;
mod error;
mod expected;
mod files;
mod issuer;
mod pem;
mod spiffe;
mod store;
mod tls;
mod trust;
mod verify;

pub use error::IdentityError;
pub use expected::ExpectedPeer;
pub use spiffe::{SpiffeError, SpiffeId};
pub use store::{CertificateFiles, CertificateSource, CertificateStore, StoreConfig};
pub use tls::Credential;
pub use trust::TrustBundle;
pub use verify::{PeerError, peer_identity};

#[cfg(test)]
mod tests;
