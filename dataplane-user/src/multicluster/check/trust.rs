//! Trust domains as each side believes them, and authorities against every root.

use super::{Scene, linked};
use crate::multicluster::certificates::{Authorities, Authority};
use crate::multicluster::facts::Cluster;
use crate::multicluster::finding::Finding;
use crate::multicluster::names::{REMOTE, TRUST_DOMAIN};

/// From this many seconds before its end an authority is worth a warning.
const SOON: i64 = 30 * 86_400;

/// Trust domains that contradict each other.
pub(super) fn domains(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for cluster in &scene.clusters {
        let domain = cluster.trust_domain();
        for agent in cluster.agents() {
            let Some(told) = agent.settings.get("TRUST_DOMAIN").filter(|told| **told != domain) else { continue };
            let (namespace, name) = agent.name.split_once('/').unwrap_or_default();
            let finding = Finding::error(
                "trust",
                format!("TRUST_DOMAIN of the agent is {told:?}, istiod's is {domain:?}"),
                format!("{}: daemon set {}", cluster.context, agent.name),
            );
            findings.push(
                finding
                    .why("certificates the agent asks for are refused, and those of its own pods are not recognised")
                    .repair(format!(
                        "kubectl --context {} -n {namespace} set env daemonset/{name} TRUST_DOMAIN={domain}",
                        cluster.context
                    )),
            );
        }
    }
    for (from, to) in linked(scene) {
        let domain = to.trust_domain();
        let gateways = from.gateways(REMOTE).into_iter().filter(|gateway| gateway.cluster == to.label());
        for gateway in gateways.filter(|gateway| !gateway.trust_domain.is_empty() && gateway.trust_domain != domain) {
            let (namespace, name) = gateway.name.split_once('/').unwrap_or_default();
            let finding = Finding::error(
                "trust",
                format!(
                    "{} believes that {} is in trust domain {:?}; it is in {domain:?}",
                    from.context, to.context, gateway.trust_domain
                ),
                format!("{}: gateway {}", from.context, gateway.name),
            );
            findings.push(
                finding.why("the gateway proves another identity than the one expected: connections end at outer-tls").repair(
                    format!(
                        "kubectl --context {} -n {namespace} annotate gateway {name} {TRUST_DOMAIN}={domain} --overwrite",
                        from.context
                    ),
                ),
            );
        }
        if from.trust_domain() != domain && !aliases(from).contains(&domain) {
            let finding = Finding::warning(
                "trust",
                format!("{} is in trust domain {:?}, {} in {domain:?}", from.context, from.trust_domain(), to.context),
                format!("{}: config map {}/istio", from.context, from.istio_namespace),
            );
            findings.push(
                finding
                    .why("istiod publishes identities of other clusters under its own trust domain: each node needs to be told the other, with its roots")
                    .repair(format!(
                        "{} # to keep both: name the other under trust in the model file of every node (causeway schema)",
                        to.istiod_upgrade(&format!("meshConfig.trustDomain={}", from.trust_domain()))
                    )),
            );
        }
    }
    findings
}

fn aliases(cluster: &Cluster) -> Vec<String> {
    let mesh = cluster.mesh().unwrap_or_default();
    let aliases = mesh.get("trustDomainAliases").and_then(serde_json::Value::as_array);
    aliases.into_iter().flatten().filter_map(|alias| alias.as_str().map(str::to_owned)).collect()
}

/// Authorities that lead to no root of another cluster, or whose time is not now.
pub(super) fn certificates(scene: &Scene) -> Vec<Finding> {
    let known: Vec<(&Cluster, Authorities)> =
        scene.clusters.iter().map(|cluster| (cluster, Authorities::of(cluster))).collect();
    let mut findings = Vec::new();
    for (cluster, own) in &known {
        let place = format!("{}: {}", cluster.context, own.source);
        for broken in &own.broken {
            let finding = Finding::error("certificates", format!("a certificate cannot be read: {broken}"), &place);
            findings.push(finding.why("istiod does not start with it").repair(replace(cluster)));
        }
        let all = own.signing.iter().chain(&own.between).chain(&own.roots);
        findings.extend(all.filter_map(|authority| at_its_time(cluster, authority, &place, scene.now)));
        for (other, theirs) in known.iter().filter(|(other, _)| other.uid() != cluster.uid()) {
            let (Some(signing), false) = (&own.signing, theirs.roots.is_empty()) else { continue };
            if !own.lead_to(&theirs.roots) {
                let roots: Vec<&str> = theirs.roots.iter().map(|root| root.sha256.as_str()).collect();
                let finding = Finding::error(
                    "certificates",
                    format!(
                        "the authority of {} (SHA-256 {}) leads to no root of {} (SHA-256 {})",
                        cluster.context,
                        signing.sha256,
                        other.context,
                        roots.join(", ")
                    ),
                    &place,
                );
                findings.push(finding.why("pods of the two refuse each other's certificates").repair(replace(cluster)));
            }
        }
    }
    findings
}

fn at_its_time(cluster: &Cluster, authority: &Authority, place: &str, now: i64) -> Option<Finding> {
    let days = (authority.not_after - now) / 86_400;
    let named = format!("{} (SHA-256 {})", authority.subject, authority.sha256);
    let finding = if now >= authority.not_after {
        Finding::error("certificates", format!("{named} expired {} days ago", -days), place)
            .why("every certificate it signed is refused")
    } else if now < authority.not_before {
        Finding::error("certificates", format!("{named} is not valid yet"), place)
            .why("every certificate it signed is refused")
    } else if authority.not_after - now < SOON {
        Finding::warning("certificates", format!("{named} expires in {days} days"), place).why(
            "a rotation without failures needs the old and the new root to overlap for as long as certificates live",
        )
    } else {
        return None;
    };
    Some(finding.repair(replace(cluster)))
}

/// How a cluster gets another authority.
fn replace(cluster: &Cluster) -> String {
    let (context, namespace) = (&cluster.context, &cluster.istio_namespace);
    format!(
        "kubectl --context {context} -n {namespace} create secret generic cacerts --from-file=ca-cert.pem --from-file=ca-key.pem \
         --from-file=cert-chain.pem --from-file=root-cert.pem --dry-run=client -o yaml | kubectl --context {context} replace --force -f - \
         # causeway ca makes the files"
    )
}
