//! The Kubernetes API as a source of enrolments, beside the model file.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::info;

use super::node::{Failure, Node};
use super::succession::Place;
use crate::kube::{Hold, Settings, removal, source};
use crate::redirect::{Holds, Redirector};
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
}

/// Pods that the API wants enrolled.
pub(super) struct Pods {
    wanted: watch::Receiver<Option<Arc<[Enrolment]>>>,
    outcomes: mpsc::UnboundedSender<source::Outcome>,
    current: Vec<Enrolment>,
    complete: bool,
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
