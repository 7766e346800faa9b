//! What a node has in the kernel: its enrolments and its node ports. A gateway that does nothing else has none of it, and needs
//! neither privileges nor a kernel that runs our programs.

use super::{
    cgroups,
    enrolment::Enrolments,
    look,
    node::{Args, Failure},
    node_ports::NodePorts,
    proof::Proving,
    steering::Steering,
    worker::{self, Shared},
};
use crate::{
    redirect::{Exclusions, LoadError, RedirectConfig, Redirector, helper::Helper},
    state::{Model, NodeConfig},
};

/// Enrolments and node ports of this node.
pub(super) struct Kernel {
    pub(super) enrolments: Enrolments,
    node_ports: NodePorts,
}

/// Whether a daemon has to load programs: always, unless it is a gateway and nothing else. What an earlier one left has to be
/// taken over to be released.
pub(super) fn is_needed(args: &Args, node: &NodeConfig) -> bool {
    node.gateway.is_none()
        || has_work(node)
        || args.pods.kubernetes
        || Redirector::left_behind(&args.bpffs, &args.instance)
}

fn has_work(node: &NodeConfig) -> bool {
    !node.enrol.is_empty() || node.entry.is_some()
}

/// Whether a model can be taken over by a daemon without programs.
///
/// # Errors
/// It asks for what only programs can do.
pub(super) fn can_do_without(node: &NodeConfig) -> Result<(), Failure> {
    if has_work(node) {
        return Err(
            "this daemon was started as a gateway and nothing else: to enrol workloads or open node ports, start it again".into(),
        );
    }
    Ok(())
}

/// Loads and attaches the programs.
pub(super) fn load(args: &Args, model: &Model, workers: usize, helper: Helper) -> Result<Redirector, Failure> {
    let cgroup_root = cgroups::root(&args.cgroup_root);
    let pods_cgroup = cgroups::pods(&cgroup_root, args.pods_cgroup.as_deref())?;
    let config = RedirectConfig {
        bpffs: args.bpffs.clone(),
        exclusions: exclusions(model),
        workers,
        proc: args.pods.proc.clone(),
        succeed: args.pods.kubernetes,
        node_netns: args.pods.kubernetes.then(|| args.pods.proc.join("1/ns/net")),
        ..RedirectConfig::new(args.instance.clone(), cgroup_root, pods_cgroup)
    };
    Ok(Redirector::start(config, helper)?)
}

impl Kernel {
    pub(super) fn new(redirector: Redirector, proving: Option<Proving>, steering: Option<Steering>) -> Self {
        let mut enrolments = Enrolments::new(redirector);
        enrolments.proving = proving;
        Self { enrolments, node_ports: NodePorts::new(steering) }
    }

    /// Opens and closes node ports as the model says.
    pub(super) fn open_node_ports(&mut self, node: &NodeConfig, shared: &Shared, workers: &[worker::Handle]) {
        self.node_ports.apply(node, &mut self.enrolments, shared, workers);
    }

    /// Takes no new connections to node ports.
    ///
    /// # Errors
    /// As [`NodePorts::pass`].
    pub(super) fn pass_node_ports(&mut self) -> Result<(), LoadError> {
        self.node_ports.pass(&mut self.enrolments.redirector)
    }

    /// Regular work.
    ///
    /// # Errors
    /// The helper has ended.
    pub(super) fn tick(
        &mut self,
        node: &NodeConfig,
        shared: &Shared,
        workers: &[worker::Handle],
    ) -> std::io::Result<()> {
        self.enrolments.tick(&node.enrol, workers);
        self.enrolments.look(|| look::known_name(&shared.model.load()), workers);
        self.node_ports.tick(&mut self.enrolments, shared, workers);
        self.enrolments.redirector.require_helper()
    }
}

/// What a model leaves alone.
pub(super) fn exclusions(model: &Model) -> Exclusions {
    let configured = &model.node.exclusions;
    Exclusions {
        ports: configured.ports.clone(),
        cidrs: configured.cidrs.iter().map(|range| (range.address(), range.prefix())).collect(),
        inbound_ports: configured.inbound_ports.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::state::file;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn only_a_gateway_that_does_nothing_else_goes_without_programs() {
        let folder = std::env::temp_dir().join(format!("causeway-kernel-{}", std::process::id()));
        let place = folder.display().to_string();
        let args = |more: &[&str]| {
            let words = ["x", "--model", "m.yaml", "--instance", "alone", "--bpffs", &place];
            Line::parse_from(words.iter().chain(more)).args
        };
        let node = |more: &str| {
            let text = format!("causeway: {{node: n, network: net, controlPlane: {{}}{more}}}");
            file::parse(&text, Path::new("m.yaml")).unwrap_or_else(|error| panic!("{error}")).node
        };
        let gateway = ", gateway: {listen: [\"[::]:15008\"], identity: spiffe://cluster.local/ns/i/sa/g}";
        let entry = ", entry: {identity: spiffe://cluster.local/ns/i/sa/e}";
        let alone = node(gateway);
        assert!(!is_needed(&args(&[]), &alone) && can_do_without(&alone).is_ok());
        assert!(is_needed(&args(&[]), &node("")), "a node that has nothing to do yet may be given something");
        assert!(is_needed(&args(&["--kubernetes"]), &alone));
        let more = node(&format!("{gateway}{entry}"));
        assert!(is_needed(&args(&[]), &more) && can_do_without(&more).is_err());
        std::fs::create_dir_all(folder.join("causeway/alone")).unwrap();
        assert!(is_needed(&args(&[]), &alone), "what is left there must be released");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
