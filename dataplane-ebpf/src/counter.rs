//! Counters of the programs: one per-CPU cell for each verdict and each failure.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted; the number is the index in `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        /// Every counter with the name user space shows, in the order of the map.
        pub const COUNTERS: &[(Counter, &str)] = &[$((Counter::$variant, $name),)*];
    };
}

counters! {
    /// Connection handed to the engine.
    OutboundRedirected = "outbound_redirected",
    /// Connection to loopback, an unspecified or a link-local address.
    OutboundLocal = "outbound_local",
    /// Connection to an address of the pod itself.
    OutboundOwnAddress = "outbound_own_address",
    /// Connection of the engine.
    OutboundEngine = "outbound_engine",
    /// Connection to an excluded port.
    OutboundExcludedPort = "outbound_excluded_port",
    /// Connection to an excluded range of addresses.
    OutboundExcludedCidr = "outbound_excluded_cidr",
    /// Connection refused: the pod has no address of the family it dialled, so the engine cannot be reached.
    OutboundRefusedFamily = "outbound_refused_family",
    /// Connection refused: the original destination could not be stored.
    OutboundRefusedStorage = "outbound_refused_storage",
    /// Connection of a pod that is to be enrolled and is not yet: waits.
    OutboundHeld = "outbound_held",
    /// SYN of such a connection dropped; it is sent again.
    OutboundHeldSyn = "outbound_held_syn",
    /// Original destination of a connection recorded.
    FlowRecorded = "flow_recorded",
    /// Connection within the pod recorded as meant for the application.
    FlowLocal = "flow_local",
    /// Connection of a process of the node to a pod recorded.
    FlowNode = "flow_node",
    /// Recording failed: the connection is going to be reset.
    FlowFailed = "flow_failed",
    /// Original destination attached to the accepted socket.
    FlowAccepted = "flow_accepted",
    /// Original destination could not be attached: the engine resets the connection.
    FlowAcceptFailed = "flow_accept_failed",
    /// Recorded connection that ended before it was accepted.
    FlowAbandoned = "flow_abandoned",
    /// Redirected connection given to the outbound listener.
    InboundOutbound = "inbound_outbound",
    /// Connection given to the plaintext listener.
    InboundPlaintext = "inbound_plaintext",
    /// Connection given to the HBONE listener.
    InboundHbone = "inbound_hbone",
    /// Connection of a process of the node, a probe, left to the application.
    InboundNode = "inbound_node",
    /// Connection within the pod left to the application.
    InboundLocal = "inbound_local",
    /// Connection to an excluded port left to the application.
    InboundExcludedPort = "inbound_excluded_port",
    /// Connection from elsewhere to a port only redirection may reach: reset.
    InboundReserved = "inbound_reserved",
    /// Connection within the pod to a port of the rewrite range without a record: reset.
    InboundUnrecorded = "inbound_unrecorded",
    /// Connection to an address of the namespace that was not enrolled: reset.
    InboundUnknownAddress = "inbound_unknown_address",
    /// No listener of the engine: reset.
    InboundNoListener = "inbound_no_listener",
    /// DNS datagram or socket directed to the engine.
    DnsCaptured = "dns_captured",
    /// DNS to loopback, an unspecified or a link-local address.
    DnsLocal = "dns_local",
    /// DNS to an address of the pod itself.
    DnsOwnAddress = "dns_own_address",
    /// DNS of the engine.
    DnsEngine = "dns_engine",
    /// DNS excluded by its port.
    DnsExcludedPort = "dns_excluded_port",
    /// DNS to an excluded range of addresses.
    DnsExcludedCidr = "dns_excluded_cidr",
    /// DNS to a server for which no engine port was left: past the engine.
    DnsNoPort = "dns_no_port",
    /// DNS refused: the pod has no address of the server's family, so the engine cannot be reached.
    DnsRefusedFamily = "dns_refused_family",
    /// DNS refused: the server could not be recorded.
    DnsRefusedStorage = "dns_refused_storage",
    /// Connection to a node port taken at an uplink.
    EntryOpened = "entry_opened",
    /// Packet to a node port of a connection that is older than its redirection, left to the kernel.
    EntryOlder = "entry_older",
    /// ICMP error about a connection that was taken, handed to it.
    EntryError = "entry_error",
    /// Piece of a datagram of a connection that was taken.
    EntryFragment = "entry_fragment",
    /// Packet to a node port dropped: it opens a connection in pieces.
    EntryMalformed = "entry_malformed",
    /// Connection to a node port dropped: it could not be recorded, or there is no engine to hand it to.
    EntryFailed = "entry_failed",
    /// Connection of this node to one of its own node ports sent to the engine.
    EntryDialled = "entry_dialled",
    /// Connection of this node to one of its own node ports refused: its destination could not be stored.
    EntryDialFailed = "entry_dial_failed",
}

/// Number of counters.
pub const COUNT: usize = COUNTERS.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_in_map_order() {
        for (index, (counter, name)) in COUNTERS.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert_eq!(COUNTERS.iter().filter(|(_, other)| other == name).count(), 1, "{name}");
        }
    }
}
