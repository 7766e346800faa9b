//! Whose node ports are steered, and as what.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use ::kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::kube::listed::Listed;

/// A service with one node port, changed by `change`.
fn service(name: &str, change: impl FnOnce(&mut Value)) -> Service {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {LABEL: "steer"}},
        "spec": {
            "type": "NodePort", "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}],
        },
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn of(services: &[Service], selection: Selection) -> (Vec<Candidate>, Vec<String>) {
    let facts: Vec<Facts> = services.iter().filter_map(Facts::of).collect();
    let outcome = sort(facts.iter(), selection, "cluster.local");
    (outcome.candidates, outcome.refused.into_iter().map(|(_, why)| why).collect())
}

fn ports(services: &[Service], selection: Selection) -> Vec<u16> {
    of(services, selection).0.iter().map(|candidate| candidate.port.port).collect()
}

#[test]
fn a_service_becomes_a_node_port_of_its_families_and_policy() {
    let (found, refused) = of(
        &[service("web", |object| {
            object["spec"]["type"] = json!("LoadBalancer");
            object["spec"]["ipFamilies"] = json!(["IPv6", "IPv4"]);
            object["spec"]["externalTrafficPolicy"] = json!("Local");
            object["spec"]["healthCheckNodePort"] = json!(32000);
            object["spec"]["ports"] = json!([
                {"port": 80, "nodePort": 30080},
                {"port": 443, "nodePort": 30443, "protocol": "TCP"},
                {"port": 53, "nodePort": 30053, "protocol": "UDP"},
                {"port": 81},
            ]);
        })],
        Selection::Labelled,
    );
    assert_eq!(refused, [""; 0]);
    let expected = |port: u16, node_port: u16| Candidate {
        port: NodePort {
            port: node_port,
            target: NodePortTarget::Service { key: "shop/web.shop.svc.cluster.local".into(), port },
            local: true,
            health_check: Some(32000),
            families: IpFamilies::Dual,
        },
        gateway: false,
        asked: true,
    };
    assert_eq!(found, [expected(80, 30080), expected(443, 30443)]);
    for (families, expected) in
        [(json!(["IPv4"]), IpFamilies::V4), (json!(["IPv6"]), IpFamilies::V6), (json!(null), IpFamilies::Dual)]
    {
        let web = service("web", |object| object["spec"]["ipFamilies"] = families.clone());
        let (found, _) = of(&[web], Selection::Labelled);
        let first = found.first().unwrap();
        assert_eq!((first.port.families, first.port.local, first.port.health_check), (expected, false, None));
    }
    // Left over from a policy that was Local before.
    let (found, _) =
        of(&[service("web", |object| object["spec"]["healthCheckNodePort"] = json!(32000))], Selection::Labelled);
    assert_eq!(found.first().unwrap().port.health_check, None);
}

#[test]
fn table_of_whose_node_ports_are_steered() {
    let label = |value: Value| move |object: &mut Value| object["metadata"]["labels"] = json!({ LABEL: value });
    let gateway = |object: &mut Value| {
        object["metadata"]["labels"] = json!({NETWORK: "net1"});
        object["spec"]["ports"] = json!([{"port": 15008, "nodePort": 31508}]);
    };
    let other_network = |object: &mut Value| object["metadata"]["labels"] = json!({NETWORK: "net1"});
    use Selection::{All, Gateway, Labelled, None};
    for (service, expected, what) in [
        (service("a", label(json!("steer"))), &[Gateway, Labelled, All][..], "its label says so"),
        (service("b", label(json!("leave"))), &[], "its label says no"),
        (service("c", |object| object["metadata"]["labels"] = json!(null)), &[All], "nothing said"),
        (service("d", gateway), &[Gateway, All], "the gateway"),
        (service("e", other_network), &[All], "of a network, but no tunnel ends there"),
        (service("f", |object| object["spec"]["type"] = json!("ClusterIP")), &[], "a port of an earlier type"),
        (service("g", |object| object["spec"]["ports"][0]["nodePort"] = json!(null)), &[], "no port of the node"),
        (service("h", |object| object["spec"]["ports"][0]["protocol"] = json!("UDP")), &[], "UDP alone"),
        (service("i", |object| object["spec"]["ports"][0]["nodePort"] = json!(70000)), &[], "no port at all"),
        (
            service("j", |object| {
                object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("causeway");
            }),
            &[Gateway, Labelled, All],
            "kube-proxy was told to leave it alone",
        ),
    ] {
        for selection in [None, Gateway, Labelled, All] {
            let steered = !ports(std::slice::from_ref(&service), selection).is_empty();
            assert_eq!(steered, expected.contains(&selection), "{what}: {selection:?}");
        }
    }
}

#[test]
fn what_cannot_be_had_is_told_with_the_remedy() {
    for (service, words) in [
        (service("a", |object| object["metadata"]["labels"][LABEL] = json!("stear")), "write \"steer\" or \"leave\""),
        (service("b", |object| object["spec"]["type"] = json!("ClusterIP")), "make its type NodePort"),
        (service("c", |object| object["spec"]["ports"][0]["protocol"] = json!("UDP")), "a TCP port of the node"),
        (service("d", |object| object["spec"]["sessionAffinity"] = json!("ClientIP")), "set sessionAffinity: None"),
    ] {
        let (found, refused) = of(&[service], Selection::Gateway);
        assert_eq!(found, []);
        assert!(refused.len() == 1 && refused.iter().all(|why| why.contains(words)), "{refused:?}");
    }
    let agreed = service("d", |object| {
        object["spec"]["sessionAffinity"] = json!("ClientIP");
        object["metadata"]["labels"][LABEL] = json!("leave");
    });
    assert_eq!(of(&[agreed], Selection::All), (Vec::new(), Vec::new()));
}

#[test]
fn ports_come_in_order_go_with_their_service_and_stand_for_one_alone() {
    let at = |name: &str, port: u16| service(name, move |object| object["spec"]["ports"][0]["nodePort"] = json!(port));
    assert_eq!(ports(&[at("a", 30090), at("b", 30080), at("c", 30090)], Selection::Labelled), [30080, 30090]);
    let mut known: Listed<Option<Facts>> = Listed::default();
    let take = |known: &mut Listed<Option<Facts>>, event: Event<Service>| {
        known.take(event, |service: &Service| Some((service.metadata.uid.clone()?, Facts::of(service))));
    };
    let open = |known: &Listed<Option<Facts>>| {
        let outcome = sort(known.all.values().flatten(), Selection::Labelled, "cluster.local");
        outcome.candidates.iter().map(|candidate| candidate.port.port).collect::<Vec<_>>()
    };
    take(&mut known, Event::Init);
    take(&mut known, Event::InitApply(at("a", 30080)));
    take(&mut known, Event::InitApply(at("b", 30090)));
    assert!(!known.complete);
    take(&mut known, Event::InitDone);
    assert_eq!(open(&known), [30080, 30090]);
    take(&mut known, Event::Delete(at("a", 30080)));
    assert_eq!(open(&known), [30090]);
    let plain = service("b", |object| {
        object["spec"]["type"] = json!("ClusterIP");
        object["metadata"]["labels"] = json!(null);
    });
    take(&mut known, Event::Apply(plain));
    assert_eq!(open(&known), [0u16; 0], "a service whose type has changed has none any more");
}
