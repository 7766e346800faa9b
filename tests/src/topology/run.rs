//! Starting, stopping and asking the daemons of a topology.

use super::{NodeId, Topology};
use crate::daemon::{self, Daemon};
use crate::{Error, Place, Result, context, netfilter, netns};
use std::time::Duration;

/// How long daemons may take until they are ready.
const READY: Duration = Duration::from_secs(30);

impl Topology {
    /// Makes certificate authorities, writes the model files, starts all daemons and waits until they are ready.
    ///
    /// # Errors
    /// The first step that failed, with the end of the daemon's log.
    pub fn start(&mut self) -> Result<()> {
        self.prepare()?;
        for node in self.nodes() {
            self.launch(node)?;
        }
        self.nodes().try_for_each(|node| self.wait_ready(node))
    }

    /// As [`Topology::start`] without starting daemons.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn prepare(&self) -> Result<()> {
        self.authorities()?;
        self.publish()
    }

    /// One root per trust domain, one intermediate per cluster.
    pub(super) fn make_authorities(&self) -> Result<()> {
        let mut domains: Vec<&str> = self.clusters.iter().map(|cluster| cluster.trust_domain.as_str()).collect();
        domains.dedup();
        let place = self.wan_place();
        for domain in domains {
            let folder = self.ca_folder(domain);
            std::fs::create_dir_all(&folder).map_err(context(folder.display()))?;
            let out = folder.to_string_lossy();
            let mut line = vec!["causeway", "ca", "--out", &out, "--trust-domain", domain];
            for cluster in self.clusters.iter().filter(|cluster| cluster.trust_domain == domain) {
                line.extend(["--cluster", &cluster.name]);
            }
            place.run_ok(&line)?;
        }
        Ok(())
    }

    /// Starts the daemon of one node without waiting for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(&mut self, node: NodeId) -> Result<()> {
        let model = self.model_path(node);
        let workers = self.workers;
        let run_dir = self.scratch.join("run");
        let prefix = self.prefix.clone();
        let data = self.nodes.get_mut(node.0).ok_or("the node belongs to another topology")?;
        let settings = daemon::Settings {
            instance: format!("{prefix}{}", data.name),
            model,
            cgroup_root: data.cgroup.clone(),
            pods_cgroup: data.cgroup.join("kubepods"),
            run_dir,
            workers,
            environment: self.environment.clone(),
        };
        // The daemon is alone in its cgroup: what it uses can be measured, and what it leaves behind is seen.
        let place = Place { cgroup: data.cgroup.join("system"), ..data.place.clone() };
        data.daemon = Some(Daemon::start(&place, settings)?);
        Ok(())
    }

    /// Waits until the daemon of a node says that it is ready and every pod of its model file is enrolled.
    ///
    /// # Errors
    /// If that takes too long or the daemon ended; the text has the end of its log.
    pub fn wait_ready(&mut self, node: NodeId) -> Result<()> {
        let wanted: Vec<String> = self
            .pods
            .iter()
            .filter(|pod| pod.data().node == node.0 && self.enrolled.contains(&pod.data().uid))
            .map(|pod| pod.data().uid.clone())
            .collect();
        let data = self.nodes.get_mut(node.0).ok_or("the node belongs to another topology")?;
        let daemon = data.daemon.as_mut().ok_or_else(|| Error(format!("{} has no daemon", data.name)))?;
        daemon.wait_ready(&wanted, READY)
    }

    /// The daemon of a node.
    ///
    /// # Panics
    /// If it was not started.
    pub fn daemon(&self, node: NodeId) -> &Daemon {
        match &self.node_data(node).daemon {
            Some(daemon) => daemon,
            None => panic!("{} has no daemon", self.node_data(node).name),
        }
    }

    /// Kills the daemon of a node with SIGKILL, its helper process with it, and waits until both are gone.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill_daemon(&mut self, node: NodeId) -> Result<()> {
        let data = self.nodes.get_mut(node.0).ok_or("the node belongs to another topology")?;
        let mut daemon = data.daemon.take().ok_or("the node has no daemon")?;
        daemon.kill()
    }

    /// Ends the daemon of a node with SIGTERM and waits for it.
    ///
    /// # Errors
    /// If it did not end by itself.
    pub fn terminate_daemon(&mut self, node: NodeId) -> Result<()> {
        let data = self.nodes.get_mut(node.0).ok_or("the node belongs to another topology")?;
        let mut daemon = data.daemon.take().ok_or("the node has no daemon")?;
        daemon.terminate()
    }

    /// Netfilter rules in any namespace of the topology; the promise is that there are none.
    ///
    /// # Errors
    /// If one of the tools cannot be run.
    pub fn netfilter_rules(&self) -> Result<Vec<String>> {
        let wan = self.wan_place();
        let mut found = Vec::new();
        for namespace in netns::with_prefix(&self.prefix) {
            let place = Place { netns: namespace.clone(), ..wan.clone() };
            found.extend(netfilter::rules(&place)?.into_iter().map(|rule| format!("{namespace}: {rule}")));
        }
        Ok(found)
    }

    /// The ends of all daemon logs, for the reader of a failed test.
    pub(crate) fn log_tails(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            if let Some(daemon) = &node.daemon {
                text.push_str(&format!("--- {} ---\n{}\n", node.name, daemon.log_tail(40)));
            }
        }
        text
    }
}
