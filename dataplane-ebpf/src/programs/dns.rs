//! Hooks: cgroup/sendmsg4, sendmsg6, recvmsg4 and recvmsg6 at the pods' cgroup, and what connect and getpeername do for UDP.
//!
//! Datagrams to port 53 go to a socket of the engine in the same namespace; every server has an engine port of its own, so that
//! what comes back can be shown as coming from the very server that was asked, also to a socket that asks several.

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::warn;
use causeway_ebpf::abi::{Addr, DNS_PORT, EnginePort, ServerKey, mapped};
use causeway_ebpf::counter::Counter;
use causeway_ebpf::decide::dns::{Claim, Dns, View, dns, is_engine_address};
use causeway_ebpf::decide::outbound::View as _;

use super::maps::{DNS_PODS, DNS_PORTS, DNS_SERVERS};
use super::outbound::{Applied, Maps as Shared, PASS, REFUSE, write4, write6};
use super::{config, count, count_failure, field, words};

/// The maps as one namespace sees them.
struct Maps {
    netns: u64,
}

const EEXIST: i64 = -17;

impl View for Maps {
    #[inline(always)]
    fn owner(&self, addr: &Addr) -> Option<u64> {
        Shared.owner(addr)
    }
    #[inline(always)]
    fn is_engine(&self) -> bool {
        Shared.is_engine()
    }
    #[inline(always)]
    fn port_excluded(&self, port: u16) -> bool {
        Shared.port_excluded(port)
    }
    #[inline(always)]
    fn address_excluded(&self, addr: &Addr) -> bool {
        Shared.address_excluded(addr)
    }
    #[inline(always)]
    fn port_of(&self, server: &Addr) -> Option<u16> {
        unsafe { DNS_PORTS.get(&ServerKey { netns: self.netns, server: *server }) }.copied()
    }
    #[inline(always)]
    fn claim(&self, port: u16, server: &Addr) -> Claim {
        let key = EnginePort::new(self.netns, server, port);
        match DNS_SERVERS.insert(&key, server, u64::from(BPF_NOEXIST)) {
            Ok(()) => Claim::Won,
            Err(error) if i64::from(error) == EEXIST => Claim::Taken,
            Err(_) => Claim::Failed,
        }
    }
    #[inline(always)]
    fn release(&self, port: u16, server: &Addr) {
        let _ = DNS_SERVERS.remove(&EnginePort::new(self.netns, server, port));
    }
    #[inline(always)]
    fn remember(&self, server: &Addr, port: u16) -> bool {
        let key = ServerKey { netns: self.netns, server: *server };
        DNS_PORTS.insert(&key, &port, u64::from(BPF_NOEXIST)).is_ok()
    }
}

/// The verdict on datagrams to `addr` and the port in the context, applied by the caller.
#[inline(always)]
pub(super) fn redirect(context: &SockAddrContext, addr: &Addr) -> Applied {
    let raw: *mut bpf_sock_addr = context.sock_addr;
    if u16::from_be(field(unsafe { &raw const (*raw).user_port }) as u16) != DNS_PORT {
        return Applied::Done(PASS);
    }
    let netns = unsafe { bpf_get_netns_cookie(raw.cast()) };
    let Some(pod) = (unsafe { DNS_PODS.get(&netns) }) else {
        return Applied::Done(PASS);
    };
    let Some(config) = config() else {
        return Applied::Done(REFUSE);
    };
    match dns(&config, netns, pod, addr, &Maps { netns }) {
        Dns::Pass(counter) => {
            count(counter);
            Applied::Done(PASS)
        }
        Dns::Refuse(counter) => {
            if count_failure(counter) {
                warn!(
                    context,
                    "DNS query refused: its server cannot be recorded or the pod lacks an address of its family"
                );
            }
            Applied::Done(REFUSE)
        }
        Dns::Redirect(target, port) => {
            count(Counter::DnsCaptured);
            Applied::Rewrite(target, port)
        }
    }
}

/// The server behind an address and port of the engine, as the application knows it.
#[inline(always)]
pub(super) fn server_behind(raw: *mut bpf_sock_addr, addr: &Addr) -> Option<Addr> {
    let netns = unsafe { bpf_get_netns_cookie(raw.cast()) };
    let pod = unsafe { DNS_PODS.get(&netns) }?;
    if !is_engine_address(pod, addr) {
        return None;
    }
    let port = u16::from_be(field(unsafe { &raw const (*raw).user_port }) as u16);
    unsafe { DNS_SERVERS.get(&EnginePort::new(netns, addr, port)) }.copied()
}

/// Datagrams over IPv4, also those of IPv6 sockets to v4-mapped addresses. Reads DNS_PODS, POD_BY_IP, ENGINES and the
/// exclusions; writes DNS_SERVERS and DNS_PORTS when a pod meets a server for the first time. Refuses (EPERM) what it cannot
/// decide.
#[cgroup_sock_addr(sendmsg4)]
pub fn dns_send4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = mapped(field(unsafe { &raw const (*raw).user_ip4 }));
    match redirect(&context, &addr) {
        Applied::Done(verdict) => verdict,
        Applied::Rewrite(target, port) => write4(raw, &target, port),
    }
}

/// Datagrams over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn dns_send6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = words(unsafe { &raw const (*raw).user_ip6 });
    match redirect(&context, &addr) {
        Applied::Done(verdict) => verdict,
        Applied::Rewrite(target, port) => write6(raw, &target, port),
    }
}

/// Answers to IPv4 sockets come from the server that was asked. Reads DNS_PODS and DNS_SERVERS; cannot refuse.
#[cgroup_sock_addr(recvmsg4)]
pub fn dns_recv4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = mapped(field(unsafe { &raw const (*raw).user_ip4 }));
    if let Some(server) = server_behind(raw, &addr) {
        write4(raw, &server, DNS_PORT);
    }
    PASS
}

/// Answers to IPv6 sockets, v4-mapped ones among them: those were sent through the hook for IPv4.
#[cgroup_sock_addr(recvmsg6)]
pub fn dns_recv6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = words(unsafe { &raw const (*raw).user_ip6 });
    if let Some(server) = server_behind(raw, &addr) {
        write6(raw, &server, DNS_PORT);
    }
    PASS
}
