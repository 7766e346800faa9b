//! How a stream ended, as the application should see it.

use h2::Reason;

/// How the far half of a stream ended, as the application should see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// An orderly end of the data: a FIN.
    Fin,
    /// Anything else: a RST.
    Reset,
}

/// What an HTTP/2 error on a stream means for the application's socket (RFC 9113, 5.4 and 8.5).
pub fn far_end(error: &h2::Error) -> FarEnd {
    match error.reason() {
        Some(Reason::NO_ERROR) => FarEnd::Fin,
        _ => FarEnd::Reset,
    }
}
