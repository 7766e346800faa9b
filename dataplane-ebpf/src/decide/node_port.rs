//! Verdicts at the node's uplinks and at its end of the engine's own namespace: which packets to and from node ports are ours?
//!
//! A connection is ours if we took its SYN, and stays so; everything else passes. So connections that are older than the
//! redirection live on past the engine, and those we took go on while their port is being given up.

use super::packet::{Content, Ends, Packet, content};
use crate::abi::{EntryFlow, EntryFragment, NodePort, node_port_state};
use crate::counter::Counter;

/// The maps the verdicts look into.
pub trait View {
    /// State of a port of the node, if new connections to it are or were taken.
    fn port(&self, port: &NodePort) -> Option<u32>;
    /// Uplink of a connection that was taken.
    fn flow(&self, flow: &EntryFlow) -> Option<u32>;
    /// Whether this datagram belongs to a connection that was taken.
    fn fragment(&self, fragment: &EntryFragment) -> bool;
}

/// What happens to a packet that arrives at an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arriving {
    /// The kernel gets it as if we were not there.
    Pass(Option<Counter>),
    /// The kernel gets it, and with it a connection between ends that were ours before.
    Forget(EntryFlow),
    /// Neither the kernel nor the engine gets it.
    Drop(Counter),
    /// It opens a connection that is recorded and given to the engine.
    Open(EntryFlow),
    /// It belongs to a connection of the engine; its later pieces are recorded, if there are any.
    Take(Option<EntryFragment>, Option<Counter>),
}

/// The verdict on a frame that arrives at an uplink. `tagged` says whether it carries a VLAN tag: it is then for a device of
/// its own, which is an uplink of its own or none.
#[inline(always)]
pub fn arriving(ethertype: u16, tagged: bool, packet: &impl Packet, view: &impl View) -> Arriving {
    if tagged {
        return Arriving::Pass(None);
    }
    match content(ethertype, packet) {
        Content::Tcp { ends, opens, pieces } => segment(&ends, opens, pieces, view),
        Content::Piece { source, target, id } => {
            if view.fragment(&EntryFragment { source, target, id }) {
                Arriving::Take(None, Some(Counter::EntryFragment))
            } else {
                Arriving::Pass(None)
            }
        }
        Content::Error { quoted } => {
            let port = NodePort { addr: quoted.source, port: quoted.source_port, pad: 0 };
            if view.port(&port).is_some() && view.flow(&reply(&quoted)).is_some() {
                Arriving::Take(None, Some(Counter::EntryError))
            } else {
                Arriving::Pass(None)
            }
        }
        Content::Other => Arriving::Pass(None),
    }
}

#[inline(always)]
fn segment(ends: &Ends, opens: bool, pieces: Option<u32>, view: &impl View) -> Arriving {
    let Some(state) = view.port(&NodePort { addr: ends.target, port: ends.target_port, pad: 0 }) else {
        return Arriving::Pass(None);
    };
    let flow = EntryFlow {
        client: ends.source,
        server: ends.target,
        client_port: ends.source_port,
        server_port: ends.target_port,
    };
    if opens {
        return match (state, pieces) {
            // No client sends a SYN in pieces; passing it would hand a connection to whoever assembles it.
            (node_port_state::OPEN, Some(_)) => Arriving::Drop(Counter::EntryMalformed),
            (node_port_state::OPEN, None) => Arriving::Open(flow),
            _ => Arriving::Forget(flow),
        };
    }
    if view.flow(&flow).is_none() {
        return Arriving::Pass(Some(Counter::EntryOlder));
    }
    Arriving::Take(pieces.map(|id| EntryFragment { source: ends.source, target: ends.target, id }), None)
}

/// The uplink that a frame leaves by which comes out of the engine's own namespace; nothing means that the node routes it.
#[inline(always)]
pub fn leaving(ethertype: u16, packet: &impl Packet, view: &impl View) -> Option<u32> {
    match content(ethertype, packet) {
        Content::Tcp { ends, .. } => view.flow(&reply(&ends)),
        // About a segment that the client sent.
        Content::Error { quoted } => view.flow(&EntryFlow {
            client: quoted.source,
            server: quoted.target,
            client_port: quoted.source_port,
            server_port: quoted.target_port,
        }),
        Content::Piece { .. } | Content::Other => None,
    }
}

/// The connection that a segment of its server belongs to.
#[inline(always)]
fn reply(ends: &Ends) -> EntryFlow {
    EntryFlow { client: ends.target, server: ends.source, client_port: ends.target_port, server_port: ends.source_port }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::packet::testing::{Frame, frame};
    use crate::decide::packet::{ETHERTYPE_V4, ETHERTYPE_V6};
    use crate::decide::testing::addr;
    use std::collections::{HashMap, HashSet};

    #[derive(Default)]
    struct Maps {
        ports: HashMap<NodePort, u32>,
        flows: HashMap<EntryFlow, u32>,
        fragments: HashSet<EntryFragment>,
    }

    impl View for Maps {
        fn port(&self, port: &NodePort) -> Option<u32> {
            self.ports.get(port).copied()
        }
        fn flow(&self, flow: &EntryFlow) -> Option<u32> {
            self.flows.get(flow).copied()
        }
        fn fragment(&self, fragment: &EntryFragment) -> bool {
            self.fragments.contains(fragment)
        }
    }

    const SYN: u8 = 2;
    const ACK: u8 = 16;
    const CLIENT: &str = "192.0.2.1";
    const NODE: &str = "198.51.100.1";
    const CLIENT6: &str = "2001:db8::1";
    const NODE6: &str = "2001:db8:1::1";

    fn flow(client: &str, client_port: u16, server: &str, server_port: u16) -> EntryFlow {
        EntryFlow { client: addr(client), server: addr(server), client_port, server_port }
    }

    fn maps() -> Maps {
        let mut maps = Maps::default();
        for (node, port, state) in [
            (NODE, 30080, node_port_state::OPEN),
            (NODE6, 30080, node_port_state::OPEN),
            (NODE, 30090, node_port_state::CLOSING),
        ] {
            maps.ports.insert(NodePort { addr: addr(node), port, pad: 0 }, state);
        }
        for (client, node, port, uplink) in
            [(CLIENT, NODE, 30080, 3), (CLIENT6, NODE6, 30080, 4), (CLIENT, NODE, 30090, 3)]
        {
            maps.flows.insert(flow(client, 4000, node, port), uplink);
        }
        maps.fragments.insert(EntryFragment { source: addr(CLIENT), target: addr(NODE), id: 0xabcd });
        maps
    }

    fn v4(from: u16, to: u16, flags: u8) -> Frame {
        frame().ip(CLIENT, NODE, 6, 0).tcp(from, to, flags)
    }

    #[test]
    fn arrivals() {
        let pass = Arriving::Pass(None);
        let older = Arriving::Pass(Some(Counter::EntryOlder));
        let take = Arriving::Take(None, None);
        let error = Arriving::Take(None, Some(Counter::EntryError));
        let unreachable = |kind: u8| frame().ip("203.0.113.9", NODE, 1, 0).raw(&[kind, 4, 0, 0, 0, 0, 5, 120]);
        let fragment = EntryFragment { source: addr(CLIENT), target: addr(NODE), id: 0xabcd };
        for (ethertype, packet, expected, why) in [
            (ETHERTYPE_V4, v4(4001, 30080, SYN), Arriving::Open(flow(CLIENT, 4001, NODE, 30080)), "a new connection"),
            (
                ETHERTYPE_V4,
                v4(4000, 30080, SYN),
                Arriving::Open(flow(CLIENT, 4000, NODE, 30080)),
                "again from the same port",
            ),
            (ETHERTYPE_V4, v4(4000, 30080, ACK), take, "a segment of a connection we took"),
            (ETHERTYPE_V4, v4(4001, 30080, ACK), older, "a connection older than its redirection lives on"),
            (ETHERTYPE_V4, v4(30080, 30080, SYN | ACK), older, "the answer to a connection of the node itself"),
            (ETHERTYPE_V4, v4(4001, 30081, SYN), pass, "a port that is not listed"),
            (ETHERTYPE_V4, v4(4001, 30090, SYN), Arriving::Forget(flow(CLIENT, 4001, NODE, 30090)), "a port given up"),
            (ETHERTYPE_V4, v4(4000, 30090, ACK), take, "its connections go on"),
            (
                ETHERTYPE_V4,
                frame().ip(CLIENT, "198.51.100.2", 6, 0).tcp(4001, 30080, SYN),
                pass,
                "the port of another machine that is routed here",
            ),
            (
                ETHERTYPE_V6,
                frame().ip(CLIENT6, NODE6, 6, 0).tcp(4001, 30080, SYN),
                Arriving::Open(flow(CLIENT6, 4001, NODE6, 30080)),
                "IPv6",
            ),
            (ETHERTYPE_V6, frame().ip(CLIENT6, NODE6, 6, 0).tcp(4000, 30080, ACK), take, "IPv6"),
            (
                ETHERTYPE_V4,
                frame().ip(CLIENT, NODE, 6, 0x2000).tcp(4001, 30080, SYN),
                Arriving::Drop(Counter::EntryMalformed),
                "a SYN in pieces",
            ),
            (
                ETHERTYPE_V4,
                frame().ip(CLIENT, NODE, 6, 0x2000).tcp(4000, 30080, ACK),
                Arriving::Take(Some(fragment), None),
                "the first piece of a segment",
            ),
            (
                ETHERTYPE_V4,
                frame().ip(CLIENT, NODE, 6, 0x0005).raw(&[0; 40]),
                Arriving::Take(None, Some(Counter::EntryFragment)),
                "a later piece of it",
            ),
            (ETHERTYPE_V4, frame().ip(NODE, NODE, 6, 0x0005).raw(&[0; 40]), pass, "a piece of something else"),
            (ETHERTYPE_V4, unreachable(3).ip(NODE, CLIENT, 6, 0).tcp(30080, 4000, ACK), error, "a router on the way"),
            (ETHERTYPE_V4, unreachable(3).ip(NODE, CLIENT, 6, 0).tcp(30080, 4001, ACK), pass, "of an older connection"),
            (ETHERTYPE_V4, unreachable(3).ip(NODE, CLIENT, 6, 0).tcp(443, 4000, ACK), pass, "of another port"),
            (ETHERTYPE_V4, unreachable(3).ip(CLIENT, NODE, 6, 0).tcp(4000, 30080, ACK), pass, "a forged direction"),
            (ETHERTYPE_V4, frame().ip(CLIENT, NODE, 17, 0).tcp(4001, 30080, SYN), pass, "UDP"),
        ] {
            assert_eq!(arriving(ethertype, false, &packet, &maps()), expected, "{why}");
            assert_eq!(arriving(ethertype, true, &packet, &maps()), pass, "with a VLAN tag: {why}");
        }
    }

    #[test]
    fn departures() {
        let unreachable = frame().ip(NODE, CLIENT, 1, 0).raw(&[3, 1, 0, 0, 0, 0, 0, 0]);
        for (ethertype, packet, expected, why) in [
            (ETHERTYPE_V4, frame().ip(NODE, CLIENT, 6, 0).tcp(30080, 4000, ACK), Some(3), "by the uplink it came from"),
            (ETHERTYPE_V6, frame().ip(NODE6, CLIENT6, 6, 0).tcp(30080, 4000, SYN | ACK), Some(4), "over IPv6"),
            (
                ETHERTYPE_V4,
                frame().ip(NODE, CLIENT, 6, 0).tcp(30080, 4001, ACK),
                None,
                "what did not come from an uplink",
            ),
            (ETHERTYPE_V4, frame().ip(CLIENT, NODE, 6, 0).tcp(4000, 30080, ACK), None, "the wrong direction"),
            (ETHERTYPE_V4, unreachable.ip(CLIENT, NODE, 6, 0).tcp(4000, 30080, ACK), Some(3), "an error of ours"),
            (ETHERTYPE_V6, frame().ip(NODE6, CLIENT6, 58, 0).raw(&[135; 40]), None, "a neighbour solicitation"),
        ] {
            assert_eq!(leaving(ethertype, &packet, &maps()), expected, "{why}");
        }
    }
}
