//! Hooks: cgroup/getpeername4 and cgroup/getpeername6 at the pods' cgroup. The application sees whom it dialled, not the engine.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use causeway_ebpf::abi::Flow;

use super::maps::DIALLED;
use super::set_field;

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

/// Reads DIALLED. The return value is always 1: this hook cannot refuse.
#[cgroup_sock_addr(getpeername4)]
pub fn peername4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    if let Some(flow) = dialled(raw) {
        set_field(unsafe { &raw mut (*raw).user_ip4 }, flow.addr[3]);
        set_field(unsafe { &raw mut (*raw).user_port }, u32::from(flow.port.to_be()));
    }
    1
}

/// Reads DIALLED. The return value is always 1: this hook cannot refuse.
#[cgroup_sock_addr(getpeername6)]
pub fn peername6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    if let Some(flow) = dialled(raw) {
        let ip: *mut u32 = unsafe { (&raw mut (*raw).user_ip6).cast() };
        set_field(ip, flow.addr[0]);
        set_field(unsafe { ip.add(1) }, flow.addr[1]);
        set_field(unsafe { ip.add(2) }, flow.addr[2]);
        set_field(unsafe { ip.add(3) }, flow.addr[3]);
        set_field(unsafe { &raw mut (*raw).user_port }, u32::from(flow.port.to_be()));
    }
    1
}
