//! Hooks: tcx ingress of the node's uplinks, and of the node's end of the device into the engine's own namespace.
//!
//! What belongs to the engine goes from the uplink straight into that namespace, and its answers straight to the uplink:
//! neither meets a netfilter rule of the node.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use causeway_ebpf::abi::{EntryFlow, EntryFragment, NodePort};
use causeway_ebpf::counter::Counter;
use causeway_ebpf::decide::node_port::{Arriving, View, arriving, leaving};
use causeway_ebpf::decide::packet::Packet;

use super::maps::{ENTRY_DEVICE, ENTRY_FLOWS, ENTRY_FRAGMENTS, NODE_PORTS};
use super::{count, count_failure, field};

/// The next program on the hook decides, and after the last one the kernel goes on.
const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;
/// Bits of a VLAN tag that are its number; 0 means a priority without a VLAN.
const VLAN_NUMBER: u32 = 0xfff;

struct Maps;

impl View for Maps {
    #[inline(always)]
    fn port(&self, port: &NodePort) -> Option<u32> {
        unsafe { NODE_PORTS.get(port) }.copied()
    }
    #[inline(always)]
    fn flow(&self, flow: &EntryFlow) -> Option<u32> {
        unsafe { ENTRY_FLOWS.get(flow) }.copied()
    }
    #[inline(always)]
    fn fragment(&self, fragment: &EntryFragment) -> bool {
        unsafe { ENTRY_FRAGMENTS.get(fragment) }.is_some()
    }
}

struct Frame<'a>(&'a TcContext);

impl Packet for Frame<'_> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load(offset).ok()
    }
}

#[inline(always)]
fn ethertype(raw: *const __sk_buff) -> u16 {
    u16::from_be(field(unsafe { &raw const (*raw).protocol }) as u16)
}

/// Into the engine's own namespace, as if it had arrived there. Without one the packet is dropped: it is never passed.
#[inline(always)]
fn hand_over() -> i32 {
    match ENTRY_DEVICE.get(0) {
        Some(device) if *device != 0 => unsafe { bpf_redirect_peer(*device, 0) as i32 },
        _ => {
            count(Counter::EntryFailed);
            DROP
        }
    }
}

/// Reads NODE_PORTS, ENTRY_FLOWS, ENTRY_FRAGMENTS and ENTRY_DEVICE; writes ENTRY_FLOWS and ENTRY_FRAGMENTS.
#[classifier]
pub fn entry_uplink(context: TcContext) -> i32 {
    let raw = context.skb.skb;
    let tagged = field(unsafe { &raw const (*raw).vlan_present }) != 0
        && field(unsafe { &raw const (*raw).vlan_tci }) & VLAN_NUMBER != 0;
    match arriving(ethertype(raw), tagged, &Frame(&context), &Maps) {
        Arriving::Pass(counter) => {
            if let Some(counter) = counter {
                count(counter);
            }
            NEXT
        }
        Arriving::Forget(flow) => {
            let _ = ENTRY_FLOWS.remove(&flow);
            NEXT
        }
        Arriving::Drop(counter) => {
            count(counter);
            DROP
        }
        Arriving::Open(flow) => {
            let uplink = field(unsafe { &raw const (*raw).ifindex });
            if ENTRY_FLOWS.insert(&flow, &uplink, 0).is_err() {
                if count_failure(Counter::EntryFailed) {
                    warn!(&context, "connection to a node port dropped: no room to record it (ENTRY_FLOWS is full)");
                }
                return DROP;
            }
            count(Counter::EntryOpened);
            hand_over()
        }
        Arriving::Take(fragment, counter) => {
            if let Some(fragment) = fragment {
                let _ = ENTRY_FRAGMENTS.insert(&fragment, &1, 0);
            }
            if let Some(counter) = counter {
                count(counter);
            }
            hand_over()
        }
    }
}

/// Reads ENTRY_FLOWS. The neighbour's address is the kernel's to find, along the routes of that uplink.
#[classifier]
pub fn entry_return(context: TcContext) -> i32 {
    let raw = context.skb.skb;
    match leaving(ethertype(raw), &Frame(&context), &Maps) {
        Some(uplink) => unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) as i32 },
        None => NEXT,
    }
}
