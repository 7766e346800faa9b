//! The Kubernetes API as a source of enrolments, beside the model file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tracing::info;

use super::node::{Failure, Node};
use super::steering::Steering;
use super::succession::Place;
use crate::istio::xds_settings::Environment;
use crate::kube::node_ports::{Candidate, Selection};
use crate::kube::{Hold, Settings, removal, source};
use crate::redirect::{Holds, Redirector};
use crate::state::file::{Defaults, EntryDefaults};
use crate::state::{Enrolment, ExistingConnections, NodeConfig};

/// The model of a node that is told everything else by its environment.
pub const MODEL: &str = "causeway:\n  controlPlane: {}\n";

/// How pods of the Kubernetes API are enrolled.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Enrol the pods of this node that the Kubernetes API says belong to the mesh; the node is NODE_NAME.
    #[arg(long)]
    pub kubernetes: bool,
    /// Namespaces whose pods are never enrolled.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "istio-system,kube-system")]
    pub exclude_namespaces: Vec<String>,
    /// Our own DaemonSet: when it is gone at the end of this daemon, everything is removed from the node.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = object)]
    pub daemon_set: Option<(String, String)>,
    /// Where the node's own proc file system is mounted, for writing.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub proc: PathBuf,
    /// Whose node ports are steered past the node's own service proxy, from Linux 6.6 on.
    #[arg(long, value_enum, default_value_t, requires = "kubernetes")]
    pub node_ports: Selection,
    /// Devices that connections to node ports arrive at; without them, those of the default routes and of HOST_IPS.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "kubernetes")]
    pub uplinks: Vec<String>,
    /// Ranges of this cluster's pods. With them, policies and applications on other nodes see the addresses of clients at node
    /// ports, except addresses in these ranges.
    #[arg(long, value_name = "RANGES", value_delimiter = ',', requires = "kubernetes")]
    pub pod_ranges: Vec<String>,
}

impl Args {
    /// What the model file need not say, with the entry of node ports.
    pub(super) fn entry(&self, mut defaults: Defaults, environment: &Environment) -> Result<Defaults, Failure> {
        if self.node_ports == Selection::None {
            return Ok(defaults);
        }
        let named = |name: &str| environment.get(name).map(str::to_owned);
        let (Some(namespace), Some(account)) = (named("POD_NAMESPACE"), named("SERVICE_ACCOUNT")) else {
            return Err("clients at node ports enter the mesh in the agent's name: set POD_NAMESPACE and SERVICE_ACCOUNT, or --node-ports=none".into());
        };
        defaults.entry = Some(EntryDefaults {
            account: (namespace, account),
            netns: self.proc.join("1/ns/net").to_string_lossy().into_owned(),
            uplinks: self.uplinks.clone(),
            internal: environment
                .or("HOST_IPS", "")
                .split(',')
                .map(str::to_owned)
                .filter(|ip| !ip.is_empty())
                .collect(),
            pod_ranges: self.pod_ranges.clone(),
        });
        Ok(defaults)
    }
}

fn object(text: &str) -> Result<(String, String), String> {
    let (namespace, name) = text.split_once('/').ok_or("write it as namespace/name")?;
    Ok((namespace.to_owned(), name.to_owned()))
}

/// Holding pods by the kernel programs.
struct Held(Holds);

impl Hold for Held {
    fn held(&self) -> BTreeSet<u64> {
        self.0.get()
    }

    fn hold(&mut self, cgroups: &BTreeSet<u64>) -> io::Result<()> {
        self.0.set(cgroups)
    }

    fn hold_unknown(&mut self, cgroups: &BTreeMap<u64, Instant>) -> io::Result<()> {
        self.0.set_unknown(cgroups)
    }
}

/// Pods that the API wants enrolled.
pub(super) struct Pods {
    wanted: watch::Receiver<Option<Arc<[Enrolment]>>>,
    outcomes: mpsc::UnboundedSender<source::Outcome>,
    current: Vec<Enrolment>,
    complete: bool,
    node_ports: watch::Receiver<Option<Arc<[Candidate]>>>,
    daemon_set: Option<(String, String)>,
}

impl Pods {
    /// Starts to follow the API. Until it has told all it knows, what an earlier daemon had enrolled stays wanted.
    pub(super) fn start(
        args: &Args,
        node: &NodeConfig,
        dns: bool,
        pods_cgroup: PathBuf,
        redirector: &Redirector,
    ) -> Result<Self, Failure> {
        if node.cluster.is_empty() {
            return Err(
                "--kubernetes needs the name of the cluster: set CLUSTER_ID, or cluster in the model file".into()
            );
        }
        let settings = Settings {
            node: node.node.to_string(),
            cluster: node.cluster.to_string(),
            proc: args.proc.clone(),
            excluded: args.exclude_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect(),
            dns,
            pods_cgroup,
            node_ports: args.node_ports,
            domain: node.cluster_domain.to_string(),
        };
        let source = source::start(settings, Box::new(Held(redirector.holds()?)))?;
        let current = redirector.adopted().into_iter().map(|pod| Enrolment {
            workload: pod.uid.into(),
            netns: pod.netns,
            inode: Some(pod.inode),
            ips: Vec::new(),
            service_account: None,
            cgroup: None,
            existing: ExistingConnections::Keep,
            dns,
        });
        info!("following the Kubernetes API for pods of node {}", node.node);
        Ok(Self {
            wanted: source.wanted,
            outcomes: source.outcomes,
            current: current.collect(),
            complete: false,
            node_ports: source.node_ports,
            daemon_set: args.daemon_set.clone(),
        })
    }

    /// Waits for a change and takes it over.
    pub(super) async fn changed(&mut self) {
        if self.wanted.changed().await.is_err() {
            // The thread behind it never ends before us; should it, what is enrolled stays.
            std::future::pending::<()>().await;
        }
        if let Some(list) = self.wanted.borrow_and_update().as_ref() {
            self.current = list.to_vec();
            self.complete = true;
        }
    }

    /// What is wanted now.
    pub(super) fn current(&self) -> &[Enrolment] {
        &self.current
    }

    /// What brings node ports to what the API says.
    pub(super) fn steering(&self) -> Steering {
        Steering::new(self.node_ports.clone())
    }

    /// Whether the API has told all it knows.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Where to tell what became of pods.
    pub(super) fn outcomes(&self) -> mpsc::UnboundedSender<source::Outcome> {
        self.outcomes.clone()
    }

    /// Whether this daemon is the last one on the node.
    pub(super) async fn is_removal(&self) -> bool {
        match &self.daemon_set {
            Some((namespace, name)) => removal::is_removal(namespace, name).await,
            None => false,
        }
    }
}

impl Node {
    /// Takes over what the Kubernetes API wants beside what the file says.
    pub(super) fn take_pods(&mut self) {
        if let Some(pods) = &self.pods {
            self.report().incomplete = !pods.is_complete() || self.place == Place::Coming;
            self.shared.model.enrol(self.wanted());
        }
    }

    /// Everything that shall be enrolled.
    pub(super) fn wanted(&self) -> Vec<Enrolment> {
        let pods = self.pods.iter().flat_map(Pods::current);
        self.filed.iter().chain(pods).cloned().collect()
    }
}

/// The next change of what the Kubernetes API wants; never, where it is not followed.
pub(super) async fn changed(pods: Option<&mut Pods>) {
    match pods {
        Some(pods) => pods.changed().await,
        None => std::future::pending().await,
    }
}
