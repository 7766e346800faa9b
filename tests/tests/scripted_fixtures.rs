//! What a real istiod was recorded to send becomes the model it means, and nothing of it is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::net::IpAddr;
use std::path::Path;

use causeway::istio::xds_proto::DeltaDiscoveryResponse;
use causeway::istio::xds_session::Session;
use causeway::state::{
    Action, Destination, GatewayAddress, LoadBalancingMode, Model, ModelStore, PolicyScope, Protocol, Scope, SourceId,
    StringMatch, file,
};
use testkit::control_plane::{Recorded, recorded, resources};

fn store(cluster: &str) -> ModelStore {
    let node = format!("{{node: n1, cluster: {cluster}, network: {cluster}, identity: {{caDirectory: x}}}}");
    ModelStore::new(file::parse(&format!("causeway: {node}\n"), Path::new("model.yaml")).unwrap())
}

/// The model after everything recorded under a name.
fn replay(name: &str, cluster: &str) -> (Model, Session) {
    let (store, mut session) = (store(cluster), Session::default());
    for Recorded { response, decoded } in recorded(name).unwrap() {
        assert_eq!(response.resources.len(), decoded["resources"].as_array().unwrap().len());
        let received = session.receive(response);
        assert_eq!(received.refused, Vec::new(), "{name}");
        assert!(received.answer.error_detail.is_none() && !received.answer.response_nonce.is_empty());
        store.apply(SourceId::CONTROL_PLANE, received.update);
    }
    ((*store.load()).clone(), session)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn counts_are_those_of_the_recording() {
    for (name, cluster, workloads, services) in
        [("cluster1", "cluster1", 18, 10), ("cluster2", "cluster2", 18, 9), ("on-demand", "cluster1", 8, 2)]
    {
        let (model, session) = replay(name, cluster);
        assert!(session.complete());
        assert_eq!((model.workload_count(), model.service_count()), (workloads, services), "{name}");
        assert_eq!(model.policies().count(), 7, "{name}");
    }
}

#[test]
fn a_service_of_both_clusters_has_both_addresses_and_a_split_horizon_endpoint() {
    let (model, _) = replay("cluster1", "cluster1");
    let web = model.service_by_vip("cluster1", ip("10.96.179.109"), "shop").unwrap();
    assert_eq!(&*web.key, "shop/web.shop.svc.cluster.local");
    assert!(model.service_by_vip("cluster2", ip("10.96.170.92"), "shop").is_some());
    assert!(model.service_by_vip("cluster1", ip("10.96.170.92"), "shop").is_none(), "a VIP of another network");
    assert_eq!(web.load_balancing.mode, LoadBalancingMode::Failover);
    assert_eq!(web.load_balancing.preferences, [Scope::Network, Scope::Region, Scope::Zone]);
    assert_eq!(web.identities[0].as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    let endpoints = model.endpoints(web);
    assert_eq!(endpoints.len(), 2);
    let (own, far) = (&endpoints[0].workload, &endpoints[1].workload);
    assert_eq!((&*own.uid, own.protocol), ("cluster1//Pod/shop/web-n1-0", Protocol::Hbone));
    assert_eq!(own.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert!(far.is_split_horizon() && far.ips.is_empty());
    assert_eq!((far.capacity, &*far.network), (2, "cluster2"));
    let gateway = far.network_gateway.as_ref().unwrap();
    assert_eq!(gateway.destination, Destination::Address { network: "cluster2".into(), ip: ip("172.18.2.100") });
    assert_eq!(gateway.port, 15008);
    assert_eq!(endpoints[1].ports.get(&80), Some(&80));
}

#[test]
fn the_gateway_of_the_other_network_is_known_with_who_answers_there() {
    for (name, network, address) in
        [("cluster1", "cluster2", "172.18.2.100:15008"), ("cluster2", "cluster1", "172.18.1.100:15008")]
    {
        let (model, _) = replay(name, name);
        let gateways = model.gateways(network);
        assert_eq!(gateways.len(), 1, "{name}");
        assert_eq!(gateways[0].address, GatewayAddress::Ip(address.parse().unwrap()));
        assert_eq!(gateways[0].identities[0].as_str(), "spiffe://cluster.local/ns/istio-system/sa/eastwest");
    }
}

#[test]
fn waypoints_allocated_addresses_and_headless_services_are_read() {
    let (model, _) = replay("cluster1", "cluster1");
    let api = model.service("shop", "api.shop.svc.cluster.local").unwrap();
    let waypoint = api.waypoint.as_ref().unwrap();
    assert_eq!(waypoint.destination.to_string(), "shop/waypoint.shop.svc.cluster.local");
    let outside = model.service_by_vip("cluster1", ip("2001:2::1"), "shop").unwrap();
    assert_eq!(&*outside.hostname, "api.example.com");
    assert!(model.service_by_vip("cluster1", ip("240.240.0.1"), "shop").is_some());
    let kafka = model.service("shop", "kafka.shop.svc.cluster.local").unwrap();
    assert!(kafka.vips.is_empty());
    assert_eq!(model.endpoints(kafka).len(), 1, "the far ones are one record");
}

#[test]
fn of_two_records_of_one_address_the_own_clusters_counts() {
    for cluster in ["cluster1", "cluster2"] {
        let (model, _) = replay(cluster, cluster);
        let address = if cluster == "cluster1" { "172.18.1.50" } else { "172.18.2.50" };
        let found = model.workload_by_ip(cluster, ip(address)).unwrap();
        assert_eq!(*found.uid, format!("{cluster}/networking.istio.io/WorkloadEntry/bank/vm1"));
    }
}

#[test]
fn policies_mean_what_they_say() {
    let (model, _) = replay("cluster1", "cluster1");
    let policy = |key: &str| model.policy(key).unwrap_or_else(|| panic!("no policy {key}"));
    let strict = policy("istio-system/istio_converted_static_strict");
    assert_eq!((strict.scope, strict.action), (PolicyScope::WorkloadSelector, Action::Deny));
    assert_eq!(strict.rules[0][0][0].not_principals, [StringMatch::Presence]);
    assert!(policy("bank/allow-nothing").rules.is_empty());
    assert_eq!(policy("istio-system/mesh-deny-nothing").rules, [Vec::<Vec<_>>::new()]);
    assert_eq!(policy("istio-system/mesh-deny-nothing").scope, PolicyScope::Global);
    let ranges = &policy("shop/deny-cidr").rules[0][0][0].source_ips;
    assert_eq!(ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.9.0.0/16", "fd00::/8"]);
    let api = model.workload("cluster1//Pod/shop/api-n2-0").unwrap();
    let unknown: Vec<&str> = model.unknown_policies(api).map(|key| &**key).collect();
    assert_eq!(unknown, ["shop/converted_peer_authentication_ports"], "listed and never published");
    let names: Vec<&str> = model.policies_for(api).map(|policy| &*policy.key).collect();
    assert_eq!(names, ["istio-system/mesh-deny-nothing", "shop/deny-cidr"]);
}

#[test]
fn on_demand_answers_carry_aliases_and_name_what_is_unknown() {
    let responses = recorded("on-demand").unwrap();
    assert_eq!(responses[0].response.removed_resources, ["cluster1/9.9.9.9"]);
    let received = Session::default().receive(responses[0].response.clone());
    assert_eq!(received.removed, ["cluster1/9.9.9.9"]);
    assert!(received.update.removed_workloads.is_empty(), "what was never held cannot go");
}

#[test]
fn a_model_written_as_resources_and_read_again_is_the_same() {
    for name in ["cluster1", "cluster2"] {
        let (model, _) = replay(name, name);
        let all = resources(&model);
        let (store, mut session) = (store(name), Session::default());
        for (at, type_url) in causeway::istio::xds_session::TYPES.into_iter().enumerate() {
            let of_type = |resource: &&_| {
                let resource: &causeway::istio::xds_proto::Resource = resource;
                resource.resource.as_ref().unwrap().type_url == type_url
            };
            let response = DeltaDiscoveryResponse {
                resources: all.iter().filter(of_type).cloned().collect(),
                type_url: type_url.to_owned(),
                nonce: at.to_string(),
                ..DeltaDiscoveryResponse::default()
            };
            let received = session.receive(response);
            assert_eq!(received.refused, Vec::new());
            store.apply(SourceId::CONTROL_PLANE, received.update);
        }
        let again = store.load();
        for workload in model.workloads() {
            assert_eq!(again.workload(&workload.uid), Some(workload));
        }
        for service in model.services() {
            assert_eq!(again.service_by_key(&service.key), Some(service));
        }
        assert!(model.policies().eq(again.policies()));
    }
}
