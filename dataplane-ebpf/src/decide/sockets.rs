//! Verdict of the socket program on a connection whose SYN is about to leave.

use super::in_range;
use crate::abi::{Config, DELIVERY_MARK, HBONE_PORT, MARK_MASK, UPSTREAM_MARK, flow_kind};

/// What the socket program does before the SYN leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Nothing to record.
    Ignore,
    /// Record the destination the application dialled.
    Redirected,
    /// Record that the application of the pod gets this connection, if the namespace is enrolled.
    Local,
    /// Record that a process of the node dials, if a pod is dialled.
    Node,
}

/// The verdict on a connection to `server_port` by a socket that stored the [`flow_kind`] `dialled` in the outbound programs or
/// nothing, with `mark`; `from_node` if it is in the node's own network namespace.
///
/// A connection of the node is told by where its socket is, which no pod can imitate: a packet with the node's address has no
/// socket there, and pods that share the node's network run the outbound programs, which leave their mark on the socket. The
/// engine's own connections are between engines.
///
/// A stored destination wins over the mark: a pod that is able to set marks cannot turn a redirected connection into a local one.
/// A forged mark on a connection within the pod reaches nothing but the pod itself.
#[inline(always)]
pub fn connect(config: &Config, dialled: Option<u32>, mark: u32, server_port: u16, from_node: bool) -> Connect {
    if dialled == Some(flow_kind::REDIRECT) {
        Connect::Redirected
    } else if from_node {
        let engine = server_port == HBONE_PORT || mark & MARK_MASK == UPSTREAM_MARK;
        if dialled.is_some() || engine { Connect::Ignore } else { Connect::Node }
    } else if mark & MARK_MASK == DELIVERY_MARK || in_range(config, server_port) {
        Connect::Local
    } else {
        Connect::Ignore
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::testing::config;

    #[test]
    fn table() {
        let (rewritten, node_pod) = (Some(flow_kind::REDIRECT), Some(flow_kind::NODE_POD));
        for (dialled, mark, port, from_node, expected, why) in [
            (rewritten, 0, 16400, false, Connect::Redirected, "rewritten"),
            (rewritten, DELIVERY_MARK, 16400, false, Connect::Redirected, "a forged mark does not hide it"),
            (None, DELIVERY_MARK, 8080, false, Connect::Local, "delivery"),
            (None, 0x7000 | DELIVERY_MARK, 8080, false, Connect::Local, "bits that are not ours do not matter"),
            (None, 0, 16400, false, Connect::Local, "a direct call of a port in the range"),
            (None, UPSTREAM_MARK, 15008, false, Connect::Ignore, "between engines"),
            (None, 0, 80, false, Connect::Ignore, "everything else"),
            (None, 0, 80, true, Connect::Node, "a kubelet's probe"),
            (None, 0, 16400, true, Connect::Node, "also of a port in the range"),
            (None, DELIVERY_MARK, 80, true, Connect::Node, "whatever else its socket is marked with"),
            (node_pod, 0, 80, true, Connect::Ignore, "a pod on the node's network imitates one"),
            (node_pod, 0, 16400, true, Connect::Ignore, "also to a port in the range"),
            (None, 0, 15008, true, Connect::Ignore, "HBONE is for the engine, whoever dials"),
            (None, UPSTREAM_MARK, 80, true, Connect::Ignore, "an engine on the node's network"),
        ] {
            assert_eq!(connect(&config(), dialled, mark, port, from_node), expected, "{why}");
        }
    }
}
