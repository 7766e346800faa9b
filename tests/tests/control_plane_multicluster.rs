//! `causeway multicluster` against real API servers and istiods, and the charts of gateway and peers against the same.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod control_plane_common;

use control_plane_common::{GATEWAY, NAMESPACE, Stage};
use serde_json::Value;
use testkit::istiod::Operator;

#[test]
fn exposed_and_linked_clusters_are_published_by_load_balancer_and_by_node_port() {
    testkit::needs_control_plane!();
    let stage = Stage::start("links");
    let address = stage.address();
    stage.expose(&address);
    let status = stage.operator.run_ok("causeway multicluster status").unwrap();
    println!("{status}");
    assert!(status.contains(&format!("cluster2  network2  cluster.local  LoadBalancer  {address}")), "{status}");

    let generated =
        stage.operator.run_ok("causeway multicluster link --from cluster1 --to cluster2 --generate").unwrap();
    assert!(
        generated.contains("kind: ClusterRoleBinding") && generated.contains("--context cluster2 apply"),
        "{generated}"
    );
    stage.assert_unlinked();

    let link = "causeway multicluster link --from cluster1 --to cluster2";
    println!("{}", stage.operator.run_ok(link).unwrap());
    let gateway = format!("NetworkGateway/network2/{address}/");
    let split = "network2/SplitHorizonWorkload/";
    stage.planes[0].until_published(|all| all.contains(&gateway) && all.contains(split)).unwrap();
    let (found, code) = stage.finding("peers", "");
    assert_eq!((found, code), (None, 0));
    stage.operator.run_ok(link).unwrap();

    stage.operator.run_ok("causeway multicluster unlink --from cluster1 --to cluster2").unwrap();
    stage.planes[0].until_published(|all| !all.contains(&gateway) && !all.contains(split)).unwrap();
    stage.assert_unlinked();

    // The same by a port of those nodes on which a gateway runs.
    stage.gateway_pod(2);
    let refused = stage.operator.run(&format!("{link} --node-port --skip-probe")).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("stands beside the node port"), "{refused:?}");
    stage.operator.run_ok("causeway multicluster expose --context cluster2 --no-pods --node-port").unwrap();
    stage.operator.run_ok(&format!("{link} --node-port --skip-probe")).unwrap();
    let port = format!(
        "kubectl --context cluster2 -n {NAMESPACE} get service {GATEWAY} -o jsonpath='{{.spec.ports[1].nodePort}}'"
    );
    let port = stage.operator.run_ok(&port).unwrap();
    let other = stage.clusters.topology.node_ip(stage.clusters.server_node).to_string();
    let ways = [&address, &other].map(|ip| format!("NetworkGateway/network2/{ip}/{port}"));
    let none_at_15008 = format!("NetworkGateway/network2/{address}/0");
    stage.planes[0]
        .until_published(|all| {
            ways.iter().all(|way| all.contains(way)) && !all.contains(&none_at_15008) && all.contains(split)
        })
        .unwrap();

    // A gateway object beside the node port would have peers dial another port.
    let beside = "causeway multicluster expose --context cluster2 --no-pods";
    let alone = format!("{beside} --node-port");
    stage.breaks("peers", beside, "also has a gateway object of its own", Some(&alone));
    stage.operator.run_ok(&format!("{link} --node-port --skip-probe")).unwrap();

    // A node that lost its gateway is told, and forgotten by linking again.
    let gone = format!("kubectl --context cluster2 -n {NAMESPACE} delete pod {GATEWAY}-2 --force --grace-period=0");
    let again = format!("{link} --node-port --skip-probe");
    stage.breaks("peers", &gone, &format!("no gateway of cluster2 runs at {other}"), Some(&again));
    stage.planes[0].until_published(|all| all.contains(&ways[0]) && !all.contains(&ways[1])).unwrap();
    stage.operator.run_ok("causeway multicluster unlink --from cluster1 --peer cluster2").unwrap();
    stage.planes[0].until_published(|all| !all.contains("NetworkGateway/network2/")).unwrap();
}

#[test]
fn a_link_that_cannot_work_is_refused_before_anything_is_changed() {
    testkit::needs_control_plane!();
    let stage = Stage::start("refused");
    let refused = |line: &str, text: &str| {
        let done = stage.operator.run(line).unwrap();
        assert_eq!(done.status.code(), Some(1), "{line}: {done:?}");
        for part in [text, "where  ", "why    ", "repair ", "nothing was changed"] {
            assert!(done.stderr.contains(part), "{line}: {part:?} is not in {}", done.stderr);
        }
        println!("{}", done.stderr);
        stage.assert_unlinked();
    };
    let link = "causeway multicluster link --from cluster1 --to cluster2";
    refused(link, "no gateway of class istio-east-west");
    // Where nobody listens.
    let nowhere = stage.clusters.topology.node_ip(stage.clusters.server_node).to_string();
    stage.operator.run_ok("causeway multicluster expose --context cluster2 --no-pods").unwrap();
    refused(link, "the gateway has no address");
    stage.expose(&nowhere);
    let both = "kubectl --context cluster1 get gateways -A -o name";
    assert_eq!(stage.operator.run_ok(both).unwrap(), "");
    refused(link, "TCP does not connect");
    let address = stage.address();
    stage.planes[1].balance(NAMESPACE, GATEWAY, &address).unwrap();
    stage.until_addressed(&address);

    stage.operator.run_ok("kubectl config set-context again --cluster=cluster2 --user=admin").unwrap();
    refused("causeway multicluster link --contexts cluster2,again", "both contexts lead to the same cluster");
    let twice = stage.operator.run("causeway multicluster link --contexts cluster2,cluster2").unwrap();
    assert_eq!(twice.status.code(), Some(2), "{twice:?}");

    let label = "kubectl --context cluster1 label namespace istio-system --overwrite topology.istio.io/network";
    stage.operator.run_ok(&format!("{label}=network2")).unwrap();
    refused(link, "both clusters are in network");
    stage.operator.run_ok(&format!("{label}=network1")).unwrap();

    let agent = "kubectl --context cluster1 -n istio-system set env daemonset/causeway NETWORK";
    stage.operator.run_ok(&format!("{agent}=elsewhere")).unwrap();
    refused(link, "NETWORK of the agent is \"elsewhere\"");
    stage.operator.run_ok(&format!("{agent}=network1")).unwrap();

    stage.operator.run_ok("kubectl --context cluster1 delete crd gateways.gateway.networking.k8s.io").unwrap();
    refused(link, "the kind Gateway of gateway.networking.k8s.io/v1 is not installed");
}

#[test]
fn charts_make_what_the_commands_make_and_the_api_server_takes_it() {
    testkit::needs_control_plane!();
    if let Err(reason) = testkit::istiod::helm() {
        testkit::skip!("{reason}");
    }
    let stage = Stage::start("charts");
    let charts = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/charts");
    for chart in ["causeway-gateway", "causeway-peering"] {
        let set = if chart == "causeway-gateway" { "--set network=network2" } else { "" };
        stage.operator.run_ok(&format!("helm lint --kube-version 1.35.0 {charts}/{chart} {set}")).unwrap();
    }
    let listed = "default/web.default.svc.cluster.local";
    for (flag, kind, exports) in [
        ("".to_owned(), "LoadBalancer", "global"),
        ("--node-port".to_owned(), "NodePort", "global"),
        (format!("--exports {listed}"), "LoadBalancer", listed),
    ] {
        let line = format!("causeway multicluster expose --context cluster2 --image a/b:1 {flag} --generate -o json");
        let generated: Value = serde_json::from_str(&stage.operator.run_ok(&line).unwrap()).unwrap();
        let values = format!(
            "--set network=network2 --set multiCluster.clusterName=cluster2 --set image=a/b:1 --set service.type={kind} --set 'exports={{{exports}}}'"
        );
        let template =
            format!("helm template {GATEWAY} {charts}/causeway-gateway -n {NAMESPACE} --kube-version 1.35.0 {values}");
        let rendered = documents(&stage.operator, &template);
        let wanted: Vec<&Value> =
            generated[0]["apply"].as_array().unwrap().iter().filter(|object| object["kind"] != "Namespace").collect();
        assert_eq!(rendered.len(), wanted.len(), "{kind}, {exports}: objects");
        for object in wanted {
            let same = rendered
                .iter()
                .find(|other| other["kind"] == object["kind"])
                .unwrap_or_else(|| panic!("no {}", object["kind"]));
            assert_eq!(same["metadata"]["name"], object["metadata"]["name"]);
            let mut theirs = same.clone();
            // Helm names its releases in labels, and marks pods with what they were made from.
            theirs["spec"]["template"]["metadata"] = object["spec"]["template"]["metadata"].clone();
            if object["kind"] != "Deployment" {
                theirs["spec"] = same["spec"].clone();
            }
            assert_eq!(theirs["spec"], object["spec"], "{}", object["kind"]);
            assert_eq!(model(same), model(object), "{}", object["kind"]);
        }
        stage.operator.run_ok("kubectl --context cluster2 create namespace istio-eastwest --dry-run=client -o yaml | kubectl --context cluster2 apply -f -").unwrap();
        stage
            .operator
            .run_ok(&format!("{template} | kubectl --context cluster2 apply --server-side --dry-run=server -f -"))
            .unwrap();
    }
    let peers = "--set 'remote.items[0].cluster=cluster2,remote.items[0].network=network2,remote.items[0].trustDomain=cluster.local,\
                 remote.items[0].address={192.0.2.1,192.0.2.2},remote.items[0].port=30008,remote.items[0].preferredDataplaneServiceType=NodePort'";
    let install = format!(
        "helm --kube-context cluster1 upgrade --install peers {charts}/causeway-peering -n {NAMESPACE} --create-namespace"
    );
    stage.operator.run_ok(&format!("{install} {peers}")).unwrap();
    stage.planes[0]
        .until_published(|all| {
            ["192.0.2.1", "192.0.2.2"].iter().all(|ip| all.contains(&format!("NetworkGateway/network2/{ip}/30008")))
        })
        .unwrap();
    // What contradicts the cluster or itself is refused before anything is made.
    for (values, text) in [
        (
            "--set 'remote.items[0].cluster=x,remote.items[0].network=network1,remote.items[0].address=192.0.2.1'",
            "is this cluster's own",
        ),
        ("--set 'remote.items[0].cluster=x,remote.items[0].network=network2'", "missing property 'address'"),
    ] {
        let done = stage.operator.run(&format!("{install} {values}")).unwrap();
        assert!(!done.status.success() && done.stderr.contains(text), "{done:?}");
    }
    let line = format!(
        "helm --kube-context cluster2 install gateway {charts}/causeway-gateway -n {NAMESPACE} --set network=elsewhere"
    );
    let done = stage.operator.run(&line).unwrap();
    assert!(!done.status.success() && done.stderr.contains("labelled topology.istio.io/network=network2"), "{done:?}");
}

/// The documents a command prints.
fn documents(operator: &Operator, line: &str) -> Vec<Value> {
    let convert = format!("{line} | kubectl create --dry-run=client --validate=false -o json -f - ");
    let text = operator.run_ok(&convert).unwrap();
    serde_json::Deserializer::from_str(&text)
        .into_iter::<Value>()
        .map(Result::unwrap)
        .flat_map(|value| match value["items"].as_array() {
            Some(items) => items.clone(),
            None => vec![value],
        })
        .collect()
}

/// The gateway's model in a config map.
fn model(object: &Value) -> Value {
    object["data"]["node.yaml"].as_str().map(|text| serde_json::from_str(text).unwrap()).unwrap_or_default()
}
