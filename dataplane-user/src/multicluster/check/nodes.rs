//! What the agents of the nodes say of themselves.

use serde_json::Value;

use super::Scene;
use crate::multicluster::facts::{Cluster, NodeReport};
use crate::multicluster::finding::Finding;
use crate::multicluster::names::GATEWAY;
use crate::multicluster::objects::{list, number, text};

/// Seconds after which a failure is history.
const LATELY: u64 = 30;

/// Everything the agents report that is not as it should be.
pub(super) fn nodes(scene: &Scene) -> Vec<Finding> {
    let reports = scene.clusters.iter().flat_map(|cluster| cluster.reports.iter().map(move |report| (cluster, report)));
    reports.flat_map(|(cluster, report)| node(scene, cluster, report)).collect()
}

fn node(scene: &Scene, cluster: &Cluster, report: &NodeReport) -> Vec<Finding> {
    let (context, pod) = (&cluster.context, &report.pod);
    let (namespace, name) = pod.split_once('/').unwrap_or_default();
    let place = format!("{context}: node {}, pod {pod}", report.node);
    let logs = format!("kubectl --context {context} -n {namespace} logs {name} | grep ERROR");
    let again = format!("kubectl --context {context} -n {namespace} delete pod {name}");
    let said = match report.said.as_ref().map(|said| said.is_object().then_some(said)) {
        Ok(Some(said)) => said,
        told => {
            let why = told.err().map_or("what it says is no status", String::as_str);
            let finding = Finding::warning("nodes", format!("the agent was not asked: {why}"), place);
            let asked = format!(
                "kubectl --context {context} get --raw /api/v1/namespaces/{namespace}/pods/{name}:15020/proxy/status"
            );
            return vec![finding.why("nothing is known of the programs and pods of this node").repair(asked)];
        }
    };
    let error = |what: String| Finding::error("nodes", what, place.clone());
    let mut findings = Vec::new();
    for key in ["/trouble", "/model_error"] {
        if let Some(trouble) = said.pointer(key).and_then(Value::as_str) {
            let finding = error(trouble.to_owned());
            findings.push(finding.why("what was wanted is not in force on this node").repair(logs.clone()));
        }
    }
    let programs = said.pointer("/look/programs").and_then(Value::as_object);
    let missing = programs.into_iter().flatten().filter(|(_, attached)| **attached != Value::Bool(true));
    let missing: Vec<&str> = missing.map(|(name, _)| name.as_str()).collect();
    if !missing.is_empty() {
        let finding = error(format!("programs are not attached: {}", missing.join(", ")));
        findings
            .push(finding.why("connections of this node's pods may leave in the clear, or fail").repair(again.clone()));
    }
    let detached = said.pointer("/look/detached").and_then(Value::as_object).into_iter().flatten();
    let detached: Vec<String> = detached.map(|(name, times)| format!("{name} {times} times")).collect();
    if !detached.is_empty() {
        let what = format!("somebody detached programs: {}", detached.join(", "));
        let finding = Finding::warning("nodes", what, place.clone());
        // The counts are the daemon's own and begin anew with it.
        findings.push(finding.why("they were attached again; meanwhile connections went past them").repair(again));
    }
    for one in list(said, "/pods").filter(|one| text(one, "/state") == "Failed") {
        let finding = error(format!("{} is not redirected: {}", text(one, "/uid"), text(one, "/error")));
        let events = format!("kubectl --context {context} get events -A --field-selector reportingComponent=causeway");
        findings.push(finding.why("its traffic is not carried by the mesh").repair(events));
    }
    if let Some(why) = said.pointer("/look/dns/error").and_then(Value::as_str) {
        let (pod, name) = (text(said, "/look/dns/pod"), text(said, "/look/dns/name"));
        let finding = error(format!("DNS in {pod}: no answer for {name}: {why}"));
        findings.push(finding.why("names of the mesh have no address in the pods of this node").repair(logs.clone()));
    }
    let tried = |address: &str| {
        let rows = report.reached.iter().flat_map(|reached| list(reached, "/entry_points"));
        rows.into_iter().any(|one| text(one, "/address") == address)
    };
    // What a single pod of the other side may have caused is no failure of the way there. What was just tried, is known better.
    for one in list(said, "/entry_points")
        .filter(|one| number(one, "/failures") > 0 && text(one, "/leg") != "backend" && !tried(text(one, "/address")))
    {
        let (network, address, leg) = (text(one, "/network"), text(one, "/address"), text(one, "/leg"));
        let ago = number(one, "/failed_ago");
        let what =
            format!("the entry point {address} of {network} failed {ago} s ago at {leg}: {}", text(one, "/error"));
        // Nobody tries an old one again for as long as others serve.
        let finding = if ago < LATELY { error(what) } else { Finding::warning("nodes", what, place.clone()) };
        let legs = format!("kubectl --context {context} -n {namespace} logs {name} | grep 'leg={leg}'");
        findings.push(finding.why("connections of this node to that network fail, or take another way").repair(legs));
    }
    findings.extend(reached(scene, cluster, report, &place));
    for plane in list(said, "/control_planes").filter(|plane| plane["connected"] == false) {
        let what =
            format!("no connection to the control plane at {}: {}", text(plane, "/address"), text(plane, "/error"));
        let finding = error(what);
        findings.push(finding.why("this node does not hear of changes and renews no certificate").repair(logs.clone()));
    }
    findings
}

/// What pods of the node cannot reach of other networks, as the agent found by trying.
fn reached(scene: &Scene, cluster: &Cluster, report: &NodeReport, place: &str) -> Vec<Finding> {
    let (context, pod) = (&cluster.context, &report.pod);
    let (namespace, name) = pod.split_once('/').unwrap_or_default();
    let mut findings = Vec::new();
    let reached = match &report.reached {
        Ok(reached) => reached,
        Err(why) => {
            let finding = Finding::warning("nodes", format!("the ways to other networks were not tried: {why}"), place);
            let asked = format!(
                "kubectl --context {context} get --raw /api/v1/namespaces/{namespace}/pods/{name}:15020/proxy/reach"
            );
            return vec![finding.why("nothing is known of what pods of this node can reach there").repair(asked)];
        }
    };
    for one in list(reached, "/entry_points").filter(|one| one["error"].is_string()) {
        let (network, address, leg) = (text(one, "/network"), text(one, "/address"), text(one, "/leg"));
        let authority = text(one, "/authority");
        let what = format!(
            "{authority} cannot be reached through the entry point {address} of {network}: {leg}: {}",
            text(one, "/error")
        );
        let to = scene.clusters.iter().find(|other| other.network() == network);
        let repair = to.map_or_else(
            || format!("kubectl --context {context} -n {namespace} logs {name} | grep 'leg={leg}'"),
            |to| opened(cluster, to, (address, authority), leg),
        );
        let finding = Finding::error("nodes", what, place);
        findings.push(finding.why("connections of this node to that network fail, or take another way").repair(repair));
    }
    for one in list(reached, "/allotted").filter(|one| one["error"].is_string()) {
        let (service, address) = (text(one, "/service"), text(one, "/address"));
        let what =
            format!("{service} has the allotted address {address} and is not reached by it: {}", text(one, "/error"));
        let host = format!("/usr/local/bin/causeway services {service} # its endpoints, as the node knows them");
        let asked = format!("kubectl --context {context} -n {namespace} exec {name} -- {host}");
        let finding = Finding::error("nodes", what, place);
        findings.push(
            finding.why("addresses of 240.0.0.0/4 exist in the mesh alone: nobody else answers there").repair(asked),
        );
    }
    findings
}

/// How the way into another cluster is opened again, or who there knows why a leg of it failed.
fn opened(from: &Cluster, to: &Cluster, (address, authority): (&str, &str), leg: &str) -> String {
    let gateways = format!("kubectl --context {} -n {}", to.context, to.gateway_namespace);
    match leg {
        "outer-tcp" => {
            let port = address.rsplit(':').next().unwrap_or_default();
            format!("{gateways} get service,pods -o wide # and let TCP port {port} pass from node to node")
        }
        "outer-tls" => to.link_from(from),
        "inner-tls" => format!(
            "kubectl --context {} -n {} logs -l app=causeway --tail=-1 --prefix --max-log-requests=100 | grep 'leg='",
            to.context, to.istio_namespace
        ),
        _ => format!("{gateways} logs -l app={GATEWAY} --tail=-1 --prefix | grep '{authority}'"),
    }
}
