//! Hooks: cgroup_skb/egress and cgroup/getsockname at the pods' cgroup, and what the connect hooks do for pods that are to be
//! enrolled and are not yet.
//!
//! A program cannot let connect() sleep, so the connection waits as a SYN: it is directed to a loopback address of the pod's own
//! and dropped on its way out until the pod is enrolled. The next time it is sent it finds the engine's listener.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_setsockopt, bpf_sk_fullsock,
    bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use causeway_ebpf::abi::{Addr, Flow, Hold, Pod, is_mapped};
use causeway_ebpf::counter::Counter;
use causeway_ebpf::decide::outbound::{Outbound, held};

use super::maps::{DIALLED, HELD, HOLDS, PODS};
use super::outbound::{Applied, Maps, PASS, REFUSE, store, write4, write6};
use super::{config, count, field};

/// Deeper than any kubelet puts pods, also where nodes are containers themselves.
const LEVELS: i32 = 12;
/// Pause before the first SYN is sent again, in ticks of the kernel's clock: 25 to 250 ms.
const PAUSE: u32 = 25;
/// How often the SYN is sent again, each time after twice the pause: minutes in all.
const TIMES: u32 = 12;
const SOL_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;
const SKB_PASS: i32 = 1;
const SKB_DROP: i32 = 0;

/// The cgroup of the calling task's pod, if that waits for its enrolment.
#[inline(always)]
pub(super) fn cgroup() -> Option<u64> {
    for level in 1..LEVELS {
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return None;
        }
        if unsafe { HELD.get(&id) }.is_some() {
            return Some(id);
        }
    }
    None
}

/// Lets a connection of such a pod wait.
#[inline(always)]
pub(super) fn wait(context: &SockAddrContext, netns: u64, cgroup: u64, addr: &Addr) -> Applied {
    let raw: *mut bpf_sock_addr = context.sock_addr;
    let Some(config) = config() else {
        return Applied::Done(REFUSE);
    };
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    if sk.is_null() {
        return Applied::Done(REFUSE);
    }
    let port = u16::from_be(field(unsafe { &raw const (*raw).user_port }) as u16);
    match held(&config, netns, addr, port, unsafe { bpf_get_prandom_u32() }, &Maps) {
        Outbound::Pass(counter) => {
            count(counter);
            unsafe { bpf_sk_storage_delete((&raw const DIALLED).cast_mut().cast(), sk.cast()) };
            Applied::Done(PASS)
        }
        Outbound::Refuse(counter) => {
            count(counter);
            Applied::Done(REFUSE)
        }
        Outbound::Redirect(target, target_port) => {
            let mut hold = Hold { netns, cgroup };
            let stored: *mut Hold = unsafe {
                bpf_sk_storage_get(
                    (&raw const HOLDS).cast_mut().cast(),
                    sk.cast(),
                    (&raw mut hold).cast(),
                    u64::from(BPF_SK_STORAGE_GET_F_CREATE),
                )
            }
            .cast();
            if stored.is_null() || !store(context, sk, addr, port) {
                return Applied::Done(REFUSE);
            }
            unsafe { *stored = hold };
            count(Counter::OutboundHeld);
            Applied::Rewrite(target, target_port)
        }
    }
}

/// Whether the connection of this socket waits for an enrolment.
#[inline(always)]
fn waits(raw: *mut bpf_sock_ops) -> bool {
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return false;
    }
    let hold = unsafe { bpf_sk_storage_get((&raw const HOLDS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) };
    !hold.is_null()
}

/// A held connection shall notice soon that its pod is enrolled, and wait long for that.
#[inline(always)]
pub(super) fn timeout(raw: *mut bpf_sock_ops) {
    if !waits(raw) {
        return;
    }
    let mut times = TIMES;
    unsafe { bpf_setsockopt(raw.cast(), SOL_TCP, TCP_SYNCNT, (&raw mut times).cast(), 4) };
    super::set_field(unsafe { &raw mut (*raw).__bindgen_anon_1.reply }, PAUSE);
}

/// Reads HOLDS, PODS and HELD. Drops what a held connection sends, its SYN, while its pod is not enrolled and shall be. Where it
/// shall not any more the SYN passes to where nobody listens, and connect() fails.
#[cgroup_skb(egress)]
pub fn hold_egress(context: SkBuffContext) -> i32 {
    let sk = unsafe { (*context.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return SKB_PASS;
    }
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return SKB_PASS;
    }
    let hold: *const Hold =
        unsafe { bpf_sk_storage_get((&raw const HOLDS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) }.cast();
    if hold.is_null() {
        return SKB_PASS;
    }
    let (netns, cgroup) = unsafe { ((*hold).netns, (*hold).cgroup) };
    if unsafe { PODS.get(&netns) }.is_some() || unsafe { HELD.get(&cgroup) }.is_none() {
        return SKB_PASS;
    }
    count(Counter::OutboundHeldSyn);
    SKB_DROP
}

/// The pod of a socket that was held, and whether it dialled over IPv4.
#[inline(always)]
fn pod_of(raw: *mut bpf_sock_addr) -> Option<(Pod, bool)> {
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    if sk.is_null() {
        return None;
    }
    let hold: *const Hold =
        unsafe { bpf_sk_storage_get((&raw const HOLDS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) }.cast();
    if hold.is_null() {
        return None;
    }
    let dialled: *const Flow =
        unsafe { bpf_sk_storage_get((&raw const DIALLED).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) }
            .cast();
    if dialled.is_null() {
        return None;
    }
    let pod = *unsafe { PODS.get(&bpf_get_netns_cookie(raw.cast())) }?;
    Some((pod, is_mapped(unsafe { &(*dialled).addr })))
}

/// The port is left as it is.
#[inline(always)]
fn own_port(raw: *mut bpf_sock_addr) -> u16 {
    u16::from_be(field(unsafe { &raw const (*raw).user_port }) as u16)
}

/// Reads HOLDS, DIALLED and PODS: the application of a held connection sees the pod's address, not where it waited. The return
/// value is always 1: this hook cannot refuse.
#[cgroup_sock_addr(getsockname4)]
pub fn sockname4(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    match pod_of(raw) {
        Some((pod, _)) if pod.v4 != [0; 4] => write4(raw, &pod.v4, own_port(raw)),
        _ => PASS,
    }
}

/// The same for IPv6 sockets.
#[cgroup_sock_addr(getsockname6)]
pub fn sockname6(context: SockAddrContext) -> i32 {
    let raw = context.sock_addr;
    match pod_of(raw) {
        Some((pod, true)) if pod.v4 != [0; 4] => write6(raw, &pod.v4, own_port(raw)),
        Some((pod, false)) if pod.v6 != [0; 4] => write6(raw, &pod.v6, own_port(raw)),
        _ => PASS,
    }
}
