//! Steps that watch the mesh at work: a policy that comes and goes, and what a node does at a moment.

use std::time::Duration;

use super::report::Report;
use super::stage::{IPERF, NAME, Stage};
use super::steps::{TRUST_DOMAIN, call};
use crate::daemon::field;
use crate::topology::NodeId;
use crate::{Error, Result, context, process};
use serde_json::{Value, json};

/// How long a changed model file may take until it is in force.
const IN_FORCE: Duration = Duration::from_secs(10);

/// A policy denies the client, then goes again, while the daemons run.
pub fn policy(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.step("policy", "A policy denies the client, and goes again: the model files change, nothing is restarted");
    let url = format!("http://{NAME}/");
    let client = stage.client.identity(TRUST_DOMAIN);
    let principal = client.trim_start_matches("spiffe://").to_owned();
    change(
        stage,
        vec![json!({"name": "not-the-client", "namespace": "default", "scope": "Namespace", "action": "Deny",
            "dryRun": false, "rules": [[[{"principals": [{"Exact": principal}]}]]]})],
    )?;
    report.say(&format!("Deny {principal} in namespace default:"));
    let error = match call(&stage.client, &url) {
        Ok(answer) => return Err(Error(format!("the policy does not deny: {answer}"))),
        Err(error) => error.to_string(),
    };
    let said = error.find("curl: (").and_then(|at| error.get(at..)).unwrap_or(&error).trim().to_owned();
    report.say(&format!("$ curl {url}\n{said}"));
    // One of the two pods' nodes has refused it.
    let service = format!("dst.service={NAME}");
    let texts = ["connection failed", "direction=inbound", &client, &service];
    let mut refusal = None;
    process::until(IN_FORCE, || {
        refusal = servers(stage).iter().find_map(|node| {
            let log = stage.topology.daemon(*node).log();
            log.lines().rfind(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned)
        });
        refusal.is_some()
    })
    .map_err(|_| Error("no node of a server logged the refusal".to_owned()))?;
    let line = refusal.unwrap_or_default();
    let leg = field(&line, " leg").unwrap_or_default().to_owned();
    report.say(&format!("The node of the server says why and at which leg:\n{}", line.trim()));
    report.fact("leg", leg.clone());
    report.fact("denied_log", line.trim());
    if leg != "accept/policy" {
        return Err(Error(format!("the log names leg {leg:?} instead of accept/policy: {line}")));
    }
    change(stage, Vec::new())?;
    let answer = call(&stage.client, &url)?;
    report.say(&format!("Without the policy:\n$ curl {url}\n{answer}"));
    report.fact("allowed", answer);
    Ok(())
}

fn servers(stage: &Stage) -> [NodeId; 2] {
    [stage.gateway_node, stage.other_node]
}

/// Writes the model files with these policies and waits until the servers' nodes have taken them over.
fn change(stage: &mut Stage, policies: Vec<Value>) -> Result<()> {
    let reloads =
        |stage: &Stage| servers(stage).map(|node| stage.topology.daemon(node).log().matches("model reloaded").count());
    let before = reloads(stage);
    stage.topology.set_policies(policies);
    stage.topology.publish()?;
    process::until(IN_FORCE, || reloads(stage).iter().zip(before).all(|(now, before)| *now > before))
        .map_err(|_| Error("the changed model files are not taken over".to_owned()))
}

/// Throughput of one stream, with `causeway top` beside it.
pub fn throughput(stage: &Stage, report: &mut Report) -> Result<()> {
    report.step(
        "throughput",
        "How fast: iperf3 from cluster1 to cluster2, two layers of TLS, on this machine's processors",
    );
    let vip = stage.topology.vip(stage.clusters[0], IPERF).to_string();
    let iperf = stage.client.spawn(&["iperf3", "--client", &vip, "--time", "3", "--json"])?;
    let socket = stage.topology.daemon(stage.client_node).socket().to_string_lossy().into_owned();
    let node = stage.topology.node_place(stage.client_node);
    let line = ["causeway", "top", "--count", "2", "--interval", "1", "--socket", &socket];
    let top = node.run_ok(&line)?;
    let done = iperf.wait(Duration::from_secs(20))?;
    let result: Value = serde_json::from_str(&done.stdout).map_err(context("output of iperf3"))?;
    let rate = result.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64).unwrap_or(0.0) / 1e9;
    report.say(&format!("$ iperf3 --client {vip} --time 3\nOne stream: {rate:.2} Gbit/s."));
    report.say(&format!("Meanwhile, on the client's node, two looks a second apart:\n$ causeway top\n{top}"));
    report.fact("gbit_per_s", rate);
    report.fact("top", top.clone());
    if rate <= 0.0 {
        return Err(Error(format!("iperf3 moved no bytes: {}", done.stdout)));
    }
    if !top.contains("default/client") || !top.contains("iperf.default") {
        return Err(Error(format!("causeway top does not show the stream: {top}")));
    }
    Ok(())
}
