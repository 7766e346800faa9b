//! Reading model files: what is accepted, and what each mistake is answered with.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod node_ports;

use std::path::Path;

use super::*;
use crate::identity::CertificateSource;
use crate::state::{Exports, GatewayAddress, PolicyScope, Protocol};

const GOOD: &str = r#"
workloads:
- {uid: cluster1//Pod/default/client, name: client, namespace: default, serviceAccount: client, workloadIps: ["10.244.1.2"], protocol: HBONE, node: c1n1, network: network1, trustDomain: cluster.local, clusterId: cluster1}
- uid: network2/SplitHorizonWorkload/istio-eastwest/eastwest/172.30.2.1/default/web.default.svc.cluster.local
  name: remote-web
  namespace: default
  workloadIps: []
  protocol: HBONE
  network: network2
  clusterId: cluster2
  capacity: 2
  networkGateway: {destination: "network2/172.30.2.1", hboneMtlsPort: 15008}
  services: {"default/web.default.svc.cluster.local": {"80": 0}}
- {uid: NetworkGateway/network2/172.30.2.1/15008, name: eastwest, namespace: istio-eastwest, serviceAccount: eastwest, workloadIps: ["172.30.2.1"], network: network2, protocol: TCP, trustDomain: cluster.local, clusterId: cluster2}
services:
- name: web
  namespace: default
  hostname: web.default.svc.cluster.local
  vips: ["network1/10.96.0.10"]
  ports: {80: 8080}
  subjectAltNames: ["spiffe://cluster.local/ns/default/sa/web"]
policies:
- name: p
  namespace: default
  scope: Namespace
  action: Allow
  dryRun: false
  rules: [[[{principals: [{Exact: cluster.local/ns/default/sa/client}, {Presence: []}], sourceIps: ["10.0.0.0/8"]}]]]
causeway:
  node: c1n1
  cluster: cluster1
  network: network1
  trustDomain: cluster.local
  identity: {caDirectory: certs, ttl: 1h}
  enrol:
  - {workload: cluster1//Pod/default/client, netns: client, cgroup: /sys/fs/cgroup/x}
  gateways:
  - {network: network2, addresses: ["172.30.2.1:15008", "gw.example.com:31000"], identities: ["spiffe://cluster.local/ns/istio-eastwest/sa/eastwest"]}
  gateway: {listen: ["172.30.1.1:15008"], identity: "spiffe://cluster.local/ns/istio-eastwest/sa/eastwest"}
  exports: ["default/web.default.svc.cluster.local"]
  trust: [{network: network2, trustDomains: [{name: other.example, roots: root.pem}]}]
  exclusions: {ports: [22], cidrs: ["169.254.169.254"], inboundPorts: [9100]}
"#;

fn read(text: &str) -> Result<Model, ModelError> {
    parse(text, Path::new("/etc/causeway/model.yaml"))
}

#[test]
fn the_whole_format_is_read() {
    let model = read(GOOD).unwrap_or_else(|error| panic!("{error}"));
    let client = model.workload_by_ip("network1", "10.244.1.2".parse().unwrap()).unwrap();
    assert_eq!(client.protocol, Protocol::Hbone);
    assert_eq!(client.identity.as_str(), "spiffe://cluster.local/ns/default/sa/client");
    let web = model.service_by_vip("network1", "10.96.0.10".parse().unwrap(), "default").unwrap();
    assert_eq!(web.ports.get(&80), Some(&8080));
    let endpoints = model.endpoints(web);
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].workload.capacity, 2);
    assert_eq!(endpoints[0].ports.get(&80), Some(&0));

    let node = &model.node;
    assert_eq!(node.identity.ttl.as_secs(), 3600);
    assert_eq!(node.identity.source, CertificateSource::Directory("/etc/causeway/certs".into()));
    assert_eq!(node.enrol[0].netns, Path::new("/run/netns/client"));
    assert_eq!(node.trust[0].domains[0].roots, Path::new("/etc/causeway/root.pem"));
    assert_eq!(node.trusted_domains("network2"), ["other.example"]);
    assert!(matches!(&node.exports, Exports::Named(keys) if keys.len() == 1));
    assert!(node.exclusions.cidrs[0].contains("169.254.169.254".parse().unwrap()));

    let gateways: Vec<_> = model.gateways("network2").iter().map(|g| g.address.to_string()).collect();
    assert_eq!(gateways, ["172.30.2.1:15008", "gw.example.com:31000"]);
    let policy = model.policy("default/p").unwrap();
    assert_eq!(policy.scope, PolicyScope::Namespace);
    assert_eq!(policy.rules[0][0][0].principals.len(), 2);
}

#[test]
fn json_is_read_as_well() {
    let value: serde_json::Value =
        serde_yaml_ng::from_str::<serde_json::Value>(&GOOD.replace("{80: 8080}", "{\"80\": 8080}")).unwrap();
    let model = read(&serde_json::to_string_pretty(&value).unwrap()).unwrap();
    assert_eq!(model.workloads().count(), 3);
}

#[test]
fn node_port_of_a_gateway_comes_from_its_uid() {
    let text = GOOD.replace("172.30.2.1/15008, name", "172.30.2.1/31999, name");
    let model = read(&text).unwrap();
    let port = GatewayAddress::Ip("172.30.2.1:31999".parse().unwrap());
    assert_eq!(model.gateways("network2")[0].address, port);
}

/// One mistake: what to replace in the good file, by what; then the field and words of the answer.
type Mistake = (&'static str, &'static str, &'static str, &'static str);

const MISTAKES: &[Mistake] = &[
    ("  node: c1n1\n", "  node: c1n1\n  log: {sample: 1.5}\n", "causeway.log.sample", "1.5 is no share"),
    (
        "  node: c1n1\n",
        "  node: c1n1\n  log: {connections: some}\n",
        "causeway.log.connections",
        "unknown variant `some`",
    ),
    (
        "  node: c1n1\n",
        "  node: c1n1\n  traces: {endpoint: \"https://x:4318\"}\n",
        "causeway.traces.endpoint",
        "does not begin with http://",
    ),
    (
        "  node: c1n1\n",
        "  node: c1n1\n  traces: {endpoint: \"http://:1\"}\n",
        "causeway.traces.endpoint",
        "no host and port",
    ),
    ("  node: c1n1\n", "  node: c1n1\n  colour: red\n", "causeway", "unknown field `colour`"),
    ("protocol: HBONE, node", "protocol: HBONF, node", "workloads[0].protocol", "unknown variant `HBONF`"),
    ("  namespace: default\n  hostname", "  hostname", "services[0]", "missing field `namespace`"),
    ("capacity: 2", "capacity: two", "workloads[1].capacity", "invalid type"),
    ("[\"10.244.1.2\"]", "[\"10.244.1\"]", "workloads[0].workloadIps[0]", "not a usable address"),
    ("[\"10.244.1.2\"]", "[\"0.0.0.0\"]", "workloads[0].workloadIps[0]", "not a usable address"),
    ("[\"network1/10.96.0.10\"]", "[\"10.96.0.10\"]", "services[0].vips[0]", "not network/address"),
    (
        "[\"network1/10.96.0.10\"]",
        "[\"network1/10.96.0.10\", \"network1/10.96.0.10\"]",
        "services[0].vips[1]",
        "overlaps with services[0].vips[0] of service default/web.default.svc.cluster.local",
    ),
    (
        "uid: NetworkGateway/network2/172.30.2.1/15008",
        "uid: cluster1//Pod/default/client",
        "workloads[2].uid",
        "already used by workloads[0].uid",
    ),
    (
        "\"network2/172.30.2.1\"",
        "\"172.30.2.1\"",
        "workloads[1].networkGateway.destination",
        "neither network/address nor namespace/hostname",
    ),
    ("{\"80\": 0}", "{\"0\": 0}", "workloads[1].services.default/web.default.svc.cluster.local", "invalid port 0"),
    ("{80: 8080}", "{80: 8080, \"80\": 1}", "services[0].ports", "port 80 occurs twice"),
    (
        "services: {\"default/web",
        "services: {\"default/wob",
        "workloads[1].services[\"default/wob.default.svc.cluster.local\"]",
        "no service",
    ),
    (
        "{workload: cluster1//Pod/default/client,",
        "{workload: nobody,",
        "causeway.enrol[0].workload",
        "no workload has the uid \"nobody\"",
    ),
    (
        "node: c1n1, network: network1",
        "node: c1n2, network: network1",
        "causeway.enrol[0].workload",
        "is on node \"c1n2\"",
    ),
    ("caDirectory: certs, ", "", "causeway.identity", "either caDirectory, or certificates"),
    ("ttl: 1h", "ttl: 1y", "causeway.identity.ttl", "not a time"),
    ("gw.example.com:31000", "gw.example.com", "causeway.gateways[0].addresses[1]", "not a gateway address"),
    (
        "listen: [\"172.30.1.1:15008\"]",
        "listen: [\"172.30.1.1\"]",
        "causeway.gateway.listen[0]",
        "not an address with a port",
    ),
    (
        "identity: \"spiffe://cluster.local/ns/istio",
        "identity: \"spiffe://else/ns/istio",
        "causeway.gateway.identity",
        "not of the own trust domain cluster.local",
    ),
    ("exports: [\"default/web.", "exports: [\"default/wob.", "causeway.exports[0]", "no service"),
    ("exports: [\"default/web.", "exports: [\"web.", "causeway.exports[0]", "not namespace/hostname"),
    ("cidrs: [\"169.254.169.254\"]", "cidrs: [\"169.254/16\"]", "causeway.exclusions.cidrs[0]", "not an address range"),
    (
        "{Presence: []}",
        "{}",
        "policies[0].rules[0][0][0].principals[1]",
        "exactly one of Exact, Prefix, Suffix and Presence",
    ),
    (
        "sourceIps: [\"10.0.0.0/8\"]",
        "sourceIps: [\"10.0.0.0/99\"]",
        "policies[0].rules[0][0][0].sourceIps[0]",
        "not an address range",
    ),
    (
        "spiffe://cluster.local/ns/default/sa/web",
        "spiffe://cluster.local/web",
        "services[0].subjectAltNames[0]",
        "not a SPIFFE identity",
    ),
    ("serviceAccount: client,", "serviceAccount: \"a/b\",", "workloads[0]", "make no identity"),
    (
        "  trustDomain: cluster.local\n  identity",
        "  trustDomain: other\n  identity",
        "causeway.gateway.identity",
        "own trust domain other",
    ),
    (
        "trustDomain: cluster.local\n  identity",
        "outboundAllowed: [{cidr: 10.0.0.0/8}]\n  identity",
        "causeway.outboundAllowed",
        "although all are allowed",
    ),
    (
        "trustDomain: cluster.local\n  identity",
        "outbound: registry-only\n  outboundAllowed: [{cidr: nowhere}]\n  identity",
        "causeway.outboundAllowed[0].cidr",
        "is not an address range",
    ),
    (
        "exports: [\"default/web.default.svc.cluster.local\"]",
        "exports: [\"*\"]\n  controlPlane: {address: a, onDemand: true}",
        "causeway.exports",
        "known on demand only",
    ),
    (
        "cgroup: /sys/fs/cgroup/x",
        "outbound: registry-only, outboundAllowed: [{cidr: 10.0.0.1, ports: [0]}]",
        "causeway.enrol[0].outboundAllowed[0].ports",
        "has port 0",
    ),
];

#[test]
fn each_mistake_is_answered_with_its_place_and_a_remedy() {
    for (old, new, field, words) in MISTAKES {
        assert!(GOOD.contains(old), "{old} is not in the file");
        let text = GOOD.replacen(old, new, 1);
        let error = read(&text).expect_err(new);
        let problem = error
            .problems
            .iter()
            .find(|problem| problem.field == *field)
            .unwrap_or_else(|| panic!("{new}: expected a problem at {field}, got {error}"));
        assert!(problem.message.contains(words), "{new}: {error}");
        assert!(problem.line > 0 && problem.column > 0, "{new}: no place: {error}");
        let line = text.lines().nth(problem.line - 1).unwrap();
        assert!(line.len() + 1 >= problem.column, "{new}: column beyond the line: {error}");
    }
}

#[test]
fn the_line_is_that_of_the_value() {
    let text = GOOD.replace("[\"network1/10.96.0.10\"]", "[\"network1/10.96.0.10\", nonsense]");
    let error = read(&text).unwrap_err();
    let wanted = text.lines().position(|line| line.contains("nonsense")).unwrap();
    assert_eq!(error.problems[0].line, wanted + 1);
    let shown = error.to_string();
    assert!(shown.starts_with(&format!("/etc/causeway/model.yaml:{}:", wanted + 1)), "{shown}");
    assert!(shown.contains("; write it as"), "{shown}");
}

#[test]
fn what_the_file_leaves_out_is_the_environments_and_what_it_says_is_its_own() {
    let defaults = Defaults {
        node: "n9".into(),
        cluster: "c9".into(),
        network: "net9".into(),
        trust_domain: "td9".into(),
        cluster_domain: "c9.local".into(),
        preferred_namespace: "shop".into(),
        dns: false,
        ttl: Some(std::time::Duration::from_secs(5400)),
        entry: None,
    };
    let with = |text: &str| parse_with(text, Path::new("m.yaml"), &defaults).unwrap_or_else(|error| panic!("{error}"));
    let node = with("causeway: {identity: {caDirectory: x}, controlPlane: {address: a}, enrol: [{workload: w, netns: a}, {workload: v, netns: b, dns: true}]}").node.clone();
    let told = [&*node.node, &*node.cluster, &*node.network, node.trust_domain(), &*node.cluster_domain];
    assert_eq!(told, ["n9", "c9", "net9", "td9", "c9.local"]);
    assert_eq!((&*node.preferred_namespace, node.enrol[0].dns, node.enrol[1].dns), ("shop", false, true));
    assert_eq!(node.identity.ttl.as_secs(), 5400);
    let own = with("causeway: {identity: {caDirectory: x, ttl: 1h}}").node.clone();
    assert_eq!(own.identity.ttl.as_secs(), 3600);
    let own = with(GOOD).node.clone();
    let told = [&*own.node, &*own.cluster, &*own.network, own.trust_domain(), &*own.cluster_domain];
    assert_eq!(told, ["c1n1", "cluster1", "network1", "cluster.local", "c9.local"]);
    assert!(read("causeway: {identity: {caDirectory: x}}").is_err(), "without either the node has no name");
}

#[test]
fn all_problems_are_reported_together() {
    let text = GOOD.replace("[\"10.244.1.2\"]", "[\"x\"]").replace("[\"network1/10.96.0.10\"]", "[\"y\"]");
    assert_eq!(read(&text).unwrap_err().problems.len(), 2);
}

#[test]
fn broken_yaml_and_foreign_texts_are_answered() {
    for text in ["", "[", "workloads: {", "a: b: c", "- 1", "\u{0}", "causeway: ~", "%", "&a *a"] {
        let error = read(text).expect_err(text);
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn schema_describes_every_section() {
    let schema = schema();
    let text = schema.to_string();
    for word in [
        "workloads",
        "causeway",
        "networkGateway",
        "trustedSources",
        "plaintextToMesh",
        "outboundAllowed",
        "registry-only",
        "additionalProperties",
    ] {
        assert!(text.contains(word), "{word}");
    }
    assert_eq!(schema["additionalProperties"], serde_json::Value::Bool(false));
}

#[test]
fn watch_sees_rewrites_and_replacements_once() {
    let path = std::env::temp_dir().join(format!("causeway-watch-{}", std::process::id()));
    std::fs::write(&path, "one").unwrap();
    let mut watch = Watch::new(&path, "one".into());
    assert_eq!(watch.poll(), None, "unchanged");
    std::fs::write(&path, "two").unwrap();
    assert_eq!(watch.poll(), Some(Ok("two".into())), "same size, perhaps the same clock tick");
    assert_eq!(watch.poll(), None);
    let other = path.with_extension("new");
    std::fs::write(&other, "six").unwrap();
    std::fs::rename(&other, &path).unwrap();
    assert_eq!(watch.poll(), Some(Ok("six".into())), "renamed over");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(watch.poll(), Some(Err(_))), "gone");
    assert_eq!(watch.poll(), None, "gone is reported once");
    std::fs::write(&path, "six").unwrap();
    assert_eq!(watch.poll(), Some(Ok("six".into())), "back as it was: the error is over");
    assert_eq!(watch.poll(), None);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(watch.poll(), Some(Err(_))), "gone again");
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success() && watch.poll().is_none(), "a pipe nobody writes to is not waited for, and fails as before");
    let error = watch::read(&path).unwrap_err().to_string();
    assert!(error.contains("no regular file"), "{error}");
    std::fs::remove_file(&path).unwrap();
}

proptest::proptest! {
    #[test]
    fn any_text_never_panics(text in ".{0,200}") {
        let _ = read(&text);
    }

    #[test]
    fn a_damaged_file_never_panics(at in 0usize..3000, length in 0usize..40, filler in ".{0,6}") {
        let mut bytes = GOOD.as_bytes().to_vec();
        let from = at.min(bytes.len());
        let to = (from + length).min(bytes.len());
        bytes.splice(from..to, filler.bytes());
        let _ = read(&String::from_utf8_lossy(&bytes));
    }
}
