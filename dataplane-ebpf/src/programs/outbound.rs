//! Hooks: cgroup/connect4 and cgroup/connect6 at the pods' cgroup.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::warn;
use causeway_ebpf::abi::{Addr, Flow, LAYOUT_VERSION, PortKey, direction, flow_kind, mapped};
use causeway_ebpf::counter::Counter;
use causeway_ebpf::decide::outbound::{Outbound, View, outbound};

use super::hold;
use super::maps::{DIALLED, ENGINES, EXCLUDED_CIDRS, EXCLUDED_PORTS, HOLDS, NODE_NETNS, POD_BY_IP, PODS};
use super::{config, count, count_failure, field, set_field, words};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
pub(super) const PASS: i32 = 1;
/// connect() and sendmsg() fail with EPERM.
pub(super) const REFUSE: i32 = 0;

/// The maps that say what is left alone.
pub(super) struct Maps;

impl View for Maps {
    #[inline(always)]
    fn owner(&self, addr: &Addr) -> Option<u64> {
        unsafe { POD_BY_IP.get(addr) }.copied()
    }
    #[inline(always)]
    fn is_engine(&self) -> bool {
        let cgroup = unsafe { bpf_get_current_cgroup_id() };
        unsafe { ENGINES.get(&cgroup) }.is_some()
    }
    #[inline(always)]
    fn port_excluded(&self, port: u16) -> bool {
        unsafe { EXCLUDED_PORTS.get(&PortKey { direction: direction::OUTBOUND, port }) }.is_some()
    }
    #[inline(always)]
    fn address_excluded(&self, addr: &Addr) -> bool {
        EXCLUDED_CIDRS.get(&Key::new(128, *addr)).is_some()
    }
}

/// What to write back into the context.
pub(super) enum Applied {
    Done(i32),
    Rewrite(Addr, u16),
}

/// Writes an IPv4 destination or source into the context.
#[inline(always)]
pub(super) fn write4(raw: *mut bpf_sock_addr, addr: &Addr, port: u16) -> i32 {
    set_field(unsafe { &raw mut (*raw).user_ip4 }, addr[3]);
    set_field(unsafe { &raw mut (*raw).user_port }, u32::from(port.to_be()));
    PASS
}

/// Writes an IPv6 destination or source into the context.
#[inline(always)]
pub(super) fn write6(raw: *mut bpf_sock_addr, addr: &Addr, port: u16) -> i32 {
    let ip: *mut u32 = unsafe { (&raw mut (*raw).user_ip6).cast() };
    set_field(ip, addr[0]);
    set_field(unsafe { ip.add(1) }, addr[1]);
    set_field(unsafe { ip.add(2) }, addr[2]);
    set_field(unsafe { ip.add(3) }, addr[3]);
    set_field(unsafe { &raw mut (*raw).user_port }, u32::from(port.to_be()));
    PASS
}

/// A connection of a pod that is not enrolled. One that shares the node's network must not pass for the node where it dials an
/// enrolled pod, so its socket says so, or the connection is refused.
#[inline(always)]
fn other(context: &SockAddrContext, netns: u64, addr: &Addr) -> i32 {
    if unsafe { NODE_NETNS.get(&netns) }.is_none() || Maps.owner(addr).is_none() || Maps.is_engine() {
        return PASS;
    }
    let raw: *mut bpf_sock_addr = context.sock_addr;
    let port = u16::from_be(field(unsafe { &raw const (*raw).user_port }) as u16);
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    if sk.is_null() {
        return REFUSE;
    }
    let mut flow = Flow { addr: *addr, port, layout: LAYOUT_VERSION, kind: flow_kind::NODE_POD };
    let stored: *mut Flow = unsafe {
        bpf_sk_storage_get(
            (&raw const DIALLED).cast_mut().cast(),
            sk.cast(),
            (&raw mut flow).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    }
    .cast();
    if stored.is_null() {
        count(Counter::OutboundRefusedStorage);
        return REFUSE;
    }
    unsafe { *stored = flow };
    PASS
}

/// Stores in a socket what it dialled; false, with a word in the log, if there is no memory for that.
#[inline(always)]
pub(super) fn store(context: &SockAddrContext, sk: *mut bpf_sock, addr: &Addr, port: u16) -> bool {
    let mut flow = Flow { addr: *addr, port, layout: LAYOUT_VERSION, kind: flow_kind::REDIRECT };
    let stored: *mut Flow = unsafe {
        bpf_sk_storage_get(
            (&raw const DIALLED).cast_mut().cast(),
            sk.cast(),
            (&raw mut flow).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    }
    .cast();
    if stored.is_null() {
        if count_failure(Counter::OutboundRefusedStorage) {
            warn!(context, "connect refused: no memory to store the destination of a socket");
        }
        return false;
    }
    unsafe { *stored = flow };
    true
}

/// A socket that dials anew and is let go has nothing of what it dialled before, nor waits.
#[inline(always)]
pub(super) fn forget(sk: *mut bpf_sock) {
    unsafe { bpf_sk_storage_delete((&raw const DIALLED).cast_mut().cast(), sk.cast()) };
    unsafe { bpf_sk_storage_delete((&raw const HOLDS).cast_mut().cast(), sk.cast()) };
}

/// Asks for the verdict on a TCP connection to `addr` and stores the destination if it is redirected; UDP sockets are asked
/// about DNS alone.
///
/// A socket that is not redirected loses what it stored for an earlier connection, so that it is neither recorded nor shown.
#[inline(always)]
fn decide(context: &SockAddrContext, addr: &Addr) -> Applied {
    let raw: *mut bpf_sock_addr = context.sock_addr;
    let kind = field(unsafe { &raw const (*raw).type_ });
    let protocol = field(unsafe { &raw const (*raw).protocol });
    if kind == SOCK_DGRAM && protocol == IPPROTO_UDP {
        return super::dns::redirect(context, addr);
    }
    if kind != SOCK_STREAM || protocol != IPPROTO_TCP {
        return Applied::Done(PASS);
    }
    let netns = unsafe { bpf_get_netns_cookie(raw.cast()) };
    let Some(pod) = (unsafe { PODS.get(&netns) }) else {
        let pod = hold::pod();
        return if pod.waits() {
            hold::wait(context, netns, pod, addr)
        } else {
            Applied::Done(other(context, netns, addr))
        };
    };
    // Without a configuration nothing is known about the range: an enrolled pod is refused, never passed.
    let Some(config) = config() else {
        return Applied::Done(REFUSE);
    };
    let port = u16::from_be(field(unsafe { &raw const (*raw).user_port }) as u16);
    let random = unsafe { bpf_get_prandom_u32() };
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    if sk.is_null() {
        return Applied::Done(REFUSE);
    }
    match outbound(&config, netns, pod, addr, port, random, &Maps) {
        Outbound::Pass(counter) => {
            count(counter);
            forget(sk);
            Applied::Done(PASS)
        }
        Outbound::Refuse(counter) => {
            count(counter);
            Applied::Done(REFUSE)
        }
        Outbound::Redirect(target, target_port) => {
            if !store(context, sk, addr, port) {
                return Applied::Done(REFUSE);
            }
            // Should the socket have waited for an enrolment once, it does not any more.
            unsafe { bpf_sk_storage_delete((&raw const HOLDS).cast_mut().cast(), sk.cast()) };
            count(Counter::OutboundRedirected);
            Applied::Rewrite(target, target_port)
        }
    }
}

/// TCP connections and connected UDP sockets over IPv4. Reads PODS, POD_BY_IP, ENGINES and the exclusions; stores the destination in DIALLED and rewrites
/// it to the pod's own address and a port of the range. Refuses (EPERM) whatever it cannot decide.
#[cgroup_sock_addr(connect4)]
pub fn outbound4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = mapped(field(unsafe { &raw const (*raw).user_ip4 }));
    match decide(&context, &addr) {
        Applied::Done(verdict) => verdict,
        Applied::Rewrite(target, port) => write4(raw, &target, port),
    }
}

/// TCP connections of IPv6 sockets, v4-mapped ones among them (for these connect4 does not run).
#[cgroup_sock_addr(connect6)]
pub fn outbound6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = words(unsafe { &raw const (*raw).user_ip6 });
    match decide(&context, &addr) {
        Applied::Done(verdict) => verdict,
        Applied::Rewrite(target, port) => write6(raw, &target, port),
    }
}
