//! `causeway multicluster` against real API servers and istiods, and the charts of gateway and peers against the same.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::time::Duration;
use testkit::fixture::TwoClusters;
use testkit::istiod::{ControlPlane, Operator};
use testkit::process;

const GATEWAY: &str = "causeway-gateway";
const NAMESPACE: &str = "istio-eastwest";

struct Stage {
    operator: Operator,
    // Ended before the topology's namespaces go.
    planes: [ControlPlane; 2],
    clusters: TwoClusters,
}

impl Stage {
    /// Two clusters as installed, not exposed and not linked; a gateway runs in the second.
    fn start(name: &str) -> Self {
        let mut clusters = TwoClusters::build(name).unwrap();
        let node = clusters.gateway_node;
        let listen = format!("{}:15008", clusters.topology.node_ip(node));
        let identity = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{GATEWAY}");
        clusters.topology.set_section(node, json!({"gateway": {"listen": [listen], "identity": identity}}));
        let mut planes = clusters.clusters.map(|cluster| ControlPlane::start(&clusters.topology, cluster).unwrap());
        for (plane, c) in planes.iter_mut().zip(1_u8..) {
            plane.start_controllers().unwrap();
            plane.describe(&clusters.topology).unwrap();
            plane.global_service("default/web", &format!("10.96.{}.1", 100 + c), &[(80, 8080)], "web").unwrap();
        }
        let operator = Operator::of(&planes).unwrap();
        clusters.topology.start().unwrap();
        Self { operator, planes, clusters }
    }

    fn address(&self) -> String {
        self.clusters.topology.node_ip(self.clusters.gateway_node).to_string()
    }

    /// A ready pod of the gateway on a node of the second cluster.
    fn gateway_pod(&self, number: u8) {
        let node = if number == 1 { self.clusters.gateway_node } else { self.clusters.server_node };
        let (name, ip) = (self.clusters.topology.node_name(node), self.clusters.topology.node_ip(node).to_string());
        self.planes[1].run_pod(&format!("{NAMESPACE}/{GATEWAY}-{number}"), GATEWAY, name, &ip).unwrap();
    }

    /// The second cluster exposed by a load balancer at `address`, and its gateway published.
    fn expose(&self, address: &str) {
        self.operator.run_ok("causeway multicluster expose --context cluster2 --no-pods").unwrap();
        self.gateway_pod(1);
        self.planes[1].balance(NAMESPACE, GATEWAY, address).unwrap();
        self.until_addressed(address);
    }

    fn until_addressed(&self, address: &str) {
        let get = format!("kubectl --context cluster2 -n {NAMESPACE} get gateway {GATEWAY} -o json");
        let mut last = String::new();
        let done = process::until(Duration::from_secs(60), || {
            last = self.operator.run_ok(&get).unwrap_or_default();
            let gateway: Value = serde_json::from_str(&last).unwrap_or_default();
            gateway["status"]["addresses"] == json!([{"type": "IPAddress", "value": address}])
        });
        done.unwrap_or_else(|_| panic!("{last}\n{}", self.planes[1].istiod_log(20)));
    }

    /// What a check found that says `text`, and the exit code of the command.
    fn finding(&self, check: &str, text: &str) -> (Option<Value>, i32) {
        let done = self.operator.run("causeway multicluster check --contexts cluster1,cluster2 -o json").unwrap();
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
        let checks = answer["checks"].as_array().unwrap();
        let of_check = checks.iter().find(|row| row["name"] == check).unwrap_or_else(|| panic!("no check {check}"));
        let mut findings = of_check["findings"].as_array().unwrap().iter();
        let found = findings.find(|finding| finding["what"].as_str().unwrap().contains(text)).cloned();
        (found, done.status.code().unwrap())
    }

    /// Breaks one thing, sees it found, and runs the command of the finding, or `instead` where that needs more than this
    /// machine has.
    fn breaks(&self, check: &str, line: &str, text: &str, instead: Option<&str>) {
        let (found, _) = self.finding(check, text);
        assert_eq!(found, None, "{check}: found before anything was broken");
        self.operator.run_ok(line).unwrap();
        let (found, code) = self.finding(check, text);
        let found = found.unwrap_or_else(|| panic!("{check}: {text:?} was not found after: {line}"));
        println!(
            "{check}: {}\n  where  {}\n  why    {}\n  repair {}",
            found["what"], found["where"], found["why"], found["repair"]
        );
        assert_eq!(code, i32::from(found["severity"] == "error"), "{found}");
        let repair = found["repair"].as_str().unwrap();
        self.operator.run_ok(instead.unwrap_or(repair)).unwrap();
        let gone = process::until(Duration::from_secs(60), || self.finding(check, text).0.is_none());
        gone.unwrap_or_else(|_| panic!("{check}: {text:?} is still found after: {}", instead.unwrap_or(repair)));
    }

    /// Neither cluster has anything of a link.
    fn assert_unlinked(&self) {
        let get = "kubectl --context cluster1 -n istio-system get secrets -l istio/multiCluster=true -o name; \
                   kubectl --context cluster1 get gateways -A -o name 2>/dev/null; \
                   kubectl --context cluster2 -n istio-system get serviceaccounts,secrets -o name | grep causeway-reader; true";
        assert_eq!(self.operator.run_ok(get).unwrap(), "");
    }
}

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
fn every_check_finds_what_was_broken_and_its_command_repairs_it() {
    testkit::needs_control_plane!();
    let mut stage = Stage::start("checks");
    let address = stage.address();
    stage.expose(&address);
    stage.operator.run_ok("causeway multicluster link --from cluster1 --to cluster2").unwrap();
    let (found, code) = stage.finding("probe", "");
    assert_eq!((found, code), (None, 0), "all is well at first");
    for cluster in ["cluster1", "cluster2"] {
        let nodes = format!("kubectl --context {cluster} get nodes -o name");
        let nodes = stage.operator.run_ok(&nodes).unwrap();
        let patch = r#"{"spec":{"podCIDR":"10.244.0.0/16","podCIDRs":["10.244.0.0/16"]}}"#;
        for node in nodes.lines() {
            stage.operator.run_ok(&format!("kubectl --context {cluster} patch {node} -p '{patch}'")).unwrap();
        }
    }
    let istiod = "kubectl --context cluster1 -n istio-system set env deployment/istiod";
    let agent = "kubectl --context cluster1 -n istio-system set env daemonset/causeway";
    let space = "kubectl --context cluster1 label namespace istio-system --overwrite topology.istio.io/network";
    let gateway = format!("kubectl --context cluster2 -n {NAMESPACE}");
    let web = "-n default label service web";
    let entry = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": "gone", "namespace": "default"}, "spec": {"network": "network1", "address": "10.244.99.99"}});
    for (check, line, text) in [
        ("istiod", format!("{istiod} AMBIENT_ENABLE_MULTI_NETWORK=false"), "AMBIENT_ENABLE_MULTI_NETWORK is not true"),
        ("istiod", format!("{istiod} PILOT_ENABLE_AMBIENT-"), "PILOT_ENABLE_AMBIENT is not true"),
        ("istiod", format!("{istiod} ISTIO_MULTIROOT_MESH-"), "ISTIO_MULTIROOT_MESH is not true"),
        ("istiod", format!("{istiod} ENABLE_PEERING_DISCOVERY=true"), "ENABLE_PEERING_DISCOVERY is true"),
        (
            "istiod",
            format!("{istiod} PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES=false"),
            "PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES is false",
        ),
        ("network", format!("{space}-"), "label topology.istio.io/network is missing"),
        ("network", format!("{agent} NETWORK=elsewhere"), "NETWORK of the agent is \"elsewhere\""),
        (
            "network",
            format!("{gateway} label service {GATEWAY} --overwrite topology.istio.io/network=elsewhere"),
            "the service is labelled with network \"elsewhere\"",
        ),
        ("trust", format!("{agent} TRUST_DOMAIN=other.example"), "TRUST_DOMAIN of the agent is \"other.example\""),
        ("dns", format!("{agent} ISTIO_META_DNS_CAPTURE=false"), "DNS of pods is not captured"),
        ("services", format!("kubectl --context cluster2 {web} istio.io/global-"), "global in cluster1 only"),
        (
            "services",
            "kubectl --context cluster2 -n default patch service web --type json \
             -p '[{\"op\":\"replace\",\"path\":\"/spec/ports/0/port\",\"value\":81}]'"
                .to_owned(),
            "ports are 80/TCP in cluster1, and 81/TCP in cluster2",
        ),
        ("workloads", format!("echo '{entry}' | kubectl --context cluster1 apply -f -"), "10.244.99.99"),
        ("waypoints", format!("kubectl --context cluster1 {web} istio.io/use-waypoint=wp"), "and none in cluster2"),
    ] {
        stage.breaks(check, &line, text, None);
    }
    for cluster in ["cluster1", "cluster2"] {
        let line = format!("kubectl --context {cluster} {web} istio.io/use-waypoint- istio.io/use-waypoint-namespace-");
        stage.operator.run_ok(&line).unwrap();
    }
    // Of another root than all others.
    let folder = stage.clusters.topology.scratch().join("foreign");
    let foreign = folder.display();
    stage
        .operator
        .run_ok(&format!("causeway ca --out {foreign} --trust-domain cluster.local --cluster cluster1"))
        .unwrap();
    let files = "--from-file=ca-cert.pem --from-file=ca-key.pem --from-file=cert-chain.pem --from-file=root-cert.pem";
    let replace = format!(
        "kubectl --context cluster1 -n istio-system create secret generic cacerts {files} --dry-run=client -o yaml \
         | kubectl --context cluster1 replace --force -f -"
    );
    let back = format!("cd {} && {replace}", stage.planes[0].authority().display());
    stage.breaks(
        "certificates",
        &format!("cd {foreign}/cluster1 && {replace}"),
        "leads to no root of cluster2",
        Some(&back),
    );
    let root = stage.clusters.topology.authority(stage.clusters.clusters[0]).parent().unwrap().to_owned();
    // Authorities of the right root whose time is over, or is soon.
    for (days, text) in [(-2, "expired"), (9, "expires in ")] {
        let dated = stage.clusters.topology.scratch().join(format!("dated{days}"));
        testkit::certificates::authority_until(&root, &dated, days).unwrap();
        stage.breaks("certificates", &format!("cd {} && {replace}", dated.display()), text, Some(&back));
    }
    // Commands that need kubelets or charts of others are replaced by what they would do.
    stage.breaks(
        "names",
        &format!("{istiod} CLUSTER_ID=cluster2"),
        "both clusters are called cluster2",
        Some(&format!("{istiod} CLUSTER_ID=cluster1")),
    );
    let status = |ready: u8| {
        format!(
            "kubectl --context cluster1 -n istio-system patch daemonset causeway --subresource=status --type merge -p '{{\"status\":{{\"numberReady\":{ready}}}}}'"
        )
    };
    stage.breaks("pods", &status(0), "0 of 1 node agents are ready", Some(&status(1)));
    stage.breaks(
        "gateway",
        &format!("{gateway} delete gateway {GATEWAY}"),
        "are linked to this one, and it has no entry point",
        None,
    );
    stage.until_addressed(&address);

    let node = stage.clusters.gateway_node;
    stage.clusters.topology.terminate_daemon(node).unwrap();
    let (found, code) = stage.finding("probe", "TCP does not connect");
    assert!(found.is_some() && code == 1, "{found:?}");
    stage.clusters.topology.launch(node).unwrap();
    process::until(Duration::from_secs(30), || stage.finding("probe", "").0.is_none()).unwrap();
    let (_, code) = stage.finding("probe", "");
    assert_eq!(code, 0, "all is well again");
    println!("{}", stage.operator.run_ok("causeway multicluster check --verbose").unwrap());
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
            generated["apply"].as_array().unwrap().iter().filter(|object| object["kind"] != "Namespace").collect();
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
