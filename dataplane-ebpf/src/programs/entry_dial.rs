//! Hooks: cgroup/connect4, connect6, getpeername4 and getpeername6 at the node's cgroup root.
//!
//! What a pod or a process of the node dials at the node's own address never arrives at an uplink. It is sent to the engine's
//! own namespace by its address there; the application sees the address it dialled.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use causeway_ebpf::abi::{Addr, Flow, LAYOUT_VERSION, NodePort, flow_kind, is_mapped, mapped, node_port_state};
use causeway_ebpf::counter::Counter;

use super::maps::{ENGINES, ENTRY_DIALLED, ENTRY_LOCAL, NODE_PORTS};
use super::outbound::{PASS, REFUSE, write4, write6};
use super::{count, field, words};

const IPPROTO_TCP: u32 = 6;

/// What a socket dials instead.
enum Dial {
    Done(i32),
    Instead(Addr, u16),
}

#[inline(always)]
fn stored(raw: *mut bpf_sock_addr, value: *mut Flow, flags: u32) -> *mut Flow {
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    if sk.is_null() {
        return core::ptr::null_mut();
    }
    unsafe {
        bpf_sk_storage_get((&raw const ENTRY_DIALLED).cast_mut().cast(), sk.cast(), value.cast(), u64::from(flags))
    }
    .cast()
}

#[inline(always)]
fn forget(raw: *mut bpf_sock_addr) {
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    if !sk.is_null() {
        unsafe { bpf_sk_storage_delete((&raw const ENTRY_DIALLED).cast_mut().cast(), sk.cast()) };
    }
}

#[inline(always)]
fn decide(raw: *mut bpf_sock_addr, addr: &Addr) -> Dial {
    if field(unsafe { &raw const (*raw).protocol }) != IPPROTO_TCP {
        return Dial::Done(PASS);
    }
    let port = u16::from_be(field(unsafe { &raw const (*raw).user_port }) as u16);
    let state = unsafe { NODE_PORTS.get(&NodePort { addr: *addr, port, pad: 0 }) }.copied();
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if state != Some(node_port_state::OPEN) || unsafe { ENGINES.get(&cgroup) }.is_some() {
        forget(raw);
        return Dial::Done(PASS);
    }
    let Some(instead) = ENTRY_LOCAL.get(if is_mapped(addr) { 0 } else { 1 }).filter(|addr| **addr != [0; 4]) else {
        count(Counter::EntryDialFailed);
        return Dial::Done(REFUSE);
    };
    let mut flow = Flow { addr: *addr, port, layout: LAYOUT_VERSION, kind: flow_kind::REDIRECT };
    let kept = stored(raw, &raw mut flow, BPF_SK_STORAGE_GET_F_CREATE);
    if kept.is_null() {
        count(Counter::EntryDialFailed);
        return Dial::Done(REFUSE);
    }
    unsafe { *kept = flow };
    count(Counter::EntryDialled);
    Dial::Instead(*instead, port)
}

/// Reads NODE_PORTS, ENGINES and ENTRY_LOCAL; stores the destination in ENTRY_DIALLED and rewrites it.
#[cgroup_sock_addr(connect4)]
pub fn entry_dial4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = mapped(field(unsafe { &raw const (*raw).user_ip4 }));
    match decide(raw, &addr) {
        Dial::Done(verdict) => verdict,
        Dial::Instead(addr, port) => write4(raw, &addr, port),
    }
}

/// The same for IPv6 sockets, v4-mapped ones among them.
#[cgroup_sock_addr(connect6)]
pub fn entry_dial6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let addr = words(unsafe { &raw const (*raw).user_ip6 });
    match decide(raw, &addr) {
        Dial::Done(verdict) => verdict,
        Dial::Instead(addr, port) => write6(raw, &addr, port),
    }
}

/// Reads ENTRY_DIALLED. The return value is always 1: this hook cannot refuse.
#[cgroup_sock_addr(getpeername4)]
pub fn entry_peer4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let dialled = stored(raw, core::ptr::null_mut(), 0);
    if dialled.is_null() {
        return PASS;
    }
    let flow = unsafe { *dialled };
    write4(raw, &flow.addr, flow.port)
}

/// Reads ENTRY_DIALLED. The return value is always 1: this hook cannot refuse.
#[cgroup_sock_addr(getpeername6)]
pub fn entry_peer6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    let dialled = stored(raw, core::ptr::null_mut(), 0);
    if dialled.is_null() {
        return PASS;
    }
    let flow = unsafe { *dialled };
    write6(raw, &flow.addr, flow.port)
}
