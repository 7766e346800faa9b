//! Hook: sk_lookup, one link for each pod's network namespace.

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use causeway_ebpf::abi::{Addr, FlowKey, ListenerKey, PortKey, direction, mapped};
use causeway_ebpf::counter::Counter;
use causeway_ebpf::decide::inbound::{Inbound, Lookup, View, inbound};

use super::maps::{EXCLUDED_PORTS, FLOWS, LISTENERS, POD_BY_IP};
use super::{config, count, field, words};

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const SK_PASS: u32 = 1;
/// TCP answers with a reset.
const SK_DROP: u32 = 0;

struct Maps;

impl View for Maps {
    #[inline(always)]
    fn owner(&self, addr: &Addr) -> Option<u64> {
        unsafe { POD_BY_IP.get(addr) }.copied()
    }
    #[inline(always)]
    fn flow(&self, netns: u64, lookup: &Lookup) -> Option<u32> {
        let key = FlowKey {
            netns,
            client: lookup.remote,
            server: lookup.local,
            client_port: lookup.remote_port,
            server_port: lookup.local_port,
            pad: 0,
        };
        unsafe { FLOWS.get(&key) }.map(|flow| flow.kind)
    }
    #[inline(always)]
    fn port_excluded(&self, port: u16) -> bool {
        unsafe { EXCLUDED_PORTS.get(&PortKey { direction: direction::INBOUND, port }) }.is_some()
    }
}

/// The ends of the connection that arrives. Fields of both families are read whatever the family is, for the reason given in
/// `sockets`.
#[inline(always)]
fn lookup(raw: *mut bpf_sk_lookup) -> Lookup {
    let local_port = field(unsafe { &raw const (*raw).local_port }) as u16;
    let remote_port = u16::from_be(field(unsafe { &raw const (*raw).remote_port }));
    let local4 = field(unsafe { &raw const (*raw).local_ip4 });
    let remote4 = field(unsafe { &raw const (*raw).remote_ip4 });
    let local6 = words(unsafe { &raw const (*raw).local_ip6 });
    let remote6 = words(unsafe { &raw const (*raw).remote_ip6 });
    let (local, remote) = if field(unsafe { &raw const (*raw).family }) == AF_INET {
        (mapped(local4), mapped(remote4))
    } else {
        (local6, remote6)
    };
    Lookup { local, remote, local_port, remote_port }
}

/// Reads POD_BY_IP, FLOWS and the exclusions; selects a socket of LISTENERS. Whatever should go to the engine and finds no
/// listener is reset.
#[sk_lookup]
pub fn inbound_lookup(context: SkLookupContext) -> u32 {
    let raw = context.lookup;
    if field(unsafe { &raw const (*raw).protocol }) != IPPROTO_TCP {
        return SK_PASS;
    }
    let Some(config) = config() else {
        return SK_DROP;
    };
    match inbound(&config, &lookup(raw), &Maps) {
        Inbound::Pass(counter) => {
            count(counter);
            SK_PASS
        }
        Inbound::Drop(counter) => {
            count(counter);
            SK_DROP
        }
        Inbound::Steer { netns, kind, counter } => {
            let key = ListenerKey { netns, kind, pad: 0 };
            if LISTENERS.redirect_sk_lookup(&context, &key, 0).is_ok() {
                count(counter);
                SK_PASS
            } else {
                count(Counter::InboundNoListener);
                SK_DROP
            }
        }
    }
}
