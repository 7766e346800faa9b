//! The keys about node ports.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::convert::{Unique, cidr, identity, ip, service_key};
use super::locate::Place;
use super::{Problems, raw_entry as raw};
use crate::state::{
    Entry, IpFamilies, Locality, NodePort, NodePortTarget, Protocol, SourceMatch, TrustedEntries, Workload,
};

/// Most uplinks or addresses of a node.
const MOST: usize = 64;

/// Of this node, as its entry's workload carries it.
pub(super) struct Here<'a> {
    pub(super) node: &'a str,
    pub(super) cluster: &'a str,
    pub(super) network: &'a str,
    pub(super) trust_domain: &'a str,
    pub(super) base: &'a Path,
}

pub(super) fn entry(raw: &raw::Entry, here: &Here<'_>, place: &Place, problems: &mut Problems) -> Option<Entry> {
    let id = identity(&raw.identity, &place.key("identity"), problems)?;
    if id.trust_domain() != here.trust_domain {
        problems.add(
            &place.key("identity"),
            format!("{id} is not of the own trust domain {}", here.trust_domain),
            "use an identity of trustDomain",
        );
    }
    for (field, count) in [
        ("uplinks", raw.uplinks.len()),
        ("addresses", raw.addresses.len()),
        ("internalAddresses", raw.internal_addresses.len()),
    ] {
        if count > MOST {
            problems.add(&place.key(field), format!("has {count} entries, the limit is {MOST}"), "name fewer");
        }
    }
    for (index, name) in raw.uplinks.iter().enumerate() {
        if name.is_empty() || name.len() > 15 || name.contains(['/', ' ']) {
            problems.add(
                &place.key("uplinks").index(index),
                format!("{name:?} is no name of a device"),
                "write it as \"ip link\" shows it",
            );
        }
    }
    let mut ips = |texts: &[String], key: &str| -> Vec<IpAddr> {
        let place = place.key(key);
        texts.iter().enumerate().filter_map(|(index, text)| ip(text, &place.index(index), problems)).collect()
    };
    let addresses = ips(&raw.addresses, "addresses");
    let internal = ips(&raw.internal_addresses, "internalAddresses");
    let workload = Workload {
        uid: format!("{}//NodePort/{}", here.cluster, here.node).into(),
        name: here.node.into(),
        namespace: id.namespace().into(),
        service_account: id.service_account().into(),
        trust_domain: id.trust_domain().into(),
        network: here.network.into(),
        cluster: here.cluster.into(),
        node: here.node.into(),
        workload_name: id.service_account().into(),
        workload_type: "daemonset".into(),
        identity: id,
        ips: Vec::new(),
        hostname: "".into(),
        protocol: Protocol::Hbone,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        policies: Vec::new(),
        healthy: true,
        locality: Locality::default(),
        capacity: 1,
        host_network: true,
        services: Default::default(),
        canonical_name: "".into(),
        canonical_revision: "".into(),
        native_tunnel: false,
        extensions: Box::default(),
    };
    Some(Entry {
        workload: Arc::new(workload),
        netns: raw.netns.as_ref().map(|path| here.base.join(path)),
        uplinks: raw.uplinks.clone(),
        addresses,
        internal,
    })
}

pub(super) fn node_ports(
    raw: &[raw::NodePort],
    has_entry: bool,
    place: &Place,
    problems: &mut Problems,
) -> Vec<NodePort> {
    if !raw.is_empty() && !has_entry {
        problems.add(
            place,
            "there are node ports, and no entry says in whose name their clients enter the mesh",
            "add entry: {identity: spiffe://<trust domain>/ns/<namespace>/sa/<account>} beside nodePorts",
        );
    }
    let mut ports = Unique::default();
    raw.iter()
        .enumerate()
        .filter_map(|(index, entry)| {
            let place = place.index(index);
            for (field, port) in [("nodePort", Some(entry.node_port)), ("healthCheckNodePort", entry.health_check_node_port)]
            {
                let Some(port) = port else { continue };
                if port == 0 {
                    problems.add(&place.key(field), "0 is no port", "write the port that Kubernetes gave the service");
                }
                ports.check(&port, &place.key(field), "port of the node", problems);
            }
            let local = entry.external_traffic_policy == raw::ExternalTrafficPolicy::Local;
            if entry.health_check_node_port.is_some() && !local {
                problems.add(
                    &place.key("healthCheckNodePort"),
                    "tells whether this node has endpoints, which nobody needs to know with externalTrafficPolicy: Cluster",
                    "write externalTrafficPolicy: Local, or remove it",
                );
            }
            Some(NodePort {
                port: entry.node_port,
                target: target(entry, &place, problems)?,
                local,
                health_check: entry.health_check_node_port,
                families: families(&entry.families),
            })
        })
        .collect()
}

fn target(entry: &raw::NodePort, place: &Place, problems: &mut Problems) -> Option<NodePortTarget> {
    match (&entry.service, entry.port, entry.gateway) {
        (Some(service), Some(port), false) => {
            let key = service_key(service, &place.key("service"), problems)?;
            Some(NodePortTarget::Service { key, port })
        }
        (None, None, true) => Some(NodePortTarget::Gateway),
        _ => {
            problems.add(place, "needs either service and port, or gateway: true", "say what the port stands for");
            None
        }
    }
}

fn families(raw: &[raw::Family]) -> IpFamilies {
    match (raw.contains(&raw::Family::V4), raw.contains(&raw::Family::V6)) {
        (true, false) => IpFamilies::V4,
        (false, true) => IpFamilies::V6,
        _ => IpFamilies::Dual,
    }
}

pub(super) fn trusted_entries(raw: &raw::TrustedEntries, place: &Place, problems: &mut Problems) -> TrustedEntries {
    if raw.pod_ranges.is_empty() && !raw.identities.is_empty() {
        problems.add(
            &place.key("podRanges"),
            "is empty, so that an entry could pass a client off as any pod",
            "name the ranges that this cluster's pods have their addresses from",
        );
    }
    let mut identities = Vec::new();
    for (index, text) in raw.identities.iter().enumerate() {
        match text.strip_suffix('*') {
            Some(prefix) => identities.push(SourceMatch::Prefix(prefix.into())),
            None => {
                let id = identity(text, &place.key("identities").index(index), problems);
                identities.extend(id.map(SourceMatch::Exact));
            }
        }
    }
    let ranges = raw.pod_ranges.iter().enumerate();
    TrustedEntries {
        identities,
        pod_ranges: ranges
            .filter_map(|(index, text)| cidr(text, &place.key("podRanges").index(index), problems))
            .collect(),
    }
}
