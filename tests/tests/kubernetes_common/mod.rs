//! What suites of the node agent share: the application, and looking at it.
#![allow(dead_code, reason = "no suite uses all of it")]

use testkit::clusters::Clusters;
use testkit::clusters::deployed::SHOP;

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
