//! The checks: each a function from what was read to what does not hold, in the order in which things have to be settled.

mod control_plane;
mod gateways;
mod network;
mod nodes;
mod services;
mod trust;

use super::facts::{Cluster, Gateway, Kind, Unread};
use super::finding::{Finding, Severity};
use super::link::Way;
use super::probe::Probe;
use super::{link, names};

/// What the checks look at.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// The clusters, in the order asked for.
    pub clusters: Vec<Cluster>,
    /// Entry points that were tried; empty where nobody tried.
    pub probes: Vec<Probe>,
    /// Seconds since 1970.
    pub now: i64,
    /// Contexts whose API server could not be read, and why.
    pub silent: Vec<(String, String)>,
}

/// When a check makes sense.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// At any time, also before Causeway is installed.
    Always,
    /// Once something was exposed or linked.
    Linked,
}

/// A check.
pub struct Check {
    /// Its name, as findings carry it.
    pub name: &'static str,
    /// What holds when it finds nothing.
    pub holds: &'static str,
    when: When,
    find: fn(&Scene) -> Vec<Finding>,
}

impl Check {
    /// What it finds.
    #[must_use]
    pub fn findings(&self, scene: &Scene) -> Vec<Finding> {
        (self.find)(scene)
    }
}

const fn check(name: &'static str, when: When, find: fn(&Scene) -> Vec<Finding>, holds: &'static str) -> Check {
    Check { name, holds, when, find }
}

use When::{Always, Linked};

/// All of them.
pub const CHECKS: &[Check] = &[
    check("access", Always, access, "every API server answers"),
    check("kinds", Always, control_plane::kinds, "Gateway API and Istio kinds are known, and everything can be read"),
    check("istiod", Always, control_plane::settings, "istiod speaks ambient and knows networks and shared services"),
    check("names", Always, network::names, "clusters differ from each other and in their names"),
    check("network", Always, network::networks, "every part of a cluster names one network, and no other cluster does"),
    check("ranges", Always, network::ranges, "pod ranges within one network do not overlap"),
    check("trust", Always, trust::domains, "every side believes the same of every trust domain"),
    check("certificates", Always, trust::certificates, "each authority leads to a root of every cluster and is valid"),
    check("pods", Always, control_plane::pods, "istiod, agents and gateways are ready"),
    check("dns", Always, control_plane::dns, "names of the mesh are answered for pods"),
    check(
        "nodes",
        Always,
        nodes::nodes,
        "agents have all programs attached, all pods under capture, and answer DNS in them",
    ),
    check("gateway", Linked, gateways::gateways, "entry points are programmed, addressed and backed by ready pods"),
    check("probe", Linked, gateways::probes, "entry points take TCP and TLS and are who they should be"),
    check("peers", Linked, gateways::peers, "links lead to where their clusters are"),
    check("services", Linked, services::shared, "shared services agree on scope and ports"),
    check("waypoints", Linked, services::waypoints, "shared services have the same waypoint everywhere"),
    check("workloads", Linked, services::stale, "workload entries have a workload"),
];

/// Runs all, or with `before` those that make sense before anything is installed; each with what it found.
#[must_use]
pub fn run(scene: &Scene, before: bool) -> Vec<(&'static Check, Vec<Finding>)> {
    let wanted = CHECKS.iter().filter(|check| !before || check.when == When::Always);
    wanted.map(|check| (check, check.findings(scene))).collect()
}

/// Clusters of which nothing is known.
fn access(scene: &Scene) -> Vec<Finding> {
    let silent = scene.silent.iter();
    let finding = |(context, why): &(String, String)| {
        Finding::error("access", format!("the cluster cannot be read: {why}"), context)
            .why("nothing is known of it, and no other check looked at it")
            .repair(format!("kubectl --context {context} get --raw /version"))
    };
    silent.map(finding).collect()
}

/// Entry points to try, of every cluster.
#[must_use]
pub fn targets(clusters: &[Cluster]) -> Vec<(String, String, u16)> {
    let mut targets = Vec::new();
    for cluster in clusters {
        let published = cluster.gateways(names::EAST_WEST).into_iter().flat_map(|gateway| gateway.addresses);
        targets.extend(published.map(|address| (cluster.context.clone(), address, names::HBONE_PORT)));
        for entry in cluster.entries().iter().filter(|entry| entry.kind == "NodePort") {
            let Some(port) = entry.node_port else { continue };
            let addresses = cluster.node_addresses(entry, "InternalIP");
            targets.extend(addresses.into_iter().map(|address| (cluster.context.clone(), address, port)));
        }
    }
    targets
}

/// What forbids a link from the first cluster of the scene to the second; nothing was changed yet.
#[must_use]
pub fn refusals(scene: &Scene, way: &Way) -> Vec<Finding> {
    let [from, to] = scene.clusters.as_slice() else { return Vec::new() };
    let needed = ["kinds", "istiod", "names", "network", "trust", "certificates", "probe"];
    let checks = CHECKS.iter().filter(|check| needed.contains(&check.name));
    let mut findings: Vec<Finding> = checks.flat_map(|check| check.findings(scene)).collect();
    findings.extend(network::one_network(from, to));
    findings.extend(link::plan(from, to, way).err().map(|finding| *finding));
    findings.retain(|finding| finding.severity == Severity::Error);
    findings.dedup();
    findings
}

/// What forbids to expose a cluster.
#[must_use]
pub fn unfit(cluster: &Cluster) -> Vec<Finding> {
    let scene = Scene { clusters: vec![cluster.clone()], ..Scene::default() };
    let needed = ["kinds", "istiod", "network"];
    let checks = CHECKS.iter().filter(|check| needed.contains(&check.name));
    checks.flat_map(|check| check.findings(&scene)).filter(|finding| finding.severity == Severity::Error).collect()
}

/// Pairs of clusters of which the first reads the second.
fn linked(scene: &Scene) -> Vec<(&Cluster, &Cluster)> {
    let pairs = scene.clusters.iter().flat_map(|from| scene.clusters.iter().map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| {
            let name = to.label();
            from.context != to.context && from.remote_secrets().iter().any(|secret| secret.cluster == name)
        })
        .collect()
}

/// Unordered pairs of different clusters.
fn pairs(scene: &Scene) -> impl Iterator<Item = (&Cluster, &Cluster)> {
    let all = scene.clusters.iter().enumerate();
    all.flat_map(|(at, one)| scene.clusters.iter().skip(at + 1).map(move |other| (one, other)))
}

/// There is no istiod to link.
pub(super) fn no_istiod(cluster: &Cluster) -> Finding {
    let namespace = &cluster.istio_namespace;
    if let Some(unknown) = unknown(cluster, "istiod", Kind::Deployment) {
        return unknown;
    }
    Finding::error("istiod", "no deployment of istiod", format!("{}: namespace {namespace}", cluster.context))
        .why("nothing here follows other clusters or tells nodes about them")
        .repair(format!(
            "helm upgrade --install istiod istio/istiod --kube-context {} -n {namespace} --set profile=ambient",
            cluster.context
        ))
}

/// What cannot be looked for, because objects of this kind cannot be read.
#[must_use]
pub fn unknown(cluster: &Cluster, check: &'static str, kind: Kind) -> Option<Finding> {
    let Some(Unread::Forbidden(reason)) = cluster.unread.get(&kind) else { return None };
    let finding =
        Finding::error(check, format!("objects of kind {kind:?} cannot be read: {reason}"), cluster.context.as_str());
    Some(
        finding.why("what they say is unknown").repair(format!(
            "kubectl --context {} auth can-i --list # and use a context with that right",
            cluster.context
        )),
    )
}

/// A gateway object whose status holds no address.
pub(super) fn no_address(cluster: &Cluster, gateway: &Gateway) -> Finding {
    Finding::error("gateway", "the gateway has no address", format!("{}: gateway {}", cluster.context, gateway.name))
        .why("istiods of other clusters publish only addresses of its status: a load balancer's, once a ready pod is behind it")
        .repair(addressed(cluster, gateway))
}

/// The command that shows what keeps a gateway from its address, and the way without.
fn addressed(cluster: &Cluster, gateway: &Gateway) -> String {
    let namespace = gateway.name.split('/').next().unwrap_or_default();
    format!(
        "kubectl --context {} -n {namespace} get gateways,services,pods # without load balancers: causeway multicluster expose --context {} --node-port",
        cluster.context, cluster.context
    )
}
