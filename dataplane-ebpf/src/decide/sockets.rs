//! Verdict of the socket program on a connection whose SYN is about to leave.

use super::in_range;
use crate::abi::{Config, DELIVERY_MARK, MARK_MASK};

/// What the socket program does before the SYN leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Nothing to record.
    Ignore,
    /// Record the destination the application dialled.
    Redirected,
    /// Record that the application of the pod gets this connection, if the namespace is enrolled.
    Local,
}

/// The verdict on a connection to `server_port` by a socket that `dialled` through the outbound programs or not, with `mark`.
///
/// A stored destination wins over the mark: a pod that is able to set marks cannot turn a redirected connection into a local one.
/// A forged mark on a connection within the pod reaches nothing but the pod itself.
#[inline(always)]
pub fn connect(config: &Config, dialled: bool, mark: u32, server_port: u16) -> Connect {
    if dialled {
        Connect::Redirected
    } else if mark & MARK_MASK == DELIVERY_MARK || in_range(config, server_port) {
        Connect::Local
    } else {
        Connect::Ignore
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::UPSTREAM_MARK;
    use crate::decide::testing::config;

    #[test]
    fn table() {
        for (dialled, mark, port, expected, why) in [
            (true, 0, 16400, Connect::Redirected, "rewritten"),
            (true, DELIVERY_MARK, 16400, Connect::Redirected, "a forged mark does not hide it"),
            (false, DELIVERY_MARK, 8080, Connect::Local, "delivery"),
            (false, 0x7000 | DELIVERY_MARK, 8080, Connect::Local, "bits that are not ours do not matter"),
            (false, 0, 16400, Connect::Local, "a direct call of a port in the range"),
            (false, UPSTREAM_MARK, 15008, Connect::Ignore, "between engines"),
            (false, 0, 80, Connect::Ignore, "everything else"),
        ] {
            assert_eq!(connect(&config(), dialled, mark, port), expected, "{why}");
        }
    }
}
