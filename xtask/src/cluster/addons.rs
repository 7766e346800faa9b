//! What runs in a cluster from its start: CoreDNS and istiod, as pods.

use super::layout::{Cluster, DNS_SERVICE, Shape};
use super::node::{self, Daemon, write};
use super::{parts, pki, plane, template};
use crate::Result;
use std::path::Path;
use std::time::Duration;

const READY: Duration = Duration::from_secs(240);
const MESH: &str = "istio-system";

/// Hands the cluster everything that needs its API server alone.
///
/// # Errors
/// What the API server or Helm said.
pub fn publish(cluster: Cluster) -> Result<()> {
    let folder = cluster.folder();
    let coredns = folder.join("coredns.yaml");
    write(&coredns, &template::fill(include_str!("files/coredns.yaml"), &[("DNS", DNS_SERVICE)]))?;
    plane::apply(cluster, &coredns)?;
    plane::run_kubectl(cluster, &["create", "namespace", MESH])?;
    let network = format!("topology.istio.io/network={}", cluster.network());
    plane::run_kubectl(cluster, &["label", "namespace", MESH, &network])?;
    let files = pki::authority_folder(cluster);
    let files: Vec<String> =
        pki::AUTHORITY_FILES.iter().map(|file| format!("--from-file={}", files.join(file).display())).collect();
    let secret = ["-n", MESH, "create", "secret", "generic", "cacerts"];
    plane::run_kubectl(cluster, &secret.into_iter().chain(files.iter().map(String::as_str)).collect::<Vec<_>>())?;
    plane::apply(cluster, &parts::data("gateway-crds.yaml"))?;
    let values = folder.join("istiod.yaml");
    let (node, network, name) = (cluster.first().name(), cluster.network(), cluster.name());
    let places = [("NODE", node.as_str()), ("NETWORK", &network), ("CLUSTER", &name)];
    write(&values, &template::fill(include_str!("files/istiod.yaml"), &places))?;
    install(cluster, "istio-base", "base", None)?;
    install(cluster, "istiod", "istio-discovery", Some(&values))
}

fn install(cluster: Cluster, release: &str, chart: &str, values: Option<&Path>) -> Result<()> {
    let chart = parts::data("charts").join(chart).display().to_string();
    let values = values.map(|path| path.display().to_string());
    let mut words = vec!["install", release, chart.as_str(), "--namespace", MESH];
    words.extend(values.iter().flat_map(|path| ["--values", path.as_str()]));
    plane::helm(cluster, &words).map(drop)
}

/// Waits until nodes are ready, names are answered and istiod serves.
///
/// # Errors
/// What is not ready in time, with what its pods say.
pub fn wait(cluster: Cluster, shape: Shape, daemons: &mut [&mut Daemon]) -> Result<()> {
    let name = cluster.name();
    for node in shape.nodes_of(cluster) {
        let path = format!("/api/v1/nodes/{}", node.name());
        node::until(&format!("{name}: node {}", node.name()), READY, daemons, || {
            plane::get(cluster, &path).is_some_and(|node| is_ready(&node))
        })?;
    }
    for (namespace, deployment) in [("kube-system", "coredns"), (MESH, "istiod")] {
        let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}");
        let ready = || plane::get(cluster, &path).is_some_and(|text| squeezed(&text).contains("\"readyReplicas\":1"));
        node::until(&format!("{name}: {deployment}"), READY, daemons, ready).map_err(|error| {
            let pods = plane::run_kubectl(cluster, &["-n", namespace, "get", "pods,events"]).unwrap_or_default();
            format!("{error}\n{pods}")
        })?;
    }
    Ok(())
}

fn is_ready(node: &str) -> bool {
    let text = squeezed(node);
    let Some((before, after)) = text.split_once("\"type\":\"Ready\"") else { return false };
    let ends = [before.rsplit('{').next(), after.split('}').next()];
    ends.into_iter().flatten().any(|part| part.contains("\"status\":\"True\""))
}

/// JSON without its white space, for looking at one field of it.
fn squeezed(json: &str) -> String {
    json.split_whitespace().collect()
}

#[cfg(test)]
mod tests {
    use super::is_ready;

    #[test]
    fn a_node_is_ready_by_its_own_condition_alone() {
        let node = |ready: &str| {
            let other = r#"{"type":"DiskPressure","status":"True"}"#;
            format!(r#"{{"conditions":[{other}, {{"type": "Ready", "status": "{ready}", "reason": "x"}}, {other}]}}"#)
        };
        assert!(is_ready(&node("True")));
        assert!(!is_ready(&node("False")));
        assert!(is_ready(r#"{"conditions":[{"status":"True","type":"Ready"}]}"#));
        assert!(!is_ready("{}"));
    }
}
