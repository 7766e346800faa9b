//! Hook: sock_ops at the node's cgroup root.
//!
//! The original destination travels with the sockets: stored in the client's by the outbound programs, held in FLOWS from just
//! before the SYN leaves until the engine's socket exists, then stored in that one. So it is there when accept() returns, and
//! nothing has to be cleaned up but flows that never got that far.

use aya_ebpf::bindings::{
    BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TIMEOUT_INIT, BPF_TCP_CLOSE, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_setsockopt, bpf_sk_storage_get, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use causeway_ebpf::abi::{Addr, Flow, FlowKey, LAYOUT_VERSION, LOOPBACK_DEVICE, flow_kind, mapped};
use causeway_ebpf::counter::Counter;
use causeway_ebpf::decide::sockets::{Connect, Socket, connect};

use super::maps::{DIALLED, FLOWS, NODE_NETNS, ORIGINAL, POD_BY_IP};
use super::{config, count, count_failure, field, words};

const AF_INET: u32 = 2;
const SOL_SOCKET: i32 = 1;
const SO_BINDTOIFINDEX: i32 = 62;
/// Other values would replace the reply of another program on the same hook.
const KEEP_REPLY: u32 = 1;

/// Local and remote address of the socket.
///
/// Fields of both families are read whatever the family is: from two arms the compiler would merge the reads into one of a
/// chosen offset, which the verifier refuses. Those of the other family are garbage or zero.
#[inline(always)]
fn ends(raw: *mut bpf_sock_ops) -> (Addr, Addr) {
    let local4 = field(unsafe { &raw const (*raw).local_ip4 });
    let remote4 = field(unsafe { &raw const (*raw).remote_ip4 });
    let local6 = words(unsafe { &raw const (*raw).local_ip6 });
    let remote6 = words(unsafe { &raw const (*raw).remote_ip6 });
    if field(unsafe { &raw const (*raw).family }) == AF_INET {
        (mapped(local4), mapped(remote4))
    } else {
        (local6, remote6)
    }
}

/// Local and remote port of the socket in host byte order. The kernel shows the remote one as the upper half of a big-endian word.
#[inline(always)]
fn ports(raw: *mut bpf_sock_ops) -> (u16, u16) {
    let local = field(unsafe { &raw const (*raw).local_port });
    let remote = field(unsafe { &raw const (*raw).remote_port });
    (local as u16, u32::from_be(remote) as u16)
}

/// Key of this connection, the socket being its client, and whether it is in the node's own namespace. Then the key has the
/// namespace of the pod that is dialled; 0, which is no namespace, if it is none that is enrolled.
#[inline(always)]
fn client_key(raw: *mut bpf_sock_ops) -> (FlowKey, bool) {
    let (client, server) = ends(raw);
    let (client_port, server_port) = ports(raw);
    let own = unsafe { bpf_get_netns_cookie(raw.cast()) };
    let from_node = unsafe { NODE_NETNS.get(&own) }.is_some();
    let netns = if from_node { unsafe { POD_BY_IP.get(&server) }.copied().unwrap_or(0) } else { own };
    (FlowKey { netns, client, server, client_port, server_port, pad: 0 }, from_node)
}

/// A connection is about to send its SYN: record it if anyone will ask for it.
#[inline(always)]
fn connecting(context: &SockOpsContext, raw: *mut bpf_sock_ops) {
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    let dialled: *const Flow =
        unsafe { bpf_sk_storage_get((&raw const DIALLED).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0) }
            .cast();
    let Some(config) = config() else { return };
    let socket = Socket {
        dialled: if dialled.is_null() { None } else { Some(unsafe { (*dialled).kind }) },
        mark: field(unsafe { &raw const (*sk).mark }),
        device: field(unsafe { &raw const (*sk).bound_dev_if }),
    };
    let (key, from_node) = client_key(raw);
    let marker = |kind| Flow { addr: [0; 4], port: 0, layout: LAYOUT_VERSION, kind };
    let (flow, counter) = match connect(&config, socket, key.server_port, from_node) {
        Connect::Ignore => return,
        Connect::Redirected => {
            // The verdict is drawn from the pointer, but the verifier wants to see the test.
            if dialled.is_null() {
                return;
            }
            (unsafe { *dialled }, Counter::FlowRecorded)
        }
        Connect::Local => (marker(flow_kind::LOCAL), Counter::FlowLocal),
        Connect::Delivery => (marker(flow_kind::DELIVERY), Counter::FlowLocal),
        Connect::Node if key.netns == 0 => return,
        Connect::Node => (marker(flow_kind::NODE), Counter::FlowNode),
    };
    if matches!(flow.kind, flow_kind::LOCAL | flow_kind::DELIVERY)
        && unsafe { POD_BY_IP.get(&key.server) }.copied() != Some(key.netns)
    {
        return;
    }
    if FLOWS.insert(&key, &flow, 0).is_err() {
        // Without a record the lookup resets the connection.
        if count_failure(Counter::FlowFailed) {
            warn!(context, "connection reset: no room to record its destination (FLOWS is full)");
        }
        return;
    }
    count(counter);
    let flags = field(unsafe { &raw const (*raw).bpf_sock_ops_cb_flags }) | BPF_SOCK_OPS_STATE_CB_FLAG;
    unsafe { bpf_sock_ops_cb_flags_set(raw, flags as i32) };
}

/// The application has accepted what the engine delivers. Like the engine's end, its end is bound to the loopback device:
/// inside the pod both would otherwise match a connection from outside with the same two ends, which the client itself may
/// make at any time, and its SYN would be answered to the engine by this socket or by what is in TIME_WAIT of it
/// (`INET_MATCH` in include/net/inet_hashtables.h compares the device).
#[inline(always)]
fn keep_inside(raw: *mut bpf_sock_ops) {
    let mut device = LOOPBACK_DEVICE;
    // Where it fails the connection works as well; its ends stay taken while it lasts.
    unsafe {
        bpf_setsockopt(raw.cast(), SOL_SOCKET, SO_BINDTOIFINDEX, (&raw mut device).cast(), size_of::<u32>() as i32)
    };
}

/// A socket was accepted: hand it the destination of its connection, if that was recorded.
#[inline(always)]
fn accepted(context: &SockOpsContext, raw: *mut bpf_sock_ops) {
    let (server, client) = ends(raw);
    let (server_port, client_port) = ports(raw);
    let netns = unsafe { bpf_get_netns_cookie(raw.cast()) };
    let key = FlowKey { netns, client, server, client_port, server_port, pad: 0 };
    let Some(recorded) = (unsafe { FLOWS.get(&key) }) else {
        return;
    };
    let mut flow = *recorded;
    let _ = FLOWS.remove(&key);
    if flow.kind == flow_kind::DELIVERY {
        keep_inside(raw);
    }
    if flow.kind != flow_kind::REDIRECT {
        return;
    }
    let sk = unsafe { (*raw).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    let stored = unsafe {
        bpf_sk_storage_get(
            (&raw const ORIGINAL).cast_mut().cast(),
            sk.cast(),
            (&raw mut flow).cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    };
    if stored.is_null() {
        // The engine finds no destination and resets the connection.
        if count_failure(Counter::FlowAcceptFailed) {
            warn!(context, "connection reset: no memory to hand over its destination");
        }
    } else {
        count(Counter::FlowAccepted);
    }
}

/// Writes FLOWS before a SYN leaves, moves the entry to ORIGINAL when the connection is accepted, and removes what is left
/// when the client's socket closes. Binds what the application accepts from the engine to the loopback device.
#[sock_ops]
pub fn sockets(context: SockOpsContext) -> u32 {
    let raw = context.ops;
    let op = field(unsafe { &raw const (*raw).op });
    if op == BPF_SOCK_OPS_TIMEOUT_INIT {
        super::hold::timeout(raw);
    } else if op == BPF_SOCK_OPS_RTO_CB {
        super::hold::again(raw);
    } else if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        connecting(&context, raw);
    } else if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        accepted(&context, raw);
    } else if op == BPF_SOCK_OPS_STATE_CB
        && field(unsafe { &raw const (*raw).__bindgen_anon_1.args[1] }) == BPF_TCP_CLOSE
    {
        let (key, _) = client_key(raw);
        if FLOWS.remove(&key).is_ok() {
            count(Counter::FlowAbandoned);
        }
    }
    KEEP_REPLY
}
