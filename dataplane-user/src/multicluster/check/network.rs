//! Names of clusters and networks, and the ranges within one.

use std::net::IpAddr;

use super::{Scene, pairs};
use crate::multicluster::facts::{Cluster, Kind};
use crate::multicluster::finding::Finding;
use crate::multicluster::names::{EAST_WEST, NETWORK};
use crate::multicluster::objects::{list, text};
use crate::multicluster::reader::name_of;

/// One cluster twice, or two of one name.
pub(super) fn names(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (one, other) in pairs(scene) {
        let both = format!("{} and {}", one.context, other.context);
        if !one.uid().is_empty() && one.uid() == other.uid() {
            let finding = Finding::error("names", "both contexts lead to the same cluster", both);
            findings.push(
                finding
                    .why("a cluster that is linked to itself would publish its own pods behind its own gateway")
                    .repair("kubectl config get-contexts # and name two clusters"),
            );
        } else if let (Some(first), Some(second)) = (one.name(), other.name())
            && first != second
            && name_of(&first) == name_of(&second)
        {
            let what =
                format!("the names {first} and {second} are one, {:?}, where objects are named", name_of(&first));
            let finding = Finding::error("names", what, both);
            findings.push(finding.why("links to the one would replace those to the other").repair(renamed(other)));
        } else if let (Some(name), true) = (one.name(), one.name() == other.name()) {
            let finding = Finding::error("names", format!("both clusters are called {name}"), both);
            findings.push(
                finding
                    .why("istiod takes what it reads of the other for its own: pods of one replace those of the other")
                    .repair(renamed(other)),
            );
        }
    }
    for cluster in &scene.clusters {
        let Some(name) = cluster.name().filter(|name| name_of(name).is_empty()) else { continue };
        let finding = Finding::error("names", format!("{name:?} has no letter and no digit"), &cluster.context);
        findings.push(finding.why("nothing can be named after the cluster").repair(renamed(cluster)));
    }
    findings
}

/// The command that names a cluster after its context.
fn renamed(cluster: &Cluster) -> String {
    cluster.istiod_upgrade(&format!("global.multiCluster.clusterName={}", cluster.context))
}

/// Networks that are missing, contradict each other, or are two clusters' although gateways stand between them.
pub(super) fn networks(scene: &Scene) -> Vec<Finding> {
    let mut findings: Vec<Finding> = scene.clusters.iter().flat_map(of_cluster).collect();
    for (one, other) in pairs(scene) {
        let gated = |cluster: &Cluster| !cluster.gateways(EAST_WEST).is_empty() || !cluster.entries().is_empty();
        if gated(one) || gated(other) {
            findings.extend(one_network(one, other));
        }
    }
    findings
}

/// Two clusters of one network.
pub(super) fn one_network(one: &Cluster, other: &Cluster) -> Option<Finding> {
    let same = !one.network().is_empty() && one.network() == other.network() && one.uid() != other.uid();
    same.then(|| {
        let network = one.network();
        Finding::error(
            "network",
            format!("both clusters are in network {network:?}"),
            format!("{} and {}", one.context, other.context),
        )
        .why("pods of one network are dialled directly, never through a gateway: that only works where pods reach each other's addresses")
        .repair(format!(
            "kubectl --context {} label namespace {} {NETWORK}={}-network --overwrite # and give the agent and the gateway the same name",
            other.context,
            other.istio_namespace,
            other.label(),
        ))
    })
}

fn of_cluster(cluster: &Cluster) -> Vec<Finding> {
    let (context, space, network) = (&cluster.context, &cluster.istio_namespace, cluster.network());
    let mut findings = Vec::new();
    if network.is_empty()
        && let Some(unknown) = super::unknown(cluster, "network", Kind::Namespace)
    {
        return vec![unknown];
    }
    if network.is_empty() {
        let told = cluster.agents().into_iter().find_map(|agent| agent.settings.get("NETWORK").cloned());
        let name = told.unwrap_or_else(|| cluster.label());
        let finding = Finding::error(
            "network",
            format!("the label {NETWORK} is missing"),
            format!("{context}: namespace {space}"),
        );
        findings.push(
            finding
                .why("istiod does not know which network this cluster's pods are in, and takes them for directly reachable")
                .repair(format!("kubectl --context {context} label namespace {space} {NETWORK}={name}")),
        );
        return findings;
    }
    for agent in cluster.agents() {
        let Some(told) = agent.settings.get("NETWORK").filter(|told| *told != network) else { continue };
        let (namespace, name) = agent.name.split_once('/').unwrap_or_default();
        let finding = Finding::error(
            "network",
            format!("NETWORK of the agent is {told:?}, the label of namespace {space} is {network:?}"),
            format!("{context}: daemon set {}", agent.name),
        );
        findings.push(
            finding
                .why("the agent takes pods of its own cluster for those of another network, and dials a gateway for them")
                .repair(format!("kubectl --context {context} -n {namespace} set env daemonset/{name} NETWORK={network}")),
        );
    }
    let labelled = cluster.gateways(EAST_WEST).into_iter().map(|gateway| ("gateway", gateway.name, gateway.network));
    let labelled = labelled.chain(cluster.entries().into_iter().map(|entry| ("service", entry.name, entry.network)));
    for (kind, full, told) in labelled.filter(|(_, _, told)| told != network) {
        let (namespace, name) = full.split_once('/').unwrap_or_default();
        let finding = Finding::error(
            "network",
            format!("the {kind} is labelled with network {told:?}, namespace {space} with {network:?}"),
            format!("{context}: {kind} {full}"),
        );
        findings.push(
            finding
                .why("others look for the entry point of a network that has none, and find one of a network without pods")
                .repair(format!(
                    "kubectl --context {context} -n {namespace} label {kind} {name} {NETWORK}={network} --overwrite"
                )),
        );
    }
    findings
}

/// Pod ranges that overlap where that matters: within one network.
pub(super) fn ranges(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (one, other) in pairs(scene).filter(|(one, other)| one.network() == other.network() && one.uid() != other.uid())
    {
        let overlap = pod_ranges(one).into_iter().find_map(|range| {
            pod_ranges(other).into_iter().find(|second| overlaps(&range, second)).map(|second| (range.0, second.0))
        });
        if let Some((first, second)) = overlap {
            let finding = Finding::error(
                "ranges",
                format!("pod ranges {first} and {second} overlap within network {:?}", one.network()),
                format!("{} and {}", one.context, other.context),
            );
            findings.push(
                finding
                    .why("one address means two pods: connections reach the wrong one and are refused by its certificate")
                    .repair(format!(
                        "kubectl --context {} label namespace {} {NETWORK}={}-network --overwrite # then link by gateways",
                        other.context,
                        other.istio_namespace,
                        other.label()
                    )),
            );
        }
    }
    findings
}

/// Text, first bits, and how many of them count.
type Range = (String, u128, u8, bool);

fn pod_ranges(cluster: &Cluster) -> Vec<Range> {
    let nodes = cluster.of(Kind::Node).iter();
    let texts = nodes.flat_map(|node| {
        let all: Vec<&str> = list(node, "/spec/podCIDRs").filter_map(serde_json::Value::as_str).collect();
        if all.is_empty() { vec![text(node, "/spec/podCIDR")] } else { all }
    });
    texts.filter_map(range).collect()
}

fn range(text: &str) -> Option<Range> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = length.parse().ok()?;
    // Both families at the upper end of one number.
    Some(match address.parse().ok()? {
        IpAddr::V4(ip) => (text.to_owned(), u128::from(ip.to_bits()) << 96, length.min(32), true),
        IpAddr::V6(ip) => (text.to_owned(), ip.to_bits(), length.min(128), false),
    })
}

fn overlaps(one: &Range, other: &Range) -> bool {
    let length = one.2.min(other.2);
    one.3 == other.3 && (length == 0 || (one.1 ^ other.1) >> (128 - u32::from(length)) == 0)
}

/// Whether an address lies in a range that nodes of the cluster give to pods.
pub(super) fn is_pod_address(cluster: &Cluster, address: &str) -> bool {
    let length = if address.contains(':') { 128 } else { 32 };
    let Some(single) = range(&format!("{address}/{length}")) else { return false };
    pod_ranges(cluster).iter().any(|known| overlaps(known, &single))
}
