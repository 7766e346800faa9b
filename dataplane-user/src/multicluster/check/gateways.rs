//! Entry points, what answers there, and links that lead elsewhere.

use super::{Scene, addressed, linked, no_address};
use crate::multicluster::facts::Cluster;
use crate::multicluster::finding::Finding;
use crate::multicluster::names::{EAST_WEST, GATEWAY, GATEWAY_NAMESPACE, HBONE_PORT, REMOTE};
use crate::multicluster::probe::Answer;

/// Entry points that others cannot use.
pub(super) fn gateways(scene: &Scene) -> Vec<Finding> {
    let reached: Vec<&str> = linked(scene).into_iter().map(|(_, to)| to.context.as_str()).collect();
    let mut findings = Vec::new();
    for cluster in &scene.clusters {
        let context = &cluster.context;
        let (gateways, entries) = (cluster.gateways(EAST_WEST), cluster.entries());
        let by_node_port = entries.iter().any(|entry| entry.kind == "NodePort");
        if gateways.is_empty() && !by_node_port {
            let place = format!("{context}: namespace {}", cluster.gateway_namespace);
            let finding = if reached.contains(&context.as_str()) {
                Finding::error("gateway", "other clusters are linked to this one, and it has no entry point", place)
            } else {
                Finding::warning("gateway", "the cluster has no entry point", place)
            };
            findings.push(
                finding
                    .why("other clusters cannot call its services")
                    .repair(format!("causeway multicluster expose --context {context}")),
            );
        }
        for gateway in &gateways {
            if gateway.addresses.is_empty() {
                findings.push(no_address(cluster, gateway));
            } else if let Some((false, message)) = &gateway.programmed {
                let finding = Finding::error(
                    "gateway",
                    format!("the gateway is not programmed: {message}"),
                    format!("{context}: gateway {}", gateway.name),
                );
                findings.push(
                    finding.why("istiod does not stand behind its addresses").repair(addressed(cluster, gateway)),
                );
            }
        }
        for entry in &entries {
            let (ready, count) = cluster.behind(entry);
            if ready.is_empty() {
                let finding = Finding::error(
                    "gateway",
                    format!("none of {count} pods behind the entry point is ready"),
                    format!("{context}: service {}", entry.name),
                );
                findings.push(
                    finding.why("connections of other clusters end at outer-tcp").repair(cluster.start_gateways()),
                );
            }
        }
    }
    findings
}

/// What was found behind addresses.
pub(super) fn probes(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    for probe in &scene.probes {
        let Some(cluster) = scene.clusters.iter().find(|cluster| cluster.context == probe.context) else { continue };
        let target = if probe.address.contains(':') {
            format!("[{}]:{}", probe.address, probe.port)
        } else {
            format!("{}:{}", probe.address, probe.port)
        };
        let error = |what: String| Finding::error("probe", what, format!("{}: {target}", probe.context));
        let account =
            cluster.gateways(EAST_WEST).first().map_or_else(|| GATEWAY.to_owned(), |gateway| gateway.account.clone());
        let namespace = &cluster.gateway_namespace;
        let finding = match &probe.answer {
            Answer::Unreachable(reason) => error(format!("TCP does not connect: {reason}"))
                .why("connections of other clusters end at outer-tcp")
                .repair(format!(
                    "nc -vz {} {} # let TCP port {} pass in firewalls and security groups; if only this machine cannot reach it: --skip-probe",
                    probe.address, probe.port, probe.port
                )),
            Answer::NoTls(reason) => error(format!("TCP connects, TLS does not: {reason}"))
                .why("connections of other clusters end at outer-tls")
                .repair(format!("kubectl --context {} -n {namespace} logs deployment/{GATEWAY}", probe.context)),
            Answer::Presented(None) => error("what answers presents no SPIFFE identity".to_owned())
                .why("something else than a gateway of the mesh holds this address")
                .repair(format!("kubectl --context {} -n {namespace} get service,endpointslices", probe.context)),
            Answer::Presented(Some(id)) => {
                let expected = format!("spiffe://{}/ns/{namespace}/sa/{account}", cluster.trust_domain());
                if id.as_str() == expected {
                    continue;
                }
                error(format!("what answers is {id}, expected {expected}"))
                    .why("other clusters refuse a gateway that proves another identity than the published one")
                    .repair(format!("causeway multicluster expose --context {}", probe.context))
            }
        };
        findings.push(finding);
    }
    findings
}

/// Links that lead nowhere or elsewhere.
pub(super) fn peers(scene: &Scene) -> Vec<Finding> {
    linked(scene).into_iter().flat_map(|(from, to)| of_link(from, to)).collect()
}

fn of_link(from: &Cluster, to: &Cluster) -> Vec<Finding> {
    let name = to.label();
    let link = to.link_from(from);
    let own: Vec<_> = to.gateways(EAST_WEST);
    let remote: Vec<_> = from
        .gateways(REMOTE)
        .into_iter()
        .filter(|gateway| gateway.network == to.network() || gateway.cluster == name)
        .collect();
    let entry = to.entries().into_iter().find(|entry| entry.kind == "NodePort");
    let mut findings = Vec::new();
    if own.is_empty() && remote.is_empty() {
        let finding = Finding::error(
            "peers",
            format!("{} reads {} and has no way into its network", from.context, to.context),
            format!("{}: secret for {name}", from.context),
        );
        findings
            .push(finding.why("services of that cluster have endpoints that cannot be reached").repair(link.clone()));
    }
    for gateway in &remote {
        let place = format!("{}: gateway {}", from.context, gateway.name);
        let node_port = entry.as_ref().and_then(|entry| Some((entry, entry.node_port?)));
        let expected =
            format!("{GATEWAY_NAMESPACE}/{}", own.first().map_or(GATEWAY, |gateway| gateway.account.as_str()));
        let namespace = gateway.name.split('/').next().unwrap_or_default();
        if gateway.network != to.network() {
            let finding = Finding::error(
                "peers",
                format!("it is labelled with network {:?}; {} is in {:?}", gateway.network, to.context, to.network()),
                &place,
            );
            findings.push(finding.why("the gateway is used for a network that is not behind it").repair(link.clone()));
        }
        if format!("{namespace}/{}", gateway.account) != expected && to.gateway_namespace == GATEWAY_NAMESPACE {
            let finding = Finding::error(
                "peers",
                format!(
                    "it expects the account {namespace}/{}; the gateway of {} is {expected}",
                    gateway.account, to.context
                ),
                &place,
            );
            findings.push(
                finding
                    .why("the gateway proves another identity than the one expected: connections end at outer-tls")
                    .repair(link.clone()),
            );
        }
        if gateway.port != HBONE_PORT && !own.is_empty() {
            let finding = Finding::error(
                "peers",
                format!("it names node port {}, and {} also has a gateway object of its own", gateway.port, to.context),
                &place,
            );
            findings.push(
                finding
                    .why("istiod publishes the addresses of both, those of the other cluster's object with port 15008")
                    .repair(format!("causeway multicluster expose --context {} --node-port", to.context)),
            );
        } else if let (Some((entry, port)), true) = (node_port, gateway.ours && gateway.port != HBONE_PORT) {
            let now = [to.node_addresses(entry, "InternalIP"), to.node_addresses(entry, "ExternalIP")].concat();
            let gone: Vec<&str> =
                gateway.wanted.iter().filter(|address| !now.contains(address)).map(String::as_str).collect();
            if !gone.is_empty() || port != gateway.port {
                let what = if port == gateway.port {
                    format!("no gateway of {} runs at {}", to.context, gone.join(", "))
                } else {
                    format!("it names node port {}; that of {} is {port}", gateway.port, to.context)
                };
                let finding = Finding::error("peers", what, &place);
                findings.push(
                    finding.why("a share of new tunnels is dialled to where nobody listens").repair(link.clone()),
                );
            }
        }
        if gateway.addresses.is_empty() {
            let finding = Finding::error("peers", "its status holds no address", &place);
            findings.push(
                finding
                    .why("istiod publishes only addresses it has accepted; it does so for class istio-remote where it is multi-network")
                    .repair(format!("kubectl --context {} -n {} rollout restart deployment/istiod", from.context, from.istio_namespace)),
            );
        }
    }
    findings
}
