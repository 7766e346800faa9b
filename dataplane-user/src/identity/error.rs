//! What can be wrong with a certificate, a key or a directory of them.

use std::path::PathBuf;

/// A certificate, key or trust problem, with the file and what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read or written.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's words.
        reason: String,
    },
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is expected.
        reason: String,
    },
    /// A certificate's time is over.
    #[error("{}: certificate {subject} expired at {at}; renew it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Whose certificate.
        subject: String,
        /// End of validity.
        at: String,
    },
    /// A certificate's time has not come.
    #[error("{}: certificate {subject} is not valid before {at}; check this machine's clock", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Whose certificate.
        subject: String,
        /// Begin of validity.
        at: String,
    },
    /// A certificate names another trust domain than the one configured.
    #[error(
        "{}: certificate belongs to trust domain {found:?}, configured is {configured:?}; use the files of that trust domain or change trustDomain",
        path.display()
    )]
    OtherTrustDomain {
        /// The file.
        path: PathBuf,
        /// What the certificate says.
        found: String,
        /// What the configuration says.
        configured: String,
    },
    /// A certificate names another identity than the one it is configured for.
    #[error("{}: certificate is for {found}, configured is {configured}", path.display())]
    OtherIdentity {
        /// The file.
        path: PathBuf,
        /// What the certificate says.
        found: String,
        /// What the configuration says.
        configured: String,
    },
    /// Key and certificate are not a pair.
    #[error("{}: private key does not match the certificate in {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// The chain does not end at a root.
    #[error("{}: not signed by a root in {} ({reason})", certificate.display(), roots.display())]
    NotSignedByRoot {
        /// The certificate file.
        certificate: PathBuf,
        /// The root file.
        roots: PathBuf,
        /// The verifier's words.
        reason: String,
    },
    /// Nothing here can speak for that identity.
    #[error("no certificate for {identity}: {reason}")]
    Unavailable {
        /// The identity asked for.
        identity: String,
        /// Why there is none.
        reason: String,
    },
    /// The TLS library refused something.
    #[error("{what}: {reason}")]
    Tls {
        /// What was being built.
        what: &'static str,
        /// The library's words.
        reason: String,
    },
}
