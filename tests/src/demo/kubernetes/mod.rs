//! The demo on two real Kubernetes clusters: installed, exposed and linked by the commands a person would use.
//!
//! As in the other one, every sentence it prints is checked first.

mod steps;

use super::Options;
use super::report::Report;
use crate::clusters::linked::Linked;
use crate::clusters::{Clusters, cluster, output};
use crate::{Result, context, sys};
use std::process::{ExitCode, Stdio};

/// The picture at the beginning.
const PICTURE: &str = "\
 cluster1 (network1), pods 10.244.0.0/16               cluster2 (network2), pods 10.244.0.0/16: the same
 +- node c1n1 172.29.1.1 -----+                        +- node c2n1 172.29.2.1 -------------------------+
 | client   web   gateway     |   only 172.29.0.0/16   | client   web   db-0   db-1   gateway           |
 +- node c1n2 172.29.1.2 -----+=== is routed here =====+- node c2n2 172.29.2.2 -------------------------+
 | web            gateway     |   HBONE within HBONE   | web                          gateway           |
 +----------------------------+                        +------------------------------------------------+
 Each node has its own kubelet, containerd and kube-proxy, each cluster its API server and its istiod.";

/// Runs it and cleans up, also after Ctrl-C.
pub fn run(options: Options) -> ExitCode {
    sys::catch_interrupts();
    let mut report = Report::new(options.json);
    let error = show(options, &mut report).err();
    report.finish(error.as_ref().map(ToString::to_string).as_deref());
    if error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Takes down what `--keep` left.
///
/// # Errors
/// What is left of the clusters.
pub fn down() -> Result<()> {
    output(cluster(&["down"])?).map(drop)
}

fn show(options: Options, report: &mut Report) -> Result<()> {
    report.step("clusters", "Two clusters of two nodes each, with kubelets, on this machine");
    report.say(PICTURE);
    let ours = output(cluster(&["status"])?).is_err();
    let shown = up().and_then(|clusters| on(&clusters, options, report));
    if options.keep && shown.is_ok() {
        return Ok(());
    }
    report.step("cleanup", "Taking everything away");
    if !ours {
        report.say("What was installed is removed; the clusters were here before, and stay.");
        return shown;
    }
    let left = down();
    if left.is_ok() {
        report.say("Clusters are down: no process, cgroup, namespace or mount of theirs is left.");
    }
    shown.and(left)
}

/// Starts the clusters, showing the progress.
fn up() -> Result<Clusters> {
    let mut command = cluster(&["up", "--clusters", "2", "--nodes", "2"])?;
    // Progress goes where it does not mix with a JSON document.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().map_err(context("xtask"))?;
    if !status.success() {
        return Err("the clusters did not come up (reason above)".into());
    }
    Clusters::two()
}

fn on(clusters: &Clusters, options: Options, report: &mut Report) -> Result<()> {
    report.say(&clusters.shell("kubectl --context cluster1 get nodes; kubectl --context cluster2 get nodes")?);
    let mut linked = steps::install(clusters, report)?;
    if let Err(error) = steps::all(clusters, &linked, report) {
        if !sys::interrupted() {
            eprintln!("\nThe last lines of agents and gateways:\n{}", linked.log_tails());
        }
        return Err(error);
    }
    if options.keep {
        explain(report);
        keep(linked);
        return Ok(());
    }
    linked.remove()
}

fn explain(report: &mut Report) {
    report.step("keep", "Everything keeps running");
    report.say("A shell with kubectl, helm, causeway and a context for each cluster:\n  cargo xtask cluster shell");
    report.say("For example in it:");
    report.say("  kubectl --context cluster1 -n shop exec client -- curl -s http://web.shop.svc.cluster.local/");
    report.say("  kubectl --context cluster2 -n istio-eastwest logs deployment/causeway-gateway");
    report.say("To end all of it:\n  cargo xtask cluster down");
}

fn keep(linked: Linked<'_>) {
    std::mem::forget(linked);
}
