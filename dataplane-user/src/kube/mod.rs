//! The node's pods as the Kubernetes API and the kernel show them: which belong to the mesh, where their sandboxes are, and
//! what the API is told of them.
//!
//! [`exports`] follows which services clusters share. [`eligibility`] decides by labels, [`cgroups`] and [`sandbox`] find cgroups
//! and namespaces by the pod's uid, `arrivals` sees pods come of which nobody has told, [`source`] follows the API and says what
//! shall be enrolled, [`marks`] writes annotations and events; [`node_ports`] decides which ports of services are steered. Nothing
//! here touches the kernel's state.

mod arrivals;
pub mod cgroups;
mod complaints;
pub mod eligibility;
pub mod exports;
mod listed;
pub mod marks;
pub mod node_ports;
mod pods;
pub mod removal;
pub mod sandbox;
mod services;
pub mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use ::kube::{Client, Config};

/// Where this node is, and what is left alone on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Name of the node.
    pub node: String,
    /// Name of the cluster, the first part of workload uids.
    pub cluster: String,
    /// Where the node's own proc file system is mounted.
    pub proc: PathBuf,
    /// The folder below which kubelet makes the cgroups of pods.
    pub pods_cgroup: PathBuf,
    /// Namespaces whose pods are never enrolled.
    pub excluded: BTreeSet<String>,
    /// Whether DNS of pods is captured that say nothing about it.
    pub dns: bool,
    /// Whose node ports are steered.
    pub node_ports: node_ports::Selection,
    /// Domain of the cluster's service names.
    pub domain: String,
}

/// Lets connections of pods wait until they are enrolled, or known not to belong to the mesh.
pub trait Hold: Send {
    /// The cgroups whose pods wait, also those an earlier daemon has named.
    fn held(&self) -> BTreeSet<u64>;
    /// Exactly the pods in these cgroups wait from now on.
    ///
    /// # Errors
    /// The kernel's.
    fn hold(&mut self, cgroups: &BTreeSet<u64>) -> io::Result<()>;
    /// Exactly the pods in these other cgroups, of which nothing is known, wait until the time that is given with each.
    ///
    /// # Errors
    /// The kernel's.
    fn hold_unknown(&mut self, cgroups: &BTreeMap<u64, Instant>) -> io::Result<()>;
}

/// A client of the API server: that of a kubeconfig, else that of the pod's service account.
///
/// # Errors
/// Neither is there, or it cannot be used.
pub async fn client() -> Result<Client, String> {
    let config = Config::infer().await.map_err(|error| {
        format!("no way to the Kubernetes API: {error}; run in a pod with a service account, or set KUBECONFIG")
    })?;
    Client::try_from(config).map_err(|error| format!("the Kubernetes API cannot be used: {error}"))
}
