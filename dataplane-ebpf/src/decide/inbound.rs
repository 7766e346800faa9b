//! Verdict of the socket lookup in a pod's namespace: who gets a connection that arrives there?

use super::{in_range, is_loopback};
use crate::abi::{Addr, Config, HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT, config_flag, flow_kind, listener_kind};
use crate::counter::Counter;

/// The maps the verdict looks into.
pub trait View {
    /// Cookie of the enrolled namespace that has this address.
    fn owner(&self, addr: &Addr) -> Option<u64>;
    /// Kind of the recorded connection with these ends, if there is a record.
    fn flow(&self, netns: u64, lookup: &Lookup) -> Option<u32>;
    /// Whether inbound connections to this port are excluded.
    fn port_excluded(&self, port: u16) -> bool;
}

/// Ends of the connection that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Address it is for.
    pub local: Addr,
    /// Address it comes from.
    pub remote: Addr,
    /// Port it is for.
    pub local_port: u16,
    /// Port it comes from.
    pub remote_port: u16,
}

/// What the lookup does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// The kernel finds the application's socket as if we were not there.
    Pass(Counter),
    /// The connection is reset.
    Drop(Counter),
    /// The listener of this kind in namespace `netns` gets it.
    Steer {
        /// Cookie of the pod's namespace.
        netns: u64,
        /// One of [`listener_kind`].
        kind: u32,
        /// What to count when it was found.
        counter: Counter,
    },
}

/// The verdict on a TCP connection that arrives in the namespace of an enrolled pod.
///
/// The device it arrives on says nothing: the kernel names the pod's uplink also for local connections to the pod's address.
/// So local connections are told by their addresses and by the records the socket program makes before a SYN leaves.
#[inline(always)]
pub fn inbound(config: &Config, lookup: &Lookup, view: &impl View) -> Inbound {
    let reserved = lookup.local_port == OUTBOUND_PORT || lookup.local_port == PLAINTEXT_PORT;
    if is_loopback(&lookup.local) {
        // A connection that waited for the enrolment; the address it waited at is the pod's alone.
        if let Some(netns) = view.owner(&lookup.local)
            && view.flow(netns, lookup) == Some(flow_kind::REDIRECT)
        {
            return Inbound::Steer { netns, kind: listener_kind::OUTBOUND, counter: Counter::InboundOutbound };
        }
        // The engine's listeners are bound to every address; only steered connections may reach these two.
        return if reserved { Inbound::Drop(Counter::InboundReserved) } else { Inbound::Pass(Counter::InboundLocal) };
    }
    let Some(netns) = view.owner(&lookup.local) else {
        // The pod talks to itself over an address that was not enrolled (a bridge of its own, say).
        return if lookup.local == lookup.remote && !reserved {
            Inbound::Pass(Counter::InboundLocal)
        } else {
            Inbound::Drop(Counter::InboundUnknownAddress)
        };
    };
    match view.flow(netns, lookup) {
        Some(flow_kind::REDIRECT) => {
            return Inbound::Steer { netns, kind: listener_kind::OUTBOUND, counter: Counter::InboundOutbound };
        }
        Some(flow_kind::NODE) if reserved => return Inbound::Drop(Counter::InboundReserved),
        Some(flow_kind::NODE) => return Inbound::Pass(Counter::InboundNode),
        Some(_) => return Inbound::Pass(Counter::InboundLocal),
        None => {}
    }
    if reserved {
        return Inbound::Drop(Counter::InboundReserved);
    }
    if lookup.local_port == HBONE_PORT {
        return Inbound::Steer { netns, kind: listener_kind::HBONE, counter: Counter::InboundHbone };
    }
    if lookup.local == lookup.remote || is_loopback(&lookup.remote) || view.owner(&lookup.remote) == Some(netns) {
        // Every connection within the pod to a port of the range has a record, so this one lost it: it may have been meant
        // for somewhere else and must not reach an application that happens to listen on that port.
        return if in_range(config, lookup.local_port) {
            Inbound::Drop(Counter::InboundUnrecorded)
        } else {
            Inbound::Pass(Counter::InboundLocal)
        };
    }
    if config.flags & config_flag::INBOUND_PORTS != 0 && view.port_excluded(lookup.local_port) {
        return Inbound::Pass(Counter::InboundExcludedPort);
    }
    Inbound::Steer { netns, kind: listener_kind::PLAINTEXT, counter: Counter::InboundPlaintext }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{Flow, FlowKey, direction, hold_address};
    use crate::decide::testing::{self, addr};

    impl View for testing::View {
        fn owner(&self, addr: &Addr) -> Option<u64> {
            self.owners.get(addr).copied()
        }
        fn flow(&self, netns: u64, lookup: &Lookup) -> Option<u32> {
            self.flows.get(&key(netns, lookup)).map(|flow| flow.kind)
        }
        fn port_excluded(&self, port: u16) -> bool {
            self.ports.contains(&(direction::INBOUND, port))
        }
    }

    fn key(netns: u64, lookup: &Lookup) -> FlowKey {
        FlowKey {
            netns,
            client: lookup.remote,
            server: lookup.local,
            client_port: lookup.remote_port,
            server_port: lookup.local_port,
            pad: 0,
        }
    }

    const NETNS: u64 = 7;

    fn lookup(remote: &str, remote_port: u16, local: &str, local_port: u16) -> Lookup {
        Lookup { local: addr(local), remote: addr(remote), local_port, remote_port }
    }

    fn view() -> testing::View {
        let mut view = testing::View::default();
        for own in ["10.0.0.2", "10.0.0.9", "fd00::2"] {
            view.owners.insert(addr(own), NETNS);
        }
        view.owners.insert(addr("10.0.0.3"), NETNS + 1);
        view.owners.insert(hold_address(NETNS), NETNS);
        view.ports.insert((direction::INBOUND, 9000));
        view.ports.insert((direction::OUTBOUND, 9001));
        for (lookup, kind) in [
            (lookup("10.0.0.2", 40000, "10.0.0.2", 16500), flow_kind::REDIRECT),
            (lookup("fd00::2", 40000, "fd00::2", 16500), flow_kind::REDIRECT),
            (lookup("127.0.0.1", 40000, "10.0.0.2", 16500), flow_kind::REDIRECT),
            (lookup("10.0.0.2", 40001, "10.0.0.2", 16500), flow_kind::LOCAL),
            (lookup("127.0.0.1", 40000, "127.128.0.7", 16500), flow_kind::REDIRECT),
            (lookup("127.0.0.1", 40001, "127.128.0.7", 16500), flow_kind::LOCAL),
            (lookup("10.0.5.5", 50000, "10.0.0.2", 8080), flow_kind::LOCAL),
            (lookup("10.0.0.1", 50000, "10.0.0.2", 8080), flow_kind::NODE),
            (lookup("10.0.0.1", 50000, "10.0.0.2", 15006), flow_kind::NODE),
        ] {
            view.flows.insert(key(NETNS, &lookup), Flow { kind, ..Flow::default() });
        }
        view
    }

    #[test]
    fn table() {
        let outbound =
            Inbound::Steer { netns: NETNS, kind: listener_kind::OUTBOUND, counter: Counter::InboundOutbound };
        let plaintext =
            Inbound::Steer { netns: NETNS, kind: listener_kind::PLAINTEXT, counter: Counter::InboundPlaintext };
        let hbone = Inbound::Steer { netns: NETNS, kind: listener_kind::HBONE, counter: Counter::InboundHbone };
        let local = Inbound::Pass(Counter::InboundLocal);
        let reserved = Inbound::Drop(Counter::InboundReserved);
        let unknown = Inbound::Drop(Counter::InboundUnknownAddress);
        for (remote, local_end, expected, why) in [
            (("10.0.0.2", 40000), ("10.0.0.2", 16500), outbound, "a recorded rewrite goes to the engine"),
            (("fd00::2", 40000), ("fd00::2", 16500), outbound, "the same over IPv6"),
            (("127.0.0.1", 40000), ("10.0.0.2", 16500), outbound, "the client was bound to loopback"),
            (("10.0.0.2", 40001), ("10.0.0.2", 16500), local, "a direct call of an application in the range"),
            (
                ("10.0.0.2", 40002),
                ("10.0.0.2", 16500),
                Inbound::Drop(Counter::InboundUnrecorded),
                "a rewrite whose record was lost never reaches an application",
            ),
            (
                ("127.0.0.1", 40002),
                ("10.0.0.2", 16500),
                Inbound::Drop(Counter::InboundUnrecorded),
                "nor when its client was bound to loopback",
            ),
            (
                ("10.0.0.9", 40002),
                ("10.0.0.2", 16500),
                Inbound::Drop(Counter::InboundUnrecorded),
                "nor when its client was bound to another address of the pod",
            ),
            (("10.0.5.5", 40000), ("10.0.0.2", 16500), plaintext, "from outside the range is like any port"),
            (("10.0.5.5", 50000), ("10.0.0.2", 8080), local, "delivery by the engine with the client's address"),
            (("10.0.5.5", 50001), ("10.0.0.2", 8080), plaintext, "the client itself"),
            (("10.0.0.1", 50000), ("10.0.0.2", 8080), Inbound::Pass(Counter::InboundNode), "a kubelet's probe"),
            (("10.0.0.1", 50001), ("10.0.0.2", 8080), plaintext, "the node's address alone proves nothing"),
            (
                ("10.0.0.1", 50000),
                ("10.0.0.2", 15006),
                reserved,
                "the node does not dial the plaintext listener either",
            ),
            (("10.0.5.5", 1), ("10.0.0.2", 15008), hbone, "HBONE from a peer"),
            (("10.0.0.2", 1), ("10.0.0.2", 15008), hbone, "HBONE of the pod to itself"),
            (("2001:db8::5", 1), ("fd00::2", 15008), hbone, "HBONE over IPv6"),
            (("10.0.5.5", 1), ("10.0.0.2", 15001), reserved, "nobody dials the outbound listener"),
            (("10.0.5.5", 1), ("10.0.0.2", 15006), reserved, "nobody dials the plaintext listener"),
            (("10.0.0.2", 1), ("10.0.0.2", 15006), reserved, "not from the pod either"),
            (("127.0.0.1", 1), ("127.0.0.1", 15001), reserved, "nor over loopback"),
            (("127.0.0.1", 1), ("127.0.0.1", 8080), local, "loopback is the application's"),
            (("::1", 1), ("::1", 8080), local, "IPv6 loopback is the application's"),
            (("127.0.0.1", 40000), ("127.128.0.7", 16500), outbound, "what waited for the enrolment"),
            (("127.0.0.1", 40001), ("127.128.0.7", 16500), local, "an application there is dialled directly"),
            (("127.0.0.1", 40002), ("127.128.0.7", 16500), local, "nothing waited"),
            (("127.0.0.1", 40000), ("127.128.0.8", 16500), local, "an address at which another pod waits"),
            (("10.0.0.2", 1), ("10.0.0.2", 8080), local, "the pod calls its own address"),
            (("10.0.0.9", 1), ("10.0.0.2", 8080), local, "from another address of its own"),
            (("10.0.0.3", 1), ("10.0.0.2", 8080), plaintext, "another pod of this node is outside"),
            (("10.0.5.5", 1), ("10.0.0.2", 9001), plaintext, "an outbound exclusion says nothing about inbound"),
            (("10.0.5.5", 1), ("10.0.0.2", 9000), Inbound::Pass(Counter::InboundExcludedPort), "excluded port"),
            (("10.0.5.5", 1), ("10.7.7.7", 80), unknown, "an address that is not enrolled is closed"),
            (("10.7.7.7", 1), ("10.7.7.7", 80), local, "unless the pod talks to itself"),
        ] {
            let got = inbound(&testing::config(), &lookup(remote.0, remote.1, local_end.0, local_end.1), &view());
            assert_eq!(got, expected, "{remote:?} -> {local_end:?}: {why}");
        }
    }
}
