//! Hooks: cgroup_skb/egress and cgroup/getsockname at the pods' cgroup, and what the connect hooks do for pods that are to be
//! enrolled and are not yet, and for those of which nobody has said what they are.
//!
//! A program cannot let connect() sleep, so the connection waits as a SYN, which is dropped on its way out and sent again. That
//! of a pod that is to be enrolled is directed to a loopback address of the pod's own: once the pod is enrolled it finds the
//! engine's listener. That of an unknown pod stays as it was dialled, and passes unless the pod turns out to be of the mesh.

use aya_ebpf::bindings::{
    BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_RTO_CB_FLAG, bpf_sock, bpf_sock_addr, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_setsockopt,
    bpf_sk_fullsock, bpf_sk_storage_delete, bpf_sk_storage_get, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use causeway_ebpf::abi::{Addr, Flow, Hold, Pod, hold_kind, is_mapped};
use causeway_ebpf::counter::Counter;
use causeway_ebpf::decide::hold::{Egress, NOT_HELD, UNTIL_ENROLMENT, egress, is_lost, waits};
use causeway_ebpf::decide::outbound::{Outbound, held};

use super::maps::{DIALLED, HELD, HOLDS, PODS};
use super::outbound::{Applied, Maps, PASS, REFUSE, forget, store, write4, write6};
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

/// A pod that has to wait.
#[derive(Clone, Copy)]
pub(super) struct Held {
    /// Id of its cgroup.
    cgroup: u64,
    /// Value of `HELD`.
    until: u64,
}

impl Held {
    /// Whether what it opens now has to wait.
    #[inline(always)]
    pub(super) fn waits(self) -> bool {
        waits(self.until, unsafe { bpf_ktime_get_ns() })
    }
}

/// The pod of the calling task; without one that is named in `HELD`, one that need not wait.
#[inline(always)]
pub(super) fn pod() -> Held {
    for level in 1..LEVELS {
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        if let Some(until) = unsafe { HELD.get(&id) } {
            return Held { cgroup: id, until: *until };
        }
    }
    Held { cgroup: 0, until: NOT_HELD }
}

/// Lets a connection of such a pod wait.
#[inline(always)]
pub(super) fn wait(context: &SockAddrContext, netns: u64, pod: Held, addr: &Addr) -> Applied {
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
            forget(sk);
            Applied::Done(PASS)
        }
        Outbound::Refuse(counter) => {
            count(counter);
            Applied::Done(REFUSE)
        }
        Outbound::Redirect(target, target_port) => {
            let directed = pod.until == UNTIL_ENROLMENT;
            let kind = if directed { hold_kind::DIRECTED } else { hold_kind::AS_DIALLED };
            forget(sk);
            if !remember(sk, Hold { netns, cgroup: pod.cgroup, kind }) || (directed && !store(context, sk, addr, port))
            {
                return Applied::Done(REFUSE);
            }
            count(Counter::OutboundHeld);
            if directed { Applied::Rewrite(target, target_port) } else { Applied::Done(PASS) }
        }
    }
}

/// Stores in a socket what it waits for.
#[inline(always)]
fn remember(sk: *mut bpf_sock, mut hold: Hold) -> bool {
    let stored = unsafe {
        bpf_sk_storage_get(
            (&raw const HOLDS).cast_mut().cast(),
            sk.cast(),
            (&raw mut hold).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    !stored.is_null()
}

/// What a socket's connection waits for, or has waited for.
#[inline(always)]
fn hold_of(sk: *mut bpf_sock) -> Option<Hold> {
    if sk.is_null() {
        return None;
    }
    let hold: *const Hold =
        unsafe { bpf_sk_storage_get((&raw const HOLDS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) }.cast();
    if hold.is_null() { None } else { Some(unsafe { *hold }) }
}

/// Until when its pod waits, and whether that is enrolled.
#[inline(always)]
fn pod_state(hold: &Hold) -> (u64, bool) {
    let until = match unsafe { HELD.get(&hold.cgroup) } {
        Some(until) => *until,
        None => NOT_HELD,
    };
    (until, unsafe { PODS.get(&hold.netns) }.is_some())
}

/// A held connection shall notice soon that it may go on, and wait long for that.
#[inline(always)]
pub(super) fn timeout(raw: *mut bpf_sock_ops) {
    let Some(hold) = hold_of(unsafe { (*raw).__bindgen_anon_2.sk }) else {
        return;
    };
    set_syn_count(raw, TIMES);
    if hold.kind == hold_kind::AS_DIALLED {
        let flags = field(unsafe { &raw const (*raw).bpf_sock_ops_cb_flags }) | BPF_SOCK_OPS_RTO_CB_FLAG;
        unsafe { bpf_sock_ops_cb_flags_set(raw, flags as i32) };
    }
    super::set_field(unsafe { &raw mut (*raw).__bindgen_anon_1.reply }, PAUSE);
}

/// A SYN of a held connection is to be sent again. One that can never pass fails the next time, rather than after minutes.
#[inline(always)]
pub(super) fn again(raw: *mut bpf_sock_ops) {
    if let Some(hold) = hold_of(unsafe { (*raw).__bindgen_anon_2.sk }) {
        let (until, enrolled) = pod_state(&hold);
        if is_lost(&hold, until, enrolled) {
            set_syn_count(raw, 1);
        }
    }
}

#[inline(always)]
fn set_syn_count(raw: *mut bpf_sock_ops, mut times: u32) {
    unsafe { bpf_setsockopt(raw.cast(), SOL_TCP, TCP_SYNCNT, (&raw mut times).cast(), 4) };
}

/// Reads HOLDS, PODS and HELD, and deletes from HOLDS. Drops what a held connection sends, its SYN, while its pod is not enrolled
/// and shall be, or while nobody has said what the pod is. Where the pod shall not be enrolled any more, a SYN that was directed
/// to the engine passes to where nobody listens, and connect() fails.
#[cgroup_skb(egress)]
pub fn hold_egress(context: SkBuffContext) -> i32 {
    let sk = unsafe { (*context.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return SKB_PASS;
    }
    let sk = unsafe { bpf_sk_fullsock(sk) };
    let Some(hold) = hold_of(sk) else {
        return SKB_PASS;
    };
    let (until, enrolled) = pod_state(&hold);
    match egress(&hold, until, enrolled, unsafe { bpf_ktime_get_ns() }) {
        Egress::Pass => SKB_PASS,
        Egress::Release => {
            // Open connections live on when their pod is enrolled later.
            unsafe { bpf_sk_storage_delete((&raw const HOLDS).cast_mut().cast(), sk.cast()) };
            SKB_PASS
        }
        Egress::Drop => {
            count(Counter::OutboundHeldSyn);
            SKB_DROP
        }
    }
}

/// The pod of a socket that was held, and whether it dialled over IPv4.
#[inline(always)]
fn pod_of(raw: *mut bpf_sock_addr) -> Option<(Pod, bool)> {
    let sk = unsafe { (*raw).__bindgen_anon_1.sk };
    hold_of(sk)?;
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
