//! How a connection ends: what the end of a stream means for a socket, and the other way round.

use std::io;

use h2::Reason;

/// Whether an HTTP/2 error on a stream is an orderly end of its data, which an application sees as a FIN. Everything else is
/// a RST (RFC 9113, 5.4 and 8.5).
pub(super) fn is_fin(error: &h2::Error) -> bool {
    error.is_reset() && error.reason() == Some(Reason::NO_ERROR)
}

/// What we are to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We opened it for an application here.
    Client,
    /// It ends at an application here.
    Server,
    /// It carries another tunnel, which we pass on and never read.
    Gateway,
}

impl Role {
    /// How the peer is told that the socket on our side failed (RFC 9113, 7 and 8.5): an application has cancelled what we
    /// opened for it, or the connection behind us is gone.
    pub(super) fn reason(self) -> Reason {
        match self {
            Role::Client => Reason::CANCEL,
            Role::Server | Role::Gateway => Reason::CONNECT_ERROR,
        }
    }
}

/// One of the two ends that a copy joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The socket on this side.
    Near,
    /// The stream, or the other socket.
    Far,
}

/// Why a copy ended before both halves were done.
#[derive(Debug)]
pub enum CopyError {
    /// Whoever is at that end reset the connection, as an application may at any time.
    Reset(Side),
    /// A socket failed: its peer is out of reach.
    Socket(io::Error),
    /// The stream was ended for a reason that is no application's.
    Stream(Reason),
    /// The tunnel that carried the stream is gone.
    Lost(h2::Error),
    /// A stream that must carry TLS carries something else.
    NotTls,
    /// What allowed the connection is gone: policy, export or identity, in words.
    Revoked(String),
}

impl CopyError {
    /// A socket that failed.
    pub(super) fn socket(side: Side, error: io::Error) -> Self {
        match error.kind() {
            // A write finds out later than a read, and then as a broken pipe.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CopyError::Reset(side),
            _ => CopyError::Socket(error),
        }
    }

    /// A stream whose receiving half failed. The end of a tunnel is never that of a stream, whatever its reason.
    pub(super) fn stream(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::given_up(reason),
            _ => CopyError::Lost(error),
        }
    }

    /// A stream that its peer reset. Implementations say CANCEL also of a server's application, and STREAM_CLOSED of one
    /// that does not listen any more.
    pub(super) fn given_up(reason: Reason) -> Self {
        match reason {
            Reason::NO_ERROR | Reason::CANCEL | Reason::CONNECT_ERROR | Reason::STREAM_CLOSED => {
                CopyError::Reset(Side::Far)
            }
            _ => CopyError::Stream(reason),
        }
    }
}

impl std::fmt::Display for CopyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CopyError::Reset(Side::Near) => f.write_str("reset at this side"),
            CopyError::Reset(Side::Far) => f.write_str("reset by the peer"),
            CopyError::Socket(error) => write!(f, "socket: {error}"),
            CopyError::Stream(reason) => write!(f, "the peer gave the stream up: {reason}"),
            CopyError::Lost(error) => write!(f, "the tunnel broke: {error}; look whether the peer's node is up"),
            CopyError::NotTls => {
                f.write_str("the stream does not carry TLS: a gateway forwards encrypted traffic only")
            }
            CopyError::Revoked(why) => write!(f, "no longer allowed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // WIRE 4.3.
    #[test]
    fn what_a_socket_or_a_stream_says_at_its_end() {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, HostUnreachable, TimedOut};
        for (kind, reset) in [(ConnectionReset, true), (BrokenPipe, true), (TimedOut, false), (HostUnreachable, false)]
        {
            let error = CopyError::socket(Side::Near, kind.into());
            assert_eq!(matches!(error, CopyError::Reset(Side::Near)), reset, "{kind:?}: {error}");
        }
        assert_eq!(Role::Client.reason(), Reason::CANCEL);
        assert_eq!(Role::Server.reason(), Reason::CONNECT_ERROR);
        assert_eq!(Role::Gateway.reason(), Reason::CONNECT_ERROR);
        for reason in [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::STREAM_CLOSED] {
            assert!(matches!(CopyError::given_up(reason), CopyError::Reset(Side::Far)), "{reason}");
        }
        for reason in [Reason::INTERNAL_ERROR, Reason::PROTOCOL_ERROR, Reason::ENHANCE_YOUR_CALM] {
            assert!(matches!(CopyError::given_up(reason), CopyError::Stream(_)), "{reason}");
        }
        // Not the reset of a stream: a tunnel that ends with streams open takes them down, in order or not.
        let lost = h2::Error::from(Reason::NO_ERROR);
        assert!(!is_fin(&lost) && matches!(CopyError::stream(lost), CopyError::Lost(_)));
    }
}
