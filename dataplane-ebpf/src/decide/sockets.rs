//! Verdict of the socket program on a connection whose SYN is about to leave.

use super::in_range;
use crate::abi::{Config, DELIVERY_MARK, HBONE_PORT, LOOPBACK_DEVICE, MARK_MASK, UPSTREAM_MARK, flow_kind};

/// What the socket program does before the SYN leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Nothing to record.
    Ignore,
    /// Record the destination the application dialled.
    Redirected,
    /// Record that the application of the pod gets this connection, if the namespace is enrolled.
    Local,
    /// Record that the engine delivers this connection over the loopback device, if the namespace is enrolled.
    Delivery,
    /// Record that a process of the node dials, if a pod is dialled.
    Node,
}

/// What the socket that connects says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// The [`flow_kind`] that the outbound programs stored in it, if any.
    pub dialled: Option<u32>,
    /// Its mark.
    pub mark: u32,
    /// Index of the device it is bound to; 0 if it is bound to none.
    pub device: u32,
}

/// The verdict on a connection to `server_port` by `socket`; `from_node` if it is in the node's own network namespace.
///
/// A connection of the node is told by where its socket is, which no pod can imitate: a packet with the node's address has no
/// socket there, and pods that share the node's network run the outbound programs, which leave their mark on the socket. The
/// engine's own connections are between engines.
///
/// A stored destination wins over the mark: a pod that is able to set marks cannot turn a redirected connection into a local one.
/// A forged mark on a connection within the pod reaches nothing but the pod itself.
#[inline(always)]
pub fn connect(config: &Config, socket: Socket, server_port: u16, from_node: bool) -> Connect {
    if socket.dialled == Some(flow_kind::REDIRECT) {
        Connect::Redirected
    } else if from_node {
        let engine = server_port == HBONE_PORT || socket.mark & MARK_MASK == UPSTREAM_MARK;
        if socket.dialled.is_some() || engine { Connect::Ignore } else { Connect::Node }
    } else if socket.mark & MARK_MASK == DELIVERY_MARK {
        if socket.device == LOOPBACK_DEVICE { Connect::Delivery } else { Connect::Local }
    } else if in_range(config, server_port) {
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
        let on = |device| move |mark| (mark, device);
        let (anywhere, loopback) = (on(0), on(LOOPBACK_DEVICE));
        for (dialled, (mark, device), port, from_node, expected, why) in [
            (rewritten, anywhere(0), 16400, false, Connect::Redirected, "rewritten"),
            (rewritten, anywhere(DELIVERY_MARK), 16400, false, Connect::Redirected, "a forged mark does not hide it"),
            (None, anywhere(DELIVERY_MARK), 8080, false, Connect::Local, "delivery"),
            (None, loopback(DELIVERY_MARK), 8080, false, Connect::Delivery, "delivery over loopback"),
            (None, loopback(0), 8080, false, Connect::Ignore, "an application bound to loopback"),
            (
                None,
                anywhere(0x7000 | DELIVERY_MARK),
                8080,
                false,
                Connect::Local,
                "bits that are not ours do not matter",
            ),
            (None, anywhere(0), 16400, false, Connect::Local, "a direct call of a port in the range"),
            (None, anywhere(UPSTREAM_MARK), 15008, false, Connect::Ignore, "between engines"),
            (None, anywhere(0), 80, false, Connect::Ignore, "everything else"),
            (None, anywhere(0), 80, true, Connect::Node, "a kubelet's probe"),
            (None, anywhere(0), 16400, true, Connect::Node, "also of a port in the range"),
            (None, anywhere(DELIVERY_MARK), 80, true, Connect::Node, "whatever else its socket is marked with"),
            (node_pod, anywhere(0), 80, true, Connect::Ignore, "a pod on the node's network imitates one"),
            (node_pod, anywhere(0), 16400, true, Connect::Ignore, "also to a port in the range"),
            (None, anywhere(0), 15008, true, Connect::Ignore, "HBONE is for the engine, whoever dials"),
            (None, anywhere(UPSTREAM_MARK), 80, true, Connect::Ignore, "an engine on the node's network"),
        ] {
            assert_eq!(connect(&config(), Socket { dialled, mark, device }, port, from_node), expected, "{why}");
        }
    }
}
