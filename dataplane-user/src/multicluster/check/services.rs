//! What clusters share: services, their waypoints, and workloads that are no more.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Scene, pairs};
use crate::multicluster::facts::{Cluster, Kind, Shared};
use crate::multicluster::finding::Finding;
use crate::multicluster::names::{GLOBAL, WAYPOINT, WAYPOINT_CLASS};
use crate::multicluster::objects::{full_name, list, text};

/// Services of one name, shared in at least one of two clusters.
fn common(one: &Cluster, other: &Cluster) -> Vec<(Shared, Shared)> {
    let theirs = other.services();
    let both = one.services().into_iter().filter_map(|service| {
        let same = theirs.iter().find(|found| found.name == service.name)?;
        (service.global || same.global).then(|| (service, same.clone()))
    });
    both.collect()
}

/// Services that clusters see differently.
pub(super) fn shared(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (one, other) in pairs(scene) {
        for (first, second) in common(one, other) {
            let (namespace, name) = first.name.split_once('/').unwrap_or_default();
            let place = |cluster: &Cluster| format!("{}: service {}", cluster.context, first.name);
            if first.global != second.global {
                let (without, with) = if first.global { (other, one) } else { (one, other) };
                let finding = Finding::warning(
                    "services",
                    format!("the service is global in {} only", with.context),
                    place(without),
                );
                findings.push(
                    finding
                        .why("each cluster shares only what its own label says: calls never leave one of them, and none arrive in the other")
                        .repair(format!("kubectl --context {} -n {namespace} label service {name} {GLOBAL}=true", without.context)),
                );
            }
            if first.ports != second.ports {
                let of = |ports: &BTreeSet<String>| ports.iter().cloned().collect::<Vec<_>>().join(", ");
                let finding = Finding::error(
                    "services",
                    format!(
                        "ports are {} in {}, and {} in {}",
                        of(&first.ports),
                        one.context,
                        of(&second.ports),
                        other.context
                    ),
                    place(other),
                );
                findings.push(
                    finding.why("calls from one to a port the other lacks end at its gateway with 503").repair(
                        format!(
                            "kubectl --context {} -n {namespace} patch service {name} --type merge -p '{}'",
                            other.context,
                            json!({"spec": {"ports": ports(one, &first.name)}})
                        ),
                    ),
                );
            }
        }
    }
    findings
}

/// Ports of a service as they can be given to another.
fn ports(cluster: &Cluster, name: &str) -> Vec<Value> {
    let service = cluster.of(Kind::Service).iter().find(|service| full_name(service) == name);
    let ports = service.into_iter().flat_map(|service| list(service, "/spec/ports"));
    ports
        .map(|port| {
            let mut port = port.clone();
            if let Some(map) = port.as_object_mut() {
                // The node's port is each cluster's own.
                map.remove("nodePort");
            }
            port
        })
        .collect()
}

/// Waypoints that differ, or are named and not there.
pub(super) fn waypoints(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (one, other) in pairs(scene) {
        for (first, second) in common(one, other) {
            if first.waypoint == second.waypoint {
                continue;
            }
            let (namespace, name) = first.name.split_once('/').unwrap_or_default();
            let (without, wanted) = match (&first.waypoint, &second.waypoint) {
                (Some(waypoint), _) => (other, waypoint),
                (None, Some(waypoint)) => (one, waypoint),
                (None, None) => continue,
            };
            let say = |waypoint: &Option<String>| waypoint.clone().unwrap_or_else(|| "none".to_owned());
            let (place, waypoint) = wanted.split_once('/').unwrap_or_default();
            let finding = Finding::error(
                "waypoints",
                format!(
                    "the waypoint is {} in {}, and {} in {}",
                    say(&first.waypoint),
                    one.context,
                    say(&second.waypoint),
                    other.context
                ),
                format!("{}: service {}", without.context, first.name),
            );
            findings.push(
                finding
                    .why("the waypoint of the destination's cluster applies: policies of one do not hold in the other")
                    .repair(format!(
                        "kubectl --context {} -n {namespace} label service {name} {WAYPOINT}={waypoint} {WAYPOINT}-namespace={place} --overwrite",
                        without.context
                    )),
            );
        }
    }
    for cluster in &scene.clusters {
        let there: Vec<String> = cluster.gateways(WAYPOINT_CLASS).into_iter().map(|gateway| gateway.name).collect();
        let wanted = cluster.services().into_iter().filter(|service| service.global);
        let missing: BTreeSet<String> =
            wanted.filter_map(|service| service.waypoint).filter(|waypoint| !there.contains(waypoint)).collect();
        for waypoint in missing {
            let (namespace, name) = waypoint.split_once('/').unwrap_or_default();
            let finding = Finding::error(
                "waypoints",
                "a shared service names a waypoint that is not there",
                format!("{}: gateway {waypoint}", cluster.context),
            );
            findings.push(
                finding.why("a waypoint is never bypassed: connections to the service are refused").repair(format!(
                    "istioctl --context {} waypoint apply -n {namespace} --name {name}",
                    cluster.context
                )),
            );
        }
    }
    findings
}

/// Entries that stand for pods which are no more.
pub(super) fn stale(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for cluster in &scene.clusters {
        for entry in cluster.of(Kind::WorkloadEntry) {
            let (network, address) = (text(entry, "/spec/network"), text(entry, "/spec/address"));
            // Only clusters that are looked at can say that a pod is gone; machines outside of them have entries too.
            let of_network: Vec<&Cluster> =
                scene.clusters.iter().filter(|known| !network.is_empty() && known.network() == network).collect();
            let machine = text(entry, "/metadata/annotations/istio.io~1autoRegistrationGroup");
            if of_network.is_empty() || address.is_empty() || !machine.is_empty() {
                continue;
            }
            let lives = of_network.iter().flat_map(|known| known.of(Kind::Pod)).any(|pod| {
                text(pod, "/status/podIP") == address
                    || list(pod, "/status/podIPs").any(|ip| text(ip, "/ip") == address)
            });
            let in_range = of_network.iter().any(|known| super::network::is_pod_address(known, address));
            if lives || !in_range {
                continue;
            }
            let (namespace, name) = (text(entry, "/metadata/namespace"), text(entry, "/metadata/name"));
            let finding = Finding::warning(
                "workloads",
                format!("no pod of network {network:?} has the address {address}"),
                format!("{}: workload entry {namespace}/{name}", cluster.context),
            );
            findings.push(finding.why("a share of connections to its services is dialled to where nobody is").repair(
                format!(
                    "kubectl --context {} -n {namespace} delete workloadentry {name} # --dry-run=server only looks",
                    cluster.context
                ),
            ));
        }
    }
    findings
}
