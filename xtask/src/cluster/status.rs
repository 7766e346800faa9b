//! `cargo xtask cluster status`: what runs, and how to get there.

use super::layout::{Cluster, Node, Shape, state};
use super::{cgroups, plane, runtime};
use crate::Result;

/// Prints nodes with their daemons, then the pods of every cluster.
///
/// # Errors
/// If a cluster's API server does not answer.
pub fn print(shape: Shape) -> Result<()> {
    println!("{:8} {:14} {:10} DAEMONS", "NODE", "ADDRESS", "STATE");
    for node in shape.all_nodes() {
        let wanted: Vec<&str> = daemons(node).collect();
        let (alive, gone): (Vec<&str>, Vec<&str>) = wanted.into_iter().partition(|name| cgroups::is_alive(node, name));
        let word = if gone.is_empty() { "running" } else { "broken" };
        let ended = if gone.is_empty() { String::new() } else { format!("   ended: {}", gone.join(" ")) };
        println!("{:8} {:14} {word:10} {}{ended}", node.name(), node.address(), alive.join(" "));
    }
    for cluster in shape.clusters() {
        println!("\n{}", cluster.name());
        let columns = "custom-columns=NAMESPACE:.metadata.namespace,POD:.metadata.name,NODE:.spec.nodeName,IP:.status.podIP,PHASE:.status.phase";
        print!("{}", plane::run_kubectl(cluster, &["get", "pods", "--all-namespaces", "--output", columns])?);
    }
    println!("\n{}", how());
    Ok(())
}

/// The daemons of a node.
pub fn daemons(node: Node) -> impl Iterator<Item = &'static str> {
    let plane: &[&str] = if node == Cluster(node.cluster).first() { plane::DAEMONS } else { &[] };
    ["init"].into_iter().chain(plane.iter().copied()).chain(runtime::DAEMONS.iter().copied())
}

/// How to look around.
pub fn how() -> String {
    format!(
        "  cargo xtask cluster kubectl 1 -- get pods -A\n  cargo xtask cluster exec c1n1 -- ip address       (a node; wan is outside of all)\n  cargo xtask cluster shell                         (kubectl, helm and causeway, a context for each cluster)\n  cargo xtask cluster down\n  kubeconfigs and logs: {}",
        state().display()
    )
}
