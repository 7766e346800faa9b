//! What suites of the node agent share: the application, and looking at it.
#![allow(dead_code, reason = "no suite uses all of it")]

use std::process::{Child, Stdio};
use std::time::Duration;

use testkit::clusters::Clusters;
use testkit::clusters::deployed::{Deployed, MESH, SHOP};
use testkit::process;

/// A server with every kind of probe and a client, each on every node.
pub const SHOP_YAML: &str = include_str!("shop.yaml");

/// Creates the application and waits for it.
pub fn shop(clusters: &Clusters) {
    clusters.apply(1, SHOP_YAML).unwrap();
    for name in ["daemonset/web", "daemonset/client"] {
        clusters.kubectl(1, &["-n", SHOP, "rollout", "status", name, "--timeout=120s"]).unwrap();
    }
}

/// The pod of an application on a node, as `namespace/name`.
pub fn pod(clusters: &Clusters, app: &str, node: &str) -> String {
    let selector = format!("--field-selector=spec.nodeName={node}");
    let label = format!("app={app}");
    let words = ["-n", SHOP, "get", "pods", "-l", &label, &selector, "-o", "jsonpath={.items[0].metadata.name}"];
    format!("{SHOP}/{}", clusters.kubectl(1, &words).unwrap())
}

/// The address of a pod.
pub fn address(clusters: &Clusters, pod: &str) -> String {
    let name = pod.split_once('/').unwrap().1;
    clusters.field(1, SHOP, &format!("pod/{name}"), "{.status.podIP}").unwrap()
}

/// What a client gets from a URL, or why nothing.
pub fn get(clusters: &Clusters, client: &str, url: &str) -> testkit::Result<String> {
    clusters.in_pod(1, client, &["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url])
}

/// Labels the application's namespace: its pods speak HBONE from node to node, and no pod has a netfilter rule.
pub fn speak_hbone(clusters: &Clusters) {
    let causeway = Deployed::install(clusters, 1).unwrap();
    shop(clusters);
    let (client, server) = (pod(clusters, "client", "c1n1"), pod(clusters, "web", "c1n2"));
    let url = format!("http://{}/", address(clusters, &server));
    assert_eq!(get(clusters, &client, &url).unwrap().trim(), "c1n2", "before the label");
    assert!(!causeway.logs().unwrap().contains("access\t"), "nothing goes through the engine without a label");

    causeway.label(true).unwrap();
    assert_eq!(get(clusters, &client, &url).unwrap().trim(), "c1n2");
    for _ in 0..20 {
        get(clusters, &client, "http://web.shop.svc.cluster.local/").unwrap();
    }
    let (from, to) = ("spiffe://cluster.local/ns/shop/sa/client", "spiffe://cluster.local/ns/shop/sa/web");
    let both =
        |line: &str| line.contains(&format!("src.identity={from}")) && line.contains(&format!("dst.identity={to}"));
    let complete = || {
        let agent = causeway.agents().unwrap().remove("c1n2").unwrap();
        let text = clusters.kubectl(1, &["-n", MESH, "logs", &agent]).unwrap();
        text.lines().any(|line| line.contains("direction=inbound") && both(line))
    };
    process::until(Duration::from_secs(20), complete)
        .unwrap_or_else(|error| panic!("no line with both identities: {error}\n{}", causeway.logs().unwrap()));
    for node in ["c1n1", "c1n2"] {
        let rules = "for ns in /run/netns/*; do nsenter --net=$ns sh -c 'iptables-save; ip6tables-save; nft list ruleset'; done 2> /dev/null";
        let found = clusters.exec(node, &["sh", "-c", &format!("{rules} | grep -E '^-A|chain' || true")]).unwrap();
        assert_eq!(found.trim(), "", "{node}");
    }
}

/// Connections of a client to a host's port 7000, one after the other up to so many in all, beside twenty that stay open. It
/// prints what was made, what failed, what was reset, and the longest time without an answer.
pub fn load(client: &str, host: &str, seconds: u32, total: u32) -> Child {
    let (seconds, total) = (seconds.to_string(), total.to_string());
    let client = client.split_once('/').unwrap().1;
    let inside = ["-n", SHOP, "exec", client, "--", "python3", "/config/load.py", host, &seconds, &total];
    let mut command = testkit::clusters::cluster(&[&["kubectl", "1", "--"], &inside[..]].concat()).unwrap();
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// A number that [`load`] has printed behind its name.
pub fn figure(text: &str, name: &str) -> f64 {
    let mut words = text.split_whitespace().skip_while(|word| *word != name);
    words.nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no figure {name} in {text}"))
}

/// Jobs whose only process connects as soon as it runs.
const JOBS: &str = r#"
apiVersion: batch/v1
kind: Job
metadata: {name: first, namespace: shop}
spec:
  completions: COMPLETIONS
  parallelism: PARALLELISM
  backoffLimit: 0
  template:
    metadata: {labels: {app: first}}
    spec:
      serviceAccountName: client
      restartPolicy: Never
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: causeway.test/debian:1
        imagePullPolicy: Never
        command: [curl, -sS, --fail, --max-time, "60", -o, /dev/null, -w, "%{time_namelookup} %{time_connect} %{time_starttransfer}\n", "http://web.shop.svc.cluster.local/"]
"#;

/// Runs so many of them, each of which must be served, and tells how long the first connection of each took.
pub fn jobs(clusters: &Clusters, completions: u32, parallelism: u32) -> String {
    let text = JOBS.replace("COMPLETIONS", &completions.to_string());
    clusters.apply(1, &text.replace("PARALLELISM", &parallelism.to_string())).unwrap();
    let count = |field: &str| clusters.field(1, SHOP, "job/first", &format!("{{.status.{field}}}")).unwrap_or_default();
    let all = completions.to_string();
    let ended = process::until(Duration::from_secs(600), || count("succeeded") == all || !count("failed").is_empty());
    let logs = || clusters.kubectl(1, &["-n", SHOP, "logs", "-l", "app=first", "--tail=-1", "--max-log-requests=100"]);
    let (succeeded, failed) = (count("succeeded"), count("failed"));
    assert!(ended.is_ok() && failed.is_empty(), "{succeeded} served, {failed} failed: {:?}", logs());
    let text = logs().unwrap();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers.len(), 3 * completions as usize, "{text}");
    let told = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        let share = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default() * 1e3;
        format!("p50 {:.0} p90 {:.0} slowest {:.0} ms", share(0.5), share(0.9), times.last().unwrap() * 1e3)
    };
    clusters.kubectl(1, &["-n", SHOP, "delete", "job", "first", "--wait=true", "--timeout=120s"]).unwrap();
    let at = |column: usize| numbers.iter().skip(column).step_by(3).copied();
    let connect = told(at(1).zip(at(0)).map(|(connected, named)| connected - named).collect());
    let [name, connected, byte] = [0, 1, 2].map(|column| told(at(column).collect()));
    format!("connect {connect}; from the start: name {name}; connected {connected}; first byte {byte}")
}

/// Pods outside the mesh: one of the ordinary kind, and one that shares the node's network as a probe's sender does.
pub const OUTSIDERS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: outside}
spec:
  nodeName: c1n2
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'causeway.test/debian:1', imagePullPolicy: Never, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: imitator, namespace: outside}
spec:
  nodeName: c1n2
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'causeway.test/debian:1', imagePullPolicy: Never, command: [sleep, infinity]}]
";

/// Takes a namespace away at the end, whatever the end is.
pub struct Namespace<'a>(pub &'a Clusters, pub &'static str);

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = self.0.delete_namespace(1, self.1);
    }
}
