//! What a node runs: containerd, the kubelet, kube-proxy.

use super::layout::{DNS_SERVICE, Node, PODS, Proxy};
use super::node::{self, Daemon, write};
use super::{plane, template};
use crate::Result;
use std::path::Path;
use std::time::Duration;

/// The daemons, in the order in which they start.
pub const DAEMONS: &[&str] = &["containerd", "kubelet", "proxy"];

/// Writes the configuration of all three; before the node's namespaces exist, because the first process puts some in place.
///
/// # Errors
/// The file system's.
pub fn configure(node: Node, proxy: Proxy) -> Result<()> {
    let values = [
        ("NODE", node.name()),
        ("ADDRESS", node.address()),
        ("NODE_PODS", node.pods()),
        ("PODS", PODS.to_owned()),
        ("DNS", DNS_SERVICE.to_owned()),
        ("PROXY", proxy.name().to_owned()),
        ("KUBECONFIG", format!("{}/kubeconfig", node.cluster().inside())),
    ];
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    std::fs::create_dir_all(node.folder())
        .map_err(|error| format!("cannot create {}: {error}", node.folder().display()))?;
    for (name, text) in [
        ("pods.conflist", include_str!("files/pods.conflist")),
        ("containerd.toml", include_str!("files/containerd.toml")),
        ("kubelet.yaml", include_str!("files/kubelet.yaml")),
        ("proxy.yaml", include_str!("files/proxy.yaml")),
    ] {
        write(&node.folder().join(name), &template::fill(text, &values))?;
    }
    Ok(())
}

/// Starts containerd and waits until it answers.
///
/// # Errors
/// If it does not.
pub fn containerd(node: Node) -> Result<()> {
    let words = ["containerd".to_owned(), "-c".to_owned(), format!("{}/containerd.toml", node.inside())];
    let mut daemon = node::start(node, "containerd", &words, &[])?;
    let what = format!("{}: containerd", node.name());
    node::until(&what, Duration::from_secs(60), &mut [&mut daemon], || {
        node::run(node, &["ctr", "version"], None).is_ok()
    })
}

/// Makes the images of an archive known to a node.
///
/// # Errors
/// What containerd said.
pub fn load(node: Node, archive: &Path) -> Result<()> {
    node::run(node, &["ctr", "-n", "k8s.io", "images", "import", "-"], Some(archive)).map(drop)
}

/// Starts kubelet and kube-proxy. The API server must answer.
///
/// # Errors
/// If they cannot be started.
pub fn kubelet_and_proxy(node: Node) -> Result<(Daemon, Daemon)> {
    let inside = node.inside();
    let kubelet = [
        plane::program(),
        "kubelet".to_owned(),
        format!("--config={inside}/kubelet.yaml"),
        format!("--kubeconfig={}/kubeconfig", node.cluster().inside()),
        format!("--hostname-override={}", node.name()),
        format!("--node-ip={}", node.address()),
        format!(
            "--node-labels=topology.kubernetes.io/region=region{0},topology.kubernetes.io/zone=region{0}-zone{1}",
            node.cluster, node.number
        ),
    ];
    let proxy = [plane::program(), "proxy".to_owned(), format!("--config={inside}/proxy.yaml")];
    Ok((node::start(node, "kubelet", &kubelet, &[])?, node::start(node, "proxy", &proxy, &[])?))
}
