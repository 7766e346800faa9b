//! SPIFFE identities, trust domains, certificates and their verification.
//!
//! A peer is accepted when its chain leads to a root of the very trust domain its name claims, and the name is one of those
//! expected. Trust domains are a named set; there is no way to skip the check.

mod anchors;
mod authority;
pub mod ca;
mod crl;
mod error;
mod expected;
mod files;
mod issuer;
mod pem;
mod remote;
mod requests;
mod source;
mod spiffe;
mod store;
mod tls;
mod trust;
mod verify;

pub use anchors::{PeerRole, Revocations, Standing};
pub use authority::{Authority, AuthorityError, Issued, Issuing};
pub use error::IdentityError;
pub use expected::ExpectedPeer;
pub use remote::{CertificateState, State};
pub use spiffe::{SpiffeError, SpiffeId};
pub use store::{CertificateFiles, CertificateSource, CertificateStore, StoreConfig};
pub use tls::Credential;
pub use trust::TrustBundle;
pub use verify::{PeerError, peer_identity};

#[cfg(test)]
mod tests;
