//! Which record a name or an address means.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::Path;

use super::*;
use crate::state::{ModelStore, file};

fn model(text: &str) -> Model {
    let node = "causeway: {node: n1, cluster: c1, network: net1, identity: {caDirectory: x}}\n";
    file::parse(&format!("{text}{node}"), Path::new("m")).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn of_several_workloads_on_one_address_the_best_record_counts() {
    let pod = "{uid: c9//Pod/ns/a, namespace: ns, workloadIps: [10.0.0.1], network: net1, clusterId: c9}";
    let own = "{uid: own, namespace: ns, workloadIps: [10.0.0.1], network: net1, clusterId: c1}";
    let hbone = "{uid: hbone, namespace: ns, workloadIps: [10.0.0.1], network: net1, clusterId: c9, protocol: HBONE}";
    let plain = "{uid: plain, namespace: ns, workloadIps: [10.0.0.1], network: net1, clusterId: c9}";
    let host = "{uid: host//Pod/x/y, namespace: ns, workloadIps: [10.0.0.1], network: net1, networkMode: HostNetwork}";
    let elsewhere = "{uid: net2//Pod/x/y, namespace: ns, workloadIps: [10.0.0.1], network: net2}";
    let rows = [
        (vec![plain, hbone, own, pod], Some("c9//Pod/ns/a"), "a pod's record"),
        (vec![plain, hbone, own], Some("own"), "the own cluster's"),
        (vec![plain, hbone], Some("hbone"), "one that speaks HBONE"),
        (vec![host, plain], Some("plain"), "host network is not indexed"),
        (vec![host], None, "host network is not indexed"),
        (vec![elsewhere], None, "an address means nothing in another network"),
    ];
    for (workloads, expected, why) in rows {
        for reverse in [false, true] {
            let mut workloads = workloads.clone();
            if reverse {
                workloads.reverse();
            }
            let text: String = workloads.iter().map(|w| format!("- {w}\n")).collect();
            let model = model(&format!("workloads:\n{text}"));
            let found = model.workload_by_ip("net1", "10.0.0.1".parse().unwrap());
            assert_eq!(found.map(|w| &*w.uid), expected, "{why}");
        }
    }
}

const SERVICES: &str = r#"
services:
- {name: s, namespace: a, hostname: api.example.com, vips: [net1/10.96.0.1], ports: {80: 80}}
- {name: s, namespace: b, hostname: api.example.com, vips: [], ports: {80: 80}, canonical: true}
- {name: s, namespace: c, hostname: api.example.com, vips: [], ports: {80: 80}, visibility: Namespace}
- {name: wide, namespace: a, hostname: wide.example.com, vips: [], cidrVips: [{network: net1, cidr: 10.97.0.0/16}], ports: {80: 80}}
- {name: tight, namespace: b, hostname: tight.example.com, vips: [], cidrVips: [{network: net1, cidr: 10.97.1.0/24}], ports: {80: 80}}
- {name: exact, namespace: b, hostname: exact.example.com, vips: [net1/10.97.1.1], ports: {80: 80}}
"#;

#[test]
fn of_several_services_of_one_name_the_clients_own_then_the_canonical_counts() {
    let model = model(SERVICES);
    let rows = [
        ("a", "a", "own namespace"),
        ("b", "b", "own namespace, canonical too"),
        ("c", "c", "own namespace, hidden from others"),
        ("z", "b", "canonical"),
    ];
    for (client, expected, why) in rows {
        let found = model.service_by_host("API.example.com.", client).unwrap();
        assert_eq!(&*found.namespace, expected, "{why}");
    }
    assert!(model.service_by_host("else.example.com", "a").is_none());
}

#[test]
fn address_of_a_service_is_exact_before_ranges() {
    let model = model(SERVICES);
    let rows = [
        ("10.96.0.1", "a", Some("s"), "exact"),
        ("10.97.9.9", "z", Some("wide"), "range"),
        ("10.97.1.9", "z", Some("tight"), "longer prefix"),
        ("10.97.1.9", "a", Some("wide"), "own namespace before the longer prefix"),
        ("10.97.1.1", "a", Some("exact"), "exact before ranges"),
        ("::ffff:10.96.0.1", "a", Some("s"), "mapped address"),
        ("10.98.0.1", "a", None, "nobody's"),
    ];
    for (ip, client, expected, why) in rows {
        let found = model.service_by_vip("net1", ip.parse().unwrap(), client);
        assert_eq!(found.map(|s| &*s.name), expected, "{why}");
        assert!(model.service_by_vip("net2", ip.parse().unwrap(), client).is_none(), "other network");
    }
}

#[test]
fn replacing_a_model_raises_the_generation_and_leaves_readers_alone() {
    let store = ModelStore::new(model("workloads: []\n"));
    let mut seen = store.subscribe();
    assert_eq!(*seen.borrow_and_update(), 1);
    let before = store.load();
    store.replace(model(SERVICES));
    assert!(seen.has_changed().unwrap());
    assert_eq!((*seen.borrow_and_update(), store.generation()), (2, 2));
    assert_eq!(before.services().count(), 0);
    assert_eq!(store.load().services().count(), 6);
}
