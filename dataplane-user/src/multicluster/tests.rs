//! Tables: what clusters show, and what follows.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use serde_json::{Value, json};

use super::check::{self, Scene};
use super::expose::Exposure;
use super::facts::{Cluster, Kind, Unread};
use super::finding::Severity;
use super::link::{self, Way};
use super::probe::{Answer, Probe};
use super::{names, reader, yaml};
use crate::identity::SpiffeId;

/// A cluster with istiod, an agent, a shared service and one node; not exposed.
pub(super) fn cluster(number: u8) -> Cluster {
    let (name, network) = (format!("cluster{number}"), format!("network{number}"));
    let space = |name: &str, labels: Value| json!({"metadata": {"name": name, "uid": format!("{name}-{number}"), "labels": labels}});
    let template = |env: Value| json!({"spec": {"containers": [{"image": "registry/causeway:1", "env": env}]}});
    let mut cluster = Cluster {
        context: format!("c{number}"),
        server: format!("https://192.0.2.{number}:6443"),
        istio_namespace: names::ISTIO_NAMESPACE.to_owned(),
        gateway_namespace: names::GATEWAY_NAMESPACE.to_owned(),
        ..Cluster::default()
    };
    let objects = [
        (
            Kind::Namespace,
            vec![space("kube-system", json!({})), space("istio-system", json!({names::NETWORK: network}))],
        ),
        (
            Kind::Deployment,
            vec![json!({"metadata": {"name": "istiod", "namespace": "istio-system", "labels": {"app": "istiod"}},
                "spec": {"template": template(json!([
                    {"name": "CLUSTER_ID", "value": name}, {"name": "PILOT_ENABLE_AMBIENT", "value": "true"},
                    {"name": "AMBIENT_ENABLE_MULTI_NETWORK", "value": "true"}, {"name": "ISTIO_MULTIROOT_MESH", "value": "true"},
                ]))}, "status": {"readyReplicas": 1}})],
        ),
        (
            Kind::DaemonSet,
            vec![json!({"metadata": {"name": "causeway", "namespace": "istio-system", "labels": {"app": "causeway"}},
                "spec": {"template": template(json!([{"name": "NETWORK", "value": network}]))},
                "status": {"desiredNumberScheduled": 1, "numberReady": 1}})],
        ),
        (
            Kind::ConfigMap,
            vec![json!({"metadata": {"name": "istio", "namespace": "istio-system"},
                "data": {"mesh": "trustDomain: cluster.local\nserviceScopeConfigs: [{scope: GLOBAL}]\n"}})],
        ),
        (
            Kind::Service,
            vec![json!({"metadata": {"name": "web", "namespace": "default", "labels": {names::GLOBAL: "true"}},
                "spec": {"ports": [{"port": 80, "targetPort": 8080, "nodePort": 31000}]}})],
        ),
        (
            Kind::Node,
            vec![json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.0.0/24"]}, "status": {"addresses": [
                {"type": "InternalIP", "address": format!("172.30.{number}.1")},
                {"type": "ExternalIP", "address": format!("198.51.100.{number}")}]}})],
        ),
    ];
    cluster.objects.extend(objects);
    cluster
}

/// Gives a cluster another name.
fn rename(cluster: &mut Cluster, name: &str) {
    let containers = "/spec/template/spec/containers/0/env/0/value";
    let istiod = &mut cluster.objects.get_mut(&Kind::Deployment).unwrap()[0];
    *istiod.pointer_mut(containers).unwrap() = json!(name);
}

/// As [`cluster`], with an entry point whose pod is ready.
pub(super) fn exposed(number: u8, node_port: bool) -> Cluster {
    let mut cluster = cluster(number);
    let exposure = Exposure::of(&cluster, None, node_port).unwrap();
    for mut object in exposure.objects() {
        let kind = match object["kind"].as_str().unwrap() {
            "Service" => Kind::Service,
            "Gateway" => Kind::Gateway,
            _ => continue,
        };
        if kind == Kind::Service && node_port {
            object["spec"]["ports"][1]["nodePort"] = json!(30_008);
        }
        if kind == Kind::Gateway {
            object["status"]["addresses"] = json!([{"type": "IPAddress", "value": format!("203.0.113.{number}")}]);
        }
        cluster.objects.entry(kind).or_default().push(object);
    }
    cluster.objects.insert(
        Kind::Pod,
        vec![json!({"metadata": {"name": "g", "namespace": names::GATEWAY_NAMESPACE, "labels": {"app": names::GATEWAY}},
            "spec": {"nodeName": "n1"}, "status": {"podIP": "10.244.0.9", "conditions": [{"type": "Ready", "status": "True"}]}})],
    );
    cluster
}

/// Lets the first cluster read the second, as a link does.
fn linked(from: &mut Cluster, to: &Cluster, way: &Way) {
    let plan = link::plan(from, to, way).unwrap();
    for mut object in plan.here {
        if object["kind"] == "Gateway" {
            object["status"]["addresses"] = object["spec"]["addresses"].clone();
            from.objects.entry(Kind::Gateway).or_default().push(object);
        }
    }
    let secret = reader::remote_secret(&to.label(), &to.server, "", "t", &from.istio_namespace);
    from.objects.entry(Kind::Secret).or_default().push(secret);
}

fn scene(way: &Way) -> Scene {
    let node_port = *way != Way::LoadBalancer;
    let (mut one, two) = (cluster(1), exposed(2, node_port));
    linked(&mut one, &two, way);
    Scene { clusters: vec![one, two], ..Scene::default() }
}

fn node_port() -> Way {
    Way::NodePort("InternalIP".to_owned())
}

/// All that is found, as `check: what`.
fn found(scene: &Scene, worst: Severity) -> Vec<String> {
    let results = check::run(scene, false);
    let findings = results.into_iter().flat_map(|(_, findings)| findings);
    findings
        .filter(|finding| finding.severity >= worst)
        .map(|finding| format!("{}: {}", finding.check, finding.what))
        .collect()
}

#[test]
fn linked_clusters_in_order_have_no_errors() {
    for way in [Way::LoadBalancer, node_port()] {
        assert_eq!(found(&scene(&way), Severity::Error), Vec::<String>::new(), "{way:?}");
    }
}

#[test]
fn a_node_port_link_names_every_node_with_a_ready_gateway_and_its_port() {
    let (one, two) = (cluster(1), exposed(2, true));
    for (kind, address) in [("InternalIP", "172.30.2.1"), ("ExternalIP", "198.51.100.2")] {
        let plan = link::plan(&one, &two, &Way::NodePort(kind.to_owned())).unwrap();
        assert_eq!(plan.dialled, (vec![address.to_owned()], 30_008));
        let gateway = plan.here.last().unwrap();
        assert_eq!(gateway["spec"]["listeners"][0]["port"], 30_008);
        assert_eq!(gateway["metadata"]["annotations"][names::ACCOUNT], names::GATEWAY);
        assert_eq!(gateway["metadata"]["labels"][names::CLUSTER], "cluster2");
    }
    let plan = link::plan(&one, &exposed(2, false), &Way::LoadBalancer).unwrap();
    assert!(plan.here.is_empty(), "istiod follows the other cluster's own object");
}

#[test]
fn whatever_a_link_made_is_what_unlinking_removes() {
    let scene = scene(&node_port());
    let [one, _] = scene.clusters.as_slice() else { panic!() };
    let name = |object: &Value| {
        format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
    };
    let gone: Vec<String> = link::unlinked(one, "cluster2").iter().map(name).collect();
    assert_eq!(gone, ["Secret istio-remote-secret-cluster2", "Gateway peer-cluster2"]);
    assert!(link::unlinked(one, "cluster3").is_empty(), "another peer's stay");
    let there: Vec<String> = reader::removed("cluster1", "istio-system").iter().map(name).collect();
    assert_eq!(there.len(), 3, "{there:?}: the role is of all readers");
}

/// A change to a scene, and what is found then.
type Row = (&'static str, fn(&mut Scene), &'static str);

#[test]
fn what_is_broken_is_what_is_found() {
    let rows: &[Row] = &[
        (
            "kinds",
            |s| drop(s.clusters[0].unread.insert(Kind::Gateway, Unread::NoSuchKind)),
            "Gateway of gateway.networking.k8s.io/v1 is not installed",
        ),
        (
            "kinds",
            |s| drop(s.clusters[1].unread.insert(Kind::WorkloadEntry, Unread::NoSuchKind)),
            "WorkloadEntry of Istio is not installed",
        ),
        ("istiod", |s| drop(s.clusters[0].objects.remove(&Kind::Deployment)), "no deployment of istiod"),
        (
            "istiod",
            |s| {
                s.clusters[1].objects.get_mut(&Kind::ConfigMap).unwrap()[0]["data"]["mesh"] =
                    json!("trustDomain: cluster.local")
            },
            "calls no service global",
        ),
        (
            "names",
            |s| s.clusters[1].objects.get_mut(&Kind::Namespace).unwrap()[0]["metadata"]["uid"] = json!("kube-system-1"),
            "lead to the same cluster",
        ),
        (
            "names",
            |s| {
                s.clusters[0].objects.get_mut(&Kind::Deployment).unwrap()[0]["spec"]["template"]["spec"]["containers"]
                    [0]["env"][0]["value"] = json!("cluster2")
            },
            "both clusters are called cluster2",
        ),
        (
            "network",
            |s| {
                s.clusters[0].objects.get_mut(&Kind::Namespace).unwrap()[1]["metadata"]["labels"][names::NETWORK] =
                    json!("network2")
            },
            "both clusters are in network \"network2\"",
        ),
        (
            "network",
            |s| s.clusters[0].objects.get_mut(&Kind::Namespace).unwrap()[1]["metadata"]["labels"] = json!({}),
            "is missing",
        ),
        (
            "ranges",
            |s| {
                s.clusters[0].objects.get_mut(&Kind::Namespace).unwrap()[1]["metadata"]["labels"][names::NETWORK] =
                    json!("network2")
            },
            "10.244.0.0/24 and 10.244.0.0/24 overlap",
        ),
        (
            "gateway",
            |s| s.clusters[1].objects.get_mut(&Kind::Pod).unwrap().clear(),
            "none of 0 pods behind the entry point is ready",
        ),
        (
            "peers",
            |s| {
                s.clusters[0].objects.get_mut(&Kind::Gateway).unwrap()[0]["spec"]["addresses"][0]["value"] =
                    json!("172.30.2.9")
            },
            "no gateway of c2 runs at 172.30.2.9",
        ),
        (
            "peers",
            |s| {
                s.clusters[0].objects.get_mut(&Kind::Gateway).unwrap()[0]["spec"]["listeners"][0]["port"] =
                    json!(30_009)
            },
            "names node port 30009; that of c2 is 30008",
        ),
        (
            "peers",
            |s| {
                s.clusters[0].objects.get_mut(&Kind::Gateway).unwrap()[0]["metadata"]["annotations"][names::ACCOUNT] =
                    json!("other")
            },
            "expects the account istio-eastwest/other",
        ),
        (
            "peers",
            |s| s.clusters[0].objects.get_mut(&Kind::Gateway).unwrap()[0]["status"] = json!({}),
            "its status holds no address",
        ),
        ("peers", |s| s.clusters[0].objects.get_mut(&Kind::Gateway).unwrap().clear(), "has no way into its network"),
        (
            "trust",
            |s| {
                s.clusters[0].objects.get_mut(&Kind::Gateway).unwrap()[0]["metadata"]["annotations"]
                    [names::TRUST_DOMAIN] = json!("x")
            },
            "believes that c2 is in trust domain \"x\"",
        ),
        ("access", |s| s.silent.push(("c3".to_owned(), "refused".to_owned())), "the cluster cannot be read: refused"),
        (
            "istiod",
            |s| {
                s.clusters[0].objects.insert(Kind::Deployment, Vec::new());
                s.clusters[0].unread.insert(Kind::Deployment, Unread::Forbidden("no right".to_owned()));
            },
            "objects of kind Deployment cannot be read: no right",
        ),
        (
            "network",
            |s| {
                s.clusters[0].objects.insert(Kind::Namespace, Vec::new());
                s.clusters[0].unread.insert(Kind::Namespace, Unread::Forbidden("no right".to_owned()));
            },
            "objects of kind Namespace cannot be read: no right",
        ),
        (
            "istiod",
            |s| s.clusters[0].objects.get_mut(&Kind::ConfigMap).unwrap()[0]["data"]["mesh"] = json!("trustDomain: ["),
            "the mesh configuration cannot be read",
        ),
        (
            "names",
            |s| {
                rename(&mut s.clusters[0], "cluster-1");
                rename(&mut s.clusters[1], "cluster_1");
            },
            "the names cluster-1 and cluster_1 are one",
        ),
        ("names", |s| rename(&mut s.clusters[1], "___"), "has no letter and no digit"),
        (
            "waypoints",
            |s| {
                for c in &mut s.clusters {
                    c.objects.get_mut(&Kind::Service).unwrap()[0]["metadata"]["labels"][names::WAYPOINT] = json!("wp");
                }
            },
            "names a waypoint that is not there",
        ),
    ];
    for (check, change, text) in rows {
        let mut scene = scene(&node_port());
        change(&mut scene);
        let found = found(&scene, Severity::Error);
        let prefix = format!("{check}: ");
        assert!(
            found.iter().any(|line| line.starts_with(&prefix) && line.contains(text)),
            "{check} {text:?} is not in {found:?}"
        );
        for finding in check::run(&scene, false).into_iter().flat_map(|(_, findings)| findings) {
            assert!(!finding.why.is_empty() && !finding.repair.is_empty() && !finding.place.is_empty(), "{finding}");
        }
    }
}

#[test]
fn a_link_that_has_lost_its_way_is_made_again_the_way_the_cluster_is_exposed() {
    for (way, flag) in [(Way::LoadBalancer, ""), (node_port(), " --node-port")] {
        let mut scene = scene(&way);
        // What is left where somebody has removed the entry points by hand.
        for cluster in &mut scene.clusters {
            cluster.objects.insert(Kind::Gateway, Vec::new());
        }
        let all = check::run(&scene, false);
        let found = all.iter().flat_map(|(_, findings)| findings).find(|finding| finding.what.contains("no way into"));
        let repair = found.map(|finding| finding.repair.as_str());
        assert_eq!(repair, Some(format!("causeway multicluster link --from c1 --to c2{flag}").as_str()), "{way:?}");
    }
}

#[test]
fn a_probe_is_judged_by_who_answered() {
    let id = |text: &str| Some(SpiffeId::parse(text).unwrap());
    for (answer, text) in [
        (Answer::Presented(id("spiffe://cluster.local/ns/istio-eastwest/sa/causeway-gateway")), None),
        (
            Answer::Presented(id("spiffe://other/ns/istio-eastwest/sa/causeway-gateway")),
            Some("what answers is spiffe://other/"),
        ),
        (Answer::Presented(None), Some("no SPIFFE identity")),
        (Answer::NoTls("eof".to_owned()), Some("TLS does not: eof")),
        (Answer::Unreachable("refused".to_owned()), Some("TCP does not connect: refused")),
    ] {
        let mut scene = scene(&node_port());
        let address = "172.30.2.1".to_owned();
        scene.probes.push(Probe { context: "c2".to_owned(), address, port: 30_008, answer, connected: Duration::ZERO });
        let found = found(&scene, Severity::Error);
        match text {
            None => assert_eq!(found, Vec::<String>::new()),
            Some(text) => assert!(found.iter().any(|line| line.contains(text)), "{text:?} is not in {found:?}"),
        }
    }
}

#[test]
fn a_link_is_refused_for_what_would_break_it_and_not_for_warnings() {
    let (one, two) = (cluster(1), exposed(2, false));
    let fine = Scene { clusters: vec![one.clone(), two.clone()], ..Scene::default() };
    assert_eq!(check::refusals(&fine, &Way::LoadBalancer), []);
    let refused = check::refusals(&fine, &node_port());
    assert!(refused.iter().any(|finding| finding.what.contains("stands beside the node port")), "{refused:?}");
    let unexposed = Scene { clusters: vec![two, one], ..Scene::default() };
    let refused = check::refusals(&unexposed, &Way::LoadBalancer);
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].repair, "causeway multicluster expose --context c1");
}

#[test]
fn documents_of_yaml_are_the_objects() {
    let objects = Exposure::of(&cluster(1), None, false).unwrap().objects();
    let text = yaml(&objects).unwrap();
    let read: Vec<Value> = text
        .split("---\n")
        .filter(|text| !text.is_empty())
        .map(|text| serde_yaml_ng::from_str(text).unwrap())
        .collect();
    assert_eq!(read, objects);
    let model = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap()["data"]["node.yaml"].clone();
    let model: Value = serde_json::from_str(model.as_str().unwrap()).unwrap();
    assert_eq!(model["causeway"]["exports"], json!(["global"]));
}
