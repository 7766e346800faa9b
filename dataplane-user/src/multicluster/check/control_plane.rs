//! Kinds, istiod's settings, readiness of pods, DNS.

use super::{Scene, no_istiod};
use crate::multicluster::facts::{Cluster, Kind, Unread};
use crate::multicluster::finding::Finding;
use crate::multicluster::objects::{full_name, label, list, text};

/// The release whose kinds are asked for where there are none.
const GATEWAY_API: &str =
    "https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.4.0/standard-install.yaml";

/// What could not be read.
pub(super) fn kinds(scene: &Scene) -> Vec<Finding> {
    let unread =
        scene.clusters.iter().flat_map(|cluster| cluster.unread.iter().map(move |(kind, why)| (cluster, kind, why)));
    unread
        .map(|(cluster, kind, why)| {
            let context = &cluster.context;
            match (why, kind) {
                (Unread::NoSuchKind, Kind::Gateway) => Finding::error(
                    "kinds",
                    "the kind Gateway of gateway.networking.k8s.io/v1 is not installed",
                    context,
                )
                .why("entry points are described by it: istiod finds none without")
                .repair(format!("kubectl --context {context} apply --server-side -f {GATEWAY_API}")),
                (Unread::NoSuchKind, kind) => {
                    Finding::error("kinds", format!("the kind {kind:?} of Istio is not installed"), context)
                        .why("istiod does not start following this cluster without it")
                        .repair(format!(
                            "helm upgrade --install istio-base istio/base --kube-context {context} -n {}",
                            cluster.istio_namespace
                        ))
                }
                (Unread::Forbidden(reason), kind) => {
                    Finding::warning("kinds", format!("objects of kind {kind:?} cannot be read: {reason}"), context)
                        .why("checks that look at them find nothing")
                        .repair(format!(
                            "kubectl --context {context} auth can-i --list # and use a context with that right"
                        ))
                }
            }
        })
        .collect()
}

/// istiod's settings.
pub(super) fn settings(scene: &Scene) -> Vec<Finding> {
    scene.clusters.iter().flat_map(of_istiod).collect()
}

fn of_istiod(cluster: &Cluster) -> Vec<Finding> {
    let Some(istiod) = cluster.istiod() else { return vec![no_istiod(cluster)] };
    let (context, namespace) = (&cluster.context, &cluster.istio_namespace);
    let place = format!("{context}: deployment {namespace}/{}", istiod.name);
    let set = |setting: &str| {
        format!("kubectl --context {context} -n {namespace} set env deployment/{} {setting}", istiod.name)
    };
    let is = |name: &str, value: &str| istiod.settings.get(name).is_some_and(|found| found == value);
    let mut findings = Vec::new();
    for (name, why) in [
        ("PILOT_ENABLE_AMBIENT", "istiod tells nothing to node agents without it"),
        ("AMBIENT_ENABLE_MULTI_NETWORK", "istiod publishes no gateway and no workload of another network without it"),
    ] {
        if !is(name, "true") {
            let finding = Finding::error("istiod", format!("{name} is not true"), &place);
            findings.push(finding.why(why).repair(set(&format!("{name}=true"))));
        }
    }
    if !is("ISTIO_MULTIROOT_MESH", "true") {
        let finding = Finding::warning("istiod", "ISTIO_MULTIROOT_MESH is not true", &place);
        findings.push(
            finding
                .why("istiod takes over a change of roots only when it is started again: a rotation cuts clusters from each other")
                .repair(set("ISTIO_MULTIROOT_MESH=true")),
        );
    }
    if is("ENABLE_PEERING_DISCOVERY", "true") {
        let finding = Finding::warning("istiod", "ENABLE_PEERING_DISCOVERY is true", &place);
        findings.push(
            finding
                .why("istiod learns of other clusters by two ways that contradict each other: peering and remote secrets")
                .repair(set("ENABLE_PEERING_DISCOVERY-")),
        );
    }
    if is("PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES", "false") {
        let finding = Finding::warning("istiod", "PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES is false", &place);
        findings.push(
            finding
                .why("services do not select workload entries: those of other machines are no endpoints")
                .repair(set("PILOT_ENABLE_K8S_SELECT_WORKLOAD_ENTRIES-")),
        );
    }
    let map = format!("{context}: config map {namespace}/istio");
    if let Some(broken) = cluster.mesh_error() {
        let finding = Finding::error("istiod", format!("the mesh configuration cannot be read: {broken}"), map);
        findings.push(
            finding
                .why("istiod goes on with what it knew before, and with nothing once it starts again")
                .repair(format!("kubectl --context {context} -n {namespace} edit configmap istio")),
        );
        return findings;
    }
    let scopes = cluster
        .mesh()
        .is_some_and(|mesh| list(&mesh, "/serviceScopeConfigs").any(|scope| text(scope, "/scope") == "GLOBAL"));
    if !scopes {
        let finding = Finding::error("istiod", "the mesh configuration calls no service global", map);
        findings.push(
            finding
                .why("no service is shared with other clusters, whatever its labels say")
                .repair(cluster.istiod_upgrade("profile=ambient")),
        );
    }
    findings
}

/// Pods that are not ready.
pub(super) fn pods(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for cluster in &scene.clusters {
        let context = &cluster.context;
        let restart = |kind: &str, name: &str| {
            let (namespace, name) = name.split_once('/').unwrap_or_default();
            format!("kubectl --context {context} -n {namespace} rollout restart {kind}/{name}")
        };
        let istiods = cluster.of(Kind::Deployment).iter().filter(|object| {
            label(object, "app") == "istiod" && text(object, "/metadata/namespace") == cluster.istio_namespace
        });
        for istiod in istiods {
            let count = |pointer: &str| istiod.pointer(pointer).and_then(serde_json::Value::as_u64);
            let (asked, ready) = (count("/spec/replicas").unwrap_or(1), count("/status/readyReplicas").unwrap_or(0));
            // Nobody wants none of them.
            let wanted = asked.max(1);
            if ready < wanted {
                let name = full_name(istiod);
                let (namespace, short) = name.split_once('/').unwrap_or_default();
                let repair = if asked == 0 {
                    format!("kubectl --context {context} -n {namespace} scale deployment/{short} --replicas=1")
                } else {
                    restart("deployment", &name)
                };
                let finding = Finding::error(
                    "pods",
                    format!("{ready} of {wanted} pods of istiod are ready"),
                    format!("{context}: deployment {name}"),
                );
                findings.push(finding.why("certificates are not renewed and changes are not told").repair(repair));
            }
        }
        for agent in cluster.agents() {
            let (wanted, ready) = agent.pods;
            if ready < wanted {
                let finding = Finding::error(
                    "pods",
                    format!("{ready} of {wanted} node agents are ready"),
                    format!("{context}: daemon set {}", agent.name),
                );
                findings.push(
                    finding
                        .why("pods of those nodes are refused connections")
                        .repair(restart("daemonset", &agent.name)),
                );
            }
        }
        for entry in cluster.entries() {
            let (ready, count) = cluster.behind(&entry);
            if ready.len() < count {
                let finding = Finding::warning(
                    "pods",
                    format!("{} of {count} gateway pods are ready", ready.len()),
                    format!("{context}: service {}", entry.name),
                );
                findings.push(finding.why("fewer ways into this network").repair(restart("deployment", &entry.name)));
            }
        }
    }
    findings
}

/// Agents that leave DNS alone.
pub(super) fn dns(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for cluster in &scene.clusters {
        for agent in cluster.agents() {
            if agent.settings.get("ISTIO_META_DNS_CAPTURE").is_some_and(|value| value == "false") {
                let (namespace, name) = agent.name.split_once('/').unwrap_or_default();
                let finding = Finding::warning(
                    "dns",
                    "DNS of pods is not captured",
                    format!("{}: daemon set {}", cluster.context, agent.name),
                );
                findings.push(
                    finding
                        .why("services that only other clusters have, and pods of headless ones, have no name here")
                        .repair(format!(
                            "kubectl --context {} -n {namespace} set env daemonset/{name} ISTIO_META_DNS_CAPTURE=true",
                            cluster.context
                        )),
                );
            }
        }
    }
    findings
}
