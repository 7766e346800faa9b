//! Destinations outside the mesh, under `causeway` and in each enrolment.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::convert::cidr;
use super::locate::Place;
use super::{Problems, raw_node as raw};
use crate::state::{AllowedRange, Egress, OutboundMode};

/// The keys `outbound` and `outboundAllowed` at a place.
pub(super) fn egress(
    mode: raw::OutboundMode,
    allowed: &[raw::AllowedRange],
    place: &Place,
    problems: &mut Problems,
) -> Egress {
    let place = place.key("outboundAllowed");
    if mode == raw::OutboundMode::AllowAny && !allowed.is_empty() {
        problems.add(
            &place,
            "lists destinations although all are allowed",
            "write outbound: registry-only beside it, or take the list away",
        );
    }
    let ranges = allowed.iter().enumerate().filter_map(|(index, entry)| {
        let place = place.index(index);
        if entry.ports.contains(&0) {
            problems.add(&place.key("ports"), "has port 0", "write ports from 1 to 65535, or none for all");
        }
        let range = cidr(&entry.cidr, &place.key("cidr"), problems)?;
        Some(AllowedRange { range, ports: entry.ports.clone() })
    });
    Egress {
        allowed: ranges.collect(),
        mode: match mode {
            raw::OutboundMode::AllowAny => OutboundMode::AllowAny,
            raw::OutboundMode::RegistryOnly => OutboundMode::RegistryOnly,
        },
    }
}

/// What enrolments say instead of the node; what one leaves out is the node's.
pub(super) fn egress_of(node: &raw::Node, place: &Place, problems: &mut Problems) -> BTreeMap<Arc<str>, Egress> {
    let mut found = BTreeMap::new();
    for (index, entry) in node.enrol.iter().enumerate() {
        let own = match (entry.outbound, &entry.outbound_allowed) {
            (None, None) => continue,
            // The node's list says nothing about a workload that may reach everything.
            (Some(raw::OutboundMode::AllowAny), None) => Egress::default(),
            (mode, allowed) => {
                let allowed = allowed.as_ref().unwrap_or(&node.outbound_allowed);
                egress(mode.unwrap_or(node.outbound), allowed, &place.index(index), problems)
            }
        };
        found.insert(entry.workload.as_str().into(), own);
    }
    found
}
