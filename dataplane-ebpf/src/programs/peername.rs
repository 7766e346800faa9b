//! Hooks: cgroup/getpeername4 and cgroup/getpeername6 at the pods' cgroup. The application sees whom it dialled, not the engine.
//! A TCP socket stores that; of a UDP socket the engine's port tells it.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use causeway_ebpf::abi::{DNS_PORT, Flow, mapped};

use super::dns::server_behind;
use super::maps::DIALLED;
use super::outbound::{PASS, write4, write6};
use super::{field, words};

const IPPROTO_UDP: u32 = 17;

#[inline(always)]
fn is_udp(raw: *mut bpf_sock_addr) -> bool {
    field(unsafe { &raw const (*raw).protocol }) == IPPROTO_UDP
}

/// What this socket dialled through the outbound programs.
#[inline(always)]
fn dialled(raw: *mut bpf_sock_addr) -> Option<Flow> {
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    let flow: *const Flow =
        unsafe { bpf_sk_storage_get((&raw const DIALLED).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) }
            .cast();
    if flow.is_null() { None } else { Some(unsafe { *flow }) }
}

/// Reads DIALLED, DNS_PODS and DNS_SERVERS. The return value is always 1: this hook cannot refuse.
#[cgroup_sock_addr(getpeername4)]
pub fn peername4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    if let Some(flow) = dialled(raw) {
        return write4(raw, &flow.addr, flow.port);
    }
    let addr = mapped(field(unsafe { &raw const (*raw).user_ip4 }));
    match is_udp(raw).then(|| server_behind(raw, &addr)).flatten() {
        Some(server) => write4(raw, &server, DNS_PORT),
        None => PASS,
    }
}

/// Reads DIALLED, DNS_PODS and DNS_SERVERS. The return value is always 1: this hook cannot refuse.
#[cgroup_sock_addr(getpeername6)]
pub fn peername6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    if let Some(flow) = dialled(raw) {
        return write6(raw, &flow.addr, flow.port);
    }
    let addr = words(unsafe { &raw const (*raw).user_ip6 });
    match is_udp(raw).then(|| server_behind(raw, &addr)).flatten() {
        Some(server) => write6(raw, &server, DNS_PORT),
        None => PASS,
    }
}
