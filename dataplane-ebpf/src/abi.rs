//! Keys, values and constants of the maps, as the programs and user space both see them.
//!
//! Addresses are always 16 bytes in network byte order; an IPv4 address stands in its v4-mapped form (`::ffff:a.b.c.d`), so
//! that a dual-stack socket and an IPv4 socket of the same flow give the same key. Ports are in host byte order.

/// Version of every layout below. It is part of the pin directory, so that a daemon never adopts maps it would misread.
pub const LAYOUT_VERSION: u16 = 2;

/// Longest workload uid that is kept in a [`Record`], in bytes.
pub const UID_LENGTH: usize = 256;
/// Longest namespace path that is kept in a [`Record`], in bytes.
pub const PATH_LENGTH: usize = 256;

/// Firewall mark of sockets that carry traffic between engines. It never matches the local delivery rule.
pub const UPSTREAM_MARK: u32 = 0x539;
/// Firewall mark of sockets that deliver to the application of their own pod.
pub const DELIVERY_MARK: u32 = 0x111;
/// Bits of a mark that are ours.
pub const MARK_MASK: u32 = 0xfff;

/// Port of the listener for redirected outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the listener for inbound connections that are not HBONE.
pub const PLAINTEXT_PORT: u16 = 15006;
/// Port of the HBONE listener, and the port peers dial.
pub const HBONE_PORT: u16 = 15008;

/// First port of the default range of rewrite targets.
pub const DEFAULT_PORT_BASE: u16 = 16384;
/// Number of ports in the default range.
pub const DEFAULT_PORT_COUNT: u16 = 1024;

/// Port of name servers: what captured queries are addressed to.
pub const DNS_PORT: u16 = 53;
/// Name servers of one address family a pod can ask through the engine. Each has an engine port of its own, so that a socket
/// that asks several sees every answer come from the server it asked.
pub const DNS_SERVERS: usize = 16;

/// A 16-byte address in network byte order; IPv4 as v4-mapped.
pub type Addr = [u32; 4];

/// Third word of a v4-mapped address.
const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();

/// The v4-mapped form of an IPv4 address in network byte order.
#[inline(always)]
pub const fn mapped(ip4: u32) -> Addr {
    [0, 0, MAPPED_PREFIX, ip4]
}

/// Whether `addr` is an IPv4 address in v4-mapped form.
#[inline(always)]
pub const fn is_mapped(addr: &Addr) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == MAPPED_PREFIX
}

/// Index of the loopback device in every network namespace (`LOOPBACK_IFINDEX` in include/net/flow.h).
pub const LOOPBACK_DEVICE: u32 = 1;

/// What [`Flow::kind`] says about a recorded connection.
pub mod flow_kind {
    /// A connection rewritten by the outbound programs: it belongs to the engine.
    pub const REDIRECT: u32 = 1;
    /// A connection within the pod that the application must get: delivery by the engine, or a direct call of a port in the range.
    pub const LOCAL: u32 = 2;
    /// A connection of a process of the node that is no pod's, to a pod: a kubelet's probe. The application gets it.
    pub const NODE: u32 = 3;
    /// Only in `DIALLED`: a pod that uses the node's network has dialled, which is not the node.
    pub const NODE_POD: u32 = 4;
    /// As [`LOCAL`]: delivery by the engine, over the loopback device.
    pub const DELIVERY: u32 = 5;
}

/// Where connections of a pod go that wait for its enrolment: a loopback address that no other namespace has. The socket lookup
/// knows no namespace, so the address must tell it; cookies count up, and 23 bits of them differ among all that live.
#[inline(always)]
pub const fn hold_address(netns: u64) -> Addr {
    let bytes = [127, 0x80 | (netns >> 16) as u8, (netns >> 8) as u8, netns as u8];
    mapped(u32::from_ne_bytes(bytes))
}

/// A connection that waits until its pod is enrolled or known not to be of the mesh: value of the socket storage `HOLDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// Id of the pod's cgroup, as in `HELD`.
    pub cgroup: u64,
    /// Where the connection goes: one of [`hold_kind`].
    pub kind: u64,
}

/// What [`Hold::kind`] says.
pub mod hold_kind {
    /// To the engine's listener, once there is one.
    pub const DIRECTED: u64 = 1;
    /// Where the application dialled, if the pod is not of the mesh.
    pub const AS_DIALLED: u64 = 2;
}

/// What a listener of the engine takes; part of the key of `LISTENERS`.
pub mod listener_kind {
    /// Redirected outbound connections.
    pub const OUTBOUND: u32 = 0;
    /// Inbound connections that are not HBONE.
    pub const PLAINTEXT: u32 = 1;
    /// Inbound HBONE.
    pub const HBONE: u32 = 2;
    /// How many kinds there are.
    pub const COUNT: u32 = 3;
}

/// Bits of [`Config::flags`]: a set bit says that the map behind it is worth a look.
pub mod config_flag {
    /// `EXCLUDED_PORTS` has an outbound entry.
    pub const PORTS: u32 = 1;
    /// `EXCLUDED_CIDRS` has an entry.
    pub const CIDRS: u32 = 2;
    /// `EXCLUDED_PORTS` has an inbound entry.
    pub const INBOUND_PORTS: u32 = 4;
}

/// Key part of `EXCLUDED_PORTS` that names the direction.
pub mod direction {
    /// Connections the pod opens.
    pub const OUTBOUND: u16 = 0;
    /// Connections the pod accepts.
    pub const INBOUND: u16 = 1;
}

/// The one entry of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`LAYOUT_VERSION`] of the writer.
    pub layout: u32,
    /// First port of the range of rewrite targets.
    pub port_base: u16,
    /// Ports in the range minus one; the count is a power of two.
    pub port_mask: u16,
    /// Bits of [`config_flag`].
    pub flags: u32,
}

/// A pod under capture: value of `PODS`, keyed by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// IPv4 address rewritten connections go to, v4-mapped; all zero without one.
    pub v4: Addr,
    /// IPv6 address rewritten connections go to; all zero without one.
    pub v6: Addr,
}

/// A connection whose SYN is on its way, from the view of its client: key of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Cookie of the network namespace both ends are in.
    pub netns: u64,
    /// Address of the end that connects.
    pub client: Addr,
    /// Address of the end that listens.
    pub server: Addr,
    /// Port of the end that connects.
    pub client_port: u16,
    /// Port of the end that listens.
    pub server_port: u16,
    /// Always zero.
    pub pad: u32,
}

/// A recorded connection: value of `FLOWS`, and of the socket storages `DIALLED` and `ORIGINAL`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Address the application dialled.
    pub addr: Addr,
    /// Port the application dialled.
    pub port: u16,
    /// [`LAYOUT_VERSION`] of the writer.
    pub layout: u16,
    /// One of [`flow_kind`].
    pub kind: u32,
}

/// Key of `LISTENERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// One of [`listener_kind`].
    pub kind: u32,
    /// Always zero.
    pub pad: u32,
}

/// A pod whose DNS queries are captured: value of `DNS_PODS`, keyed by the cookie of its network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsPod {
    /// IPv4 address the engine's DNS sockets are bound to, v4-mapped; all zero without one.
    pub v4: Addr,
    /// IPv6 address the engine's DNS sockets are bound to; all zero without one.
    pub v6: Addr,
    /// Ports of the sockets at `v4`; 0 means that there is none.
    pub ports4: [u16; DNS_SERVERS],
    /// Ports of the sockets at `v6`; 0 means that there is none.
    pub ports6: [u16; DNS_SERVERS],
}

/// A name server a pod has asked: key of `DNS_PORTS`, whose value is the engine's port for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServerKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// The server.
    pub server: Addr,
}

/// A port of the engine: key of `DNS_SERVERS`, whose value is the name server it stands for. Who inserts it owns the port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EnginePort {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// The port.
    pub port: u16,
    /// 4 or 6: ports of the two families are apart.
    pub family: u16,
    /// Always zero.
    pub pad: u32,
}

impl EnginePort {
    /// The key of the port at an address of the family of `addr`.
    #[inline(always)]
    pub const fn new(netns: u64, addr: &Addr, port: u16) -> Self {
        Self { netns, port, family: if is_mapped(addr) { 4 } else { 6 }, pad: 0 }
    }
}

/// Key of `EXCLUDED_PORTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// One of [`direction`].
    pub direction: u16,
    /// The port.
    pub port: u16,
}

/// What [`NodePort`]'s value in `NODE_PORTS` says.
pub mod node_port_state {
    /// New connections are taken.
    pub const OPEN: u32 = 1;
    /// New connections pass; those that were taken go on.
    pub const CLOSING: u32 = 2;
}

/// A port of an address of the node: key of `NODE_PORTS`, whose value is one of [`node_port_state`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodePort {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: u16,
    /// Always zero.
    pub pad: u16,
}

/// A connection taken at an uplink: key of `ENTRY_FLOWS`, whose value is the index of that uplink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryFlow {
    /// Address of the client.
    pub client: Addr,
    /// Address of the node that was dialled.
    pub server: Addr,
    /// Port of the client.
    pub client_port: u16,
    /// Port that was dialled.
    pub server_port: u16,
}

/// A datagram that arrives in pieces and belongs to a connection that was taken: key of `ENTRY_FRAGMENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryFragment {
    /// Who sent it.
    pub source: Addr,
    /// Whom it is for.
    pub target: Addr,
    /// What its pieces have in common.
    pub id: u32,
}

/// What the daemon must know to undo an enrolment it did not make itself: value of `RECORDS`, written by user space only.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Inode of the network namespace.
    pub inode: u64,
    /// Value of `net.ipv4.tcp_fwmark_accept` before enrolment; negative if it was not changed.
    pub fwmark_accept: i32,
    /// Value of `net.core.somaxconn` before enrolment; negative if it was not changed.
    pub somaxconn: i32,
    /// Value of `net.ipv4.fwmark_reflect` before enrolment; negative if it was not changed.
    pub reflect4: i32,
    /// Value of `net.ipv6.fwmark_reflect` before enrolment; negative if it was not changed.
    pub reflect6: i32,
    /// Bytes of `uid` in use.
    pub uid_length: u32,
    /// Bytes of `path` in use.
    pub path_length: u32,
    /// Uid of the workload.
    pub uid: [u8; UID_LENGTH],
    /// Path the namespace was opened by.
    pub path: [u8; PATH_LENGTH],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<Config>(), 12);
        assert_eq!(size_of::<Pod>(), 32);
        assert_eq!(size_of::<FlowKey>(), 48);
        assert_eq!(size_of::<Flow>(), 24);
        assert_eq!(size_of::<ListenerKey>(), 16);
        assert_eq!(size_of::<PortKey>(), 4);
        assert_eq!(size_of::<Hold>(), 24);
        assert_eq!(size_of::<DnsPod>(), 32 + 4 * DNS_SERVERS);
        assert_eq!(size_of::<ServerKey>(), 24);
        assert_eq!(size_of::<EnginePort>(), 16);
        assert_eq!(size_of::<NodePort>(), 20);
        assert_eq!(size_of::<EntryFlow>(), 36);
        assert_eq!(size_of::<EntryFragment>(), 36);
        assert_eq!(size_of::<Record>(), 32 + UID_LENGTH + PATH_LENGTH);
    }

    #[test]
    fn hold_addresses_are_loopback_and_differ_from_those_applications_use() {
        let bytes = |cookie: u64| hold_address(cookie)[3].to_ne_bytes();
        assert!(is_mapped(&hold_address(1)));
        assert_eq!(bytes(1), [127, 128, 0, 1]);
        assert_eq!(bytes(0x0012_3456), [127, 0x92, 0x34, 0x56]);
        assert_ne!(bytes(0x7f_ffff), bytes(0x7f_fffe));
    }

    #[test]
    fn mapped_addresses_are_recognised() {
        let addr = mapped(u32::from_ne_bytes([10, 1, 2, 3]));
        let mut bytes = [0u8; 16];
        for (chunk, word) in bytes.chunks_mut(4).zip(addr) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(std::net::Ipv6Addr::from(bytes).to_ipv4_mapped(), Some([10, 1, 2, 3].into()));
        assert!(is_mapped(&addr));
        assert!(!is_mapped(&[0, 0, 0, 1u32.to_be()]));
    }
}
