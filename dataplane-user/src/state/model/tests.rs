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

/// A model of the tests' node that starts empty, and workloads and services of a written one.
fn parts(text: &str) -> (ModelStore, Vec<Workload>, Vec<Service>) {
    let full = model(text);
    let workloads = full.workloads().map(|workload| (**workload).clone()).collect();
    let services = full.services().map(|service| (**service).clone()).collect();
    (ModelStore::new(model("workloads: []\n")), workloads, services)
}

const MEMBERS: &str = r#"
services:
- {name: s, namespace: a, hostname: s.a, vips: [net1/10.96.0.1], ports: {80: 8080}}
workloads:
- {uid: w1, namespace: a, workloadIps: [10.0.0.1], network: net1, services: {a/s.a: {80: 8080}}}
- {uid: w2, namespace: a, workloadIps: [10.0.0.2], network: net1, status: Unhealthy, services: {a/s.a: {80: 9090}}}
"#;

#[test]
fn a_workload_that_comes_before_its_service_is_kept_until_it_comes() {
    let (store, workloads, services) = parts(MEMBERS);
    let source = crate::state::SourceId::CONTROL_PLANE;
    store.apply(source, Update { workloads, ..Update::default() });
    assert_eq!(store.load().services().count(), 0);
    let service = services[0].clone();
    store.apply(source, Update { services, ..Update::default() });
    let uids = |model: &Model| model.endpoints(&service).iter().map(|e| e.workload.uid.to_string()).collect::<Vec<_>>();
    assert_eq!(uids(&store.load()), ["w1"], "unhealthy ones are members and not endpoints");
    assert_eq!(store.load().members(&service).len(), 2);
    let mut patient = service.clone();
    patient.load_balancing.allow_unhealthy = true;
    store.apply(source, Update { services: vec![patient], ..Update::default() });
    assert_eq!(uids(&store.load()), ["w1", "w2"], "unless the health policy is ALLOW_ALL");
    store.apply(source, Update { removed_services: vec![service.key.clone()], ..Update::default() });
    assert!(store.load().endpoints(&service).is_empty());
    assert!(store.load().service_by_vip("net1", "10.96.0.1".parse().unwrap(), "a").is_none());
    store.apply(source, Update { services: vec![service.clone()], ..Update::default() });
    assert_eq!(uids(&store.load()), ["w1"], "members outlive their service");
}

#[test]
fn of_several_services_of_one_address_the_clients_own_then_the_canonical_counts() {
    let text = "services:\n\
                - {name: s, namespace: a, hostname: s.a, vips: [], ports: {80: 80}}\n\
                - {name: s, namespace: b, hostname: s.b, vips: [], ports: {80: 80}, canonical: true}\n\
                - {name: s, namespace: c, hostname: s.c, vips: [], ports: {80: 80}, visibility: Namespace}\n";
    let (store, _, mut services) = parts(text);
    let ip: IpAddr = "10.96.0.9".parse().unwrap();
    for service in &mut services {
        service.vips = vec![crate::state::NetworkAddress { network: "net1".into(), ip }];
    }
    store.apply(crate::state::SourceId::CONTROL_PLANE, Update { services, ..Update::default() });
    let model = store.load();
    for (client, expected, why) in
        [("a", "a", "own namespace"), ("b", "b", "own"), ("c", "c", "own, hidden from others"), ("z", "b", "canonical")]
    {
        assert_eq!(&*model.service_by_vip("net1", ip, client).unwrap().namespace, expected, "{why}");
    }
}

#[test]
fn one_update_is_one_snapshot_and_removal_of_one_record_leaves_the_other() {
    let text = "workloads:\n\
                - {uid: NetworkGateway/net2/1.2.3.4/0, namespace: g, serviceAccount: gw, workloadIps: [1.2.3.4], network: net2}\n\
                - {uid: c1/vm, namespace: a, workloadIps: [10.0.0.1], network: net1, clusterId: c1}\n\
                - {uid: c2/vm, namespace: a, workloadIps: [10.0.0.1], network: net1, clusterId: c2}\n";
    let (store, workloads, _) = parts(text);
    let source = crate::state::SourceId::CONTROL_PLANE;
    store.apply(source, Update { workloads: workloads.clone(), ..Update::default() });
    let found = |store: &ModelStore| {
        store.load().workload_by_ip("net1", "10.0.0.1".parse().unwrap()).map(|workload| workload.uid.to_string())
    };
    assert_eq!(found(&store).as_deref(), Some("c1/vm"));
    store.apply(source, Update { removed_workloads: vec!["c1/vm".into()], ..Update::default() });
    assert_eq!(found(&store).as_deref(), Some("c2/vm"));
    // An address change renames the gateway: old and new are never both missing.
    let before = store.load();
    let mut renamed = workloads.into_iter().find(|w| w.is_network_gateway()).unwrap();
    renamed.uid = "NetworkGateway/net2/5.6.7.8/0".into();
    renamed.ips = vec!["5.6.7.8".parse().unwrap()];
    let removed_workloads = vec!["NetworkGateway/net2/1.2.3.4/0".into()];
    let generation = store.generation();
    store.apply(source, Update { workloads: vec![renamed], removed_workloads, ..Update::default() });
    assert_eq!(store.generation(), generation + 1);
    let address = |model: &Model| model.gateways("net2").iter().map(|g| g.address.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (address(&before), address(&store.load())),
        (vec!["1.2.3.4:15008".into()], vec!["5.6.7.8:15008".into()])
    );
}

#[test]
fn what_says_the_same_again_changes_nothing_and_wakes_nobody() {
    let (store, workloads, services) = parts(MEMBERS);
    let source = crate::state::SourceId::CONTROL_PLANE;
    store.apply(source, Update { workloads: workloads.clone(), services: services.clone(), ..Update::default() });
    let mut seen = store.subscribe();
    seen.borrow_and_update();
    let list = store.load().endpoint_list(&services[0]);
    let applied = store.apply(source, Update { workloads, services: services.clone(), ..Update::default() });
    assert_eq!(applied, crate::state::Applied::default());
    assert!(!seen.has_changed().unwrap());
    assert!(Arc::ptr_eq(&list, &store.load().endpoint_list(&services[0])));
}
