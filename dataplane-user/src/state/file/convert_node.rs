//! The key `causeway`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::convert::{Unique, cidr, gateway_address, identity, required, service_key, socket};
use super::convert_egress::{egress, egress_of};
use super::convert_entry::{self, Here};
use super::convert_telemetry::telemetry;
use super::locate::Place;
use super::{Problems, TRUST_DOMAIN, raw_node as raw};
use crate::identity::{CertificateFiles, CertificateSource, SpiffeId, StoreConfig};
use crate::state::{
    ControlPlane, Enrolment, Exclusions, ExistingConnections, Exports, GatewayEntry, GatewayRole, NetworkTrust,
    NodeConfig, Passthrough, PlaintextToMesh, SourceMatch, TrustedDomain, normal_host,
};

/// Life of leaf certificates without a setting, as in Istio.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);
/// Shorter lives leave no time to renew; longer ones are mistakes.
const TTL_RANGE: std::ops::RangeInclusive<u64> = 10..=10 * 365 * 24 * 3600;
/// Stands for all services that the Kubernetes API says clusters share.
pub(super) const SHARED: &str = "global";
/// Where `ip netns add` keeps its names.
const NETNS_DIRECTORY: &str = "/run/netns";

pub(super) fn node(raw: &raw::Node, base: &Path, problems: &mut Problems) -> Option<NodeConfig> {
    let place = Place::root().key("causeway");
    let trust_domain = match raw.trust_domain.as_str() {
        "" => TRUST_DOMAIN,
        name => name,
    };
    trust_domain_name(trust_domain, &place.key("trustDomain"), problems);
    let control_plane = raw.control_plane.as_ref().map(|plane| control_plane(plane, base));
    let identity = store(&raw.identity, control_plane.is_some(), trust_domain, base, &place.key("identity"), problems);
    if raw.control_plane.as_ref().is_some_and(|plane| plane.on_demand) && raw.exports.iter().any(|text| text == "*") {
        problems.add(
            &place.key("exports"),
            "exports all services of a mesh that is known on demand only",
            "name each service: what is not named is never asked for",
        );
    }
    let role = raw.gateway.as_ref().map(|role| gateway_role(role, trust_domain, &place.key("gateway"), problems));
    let here = Here { node: &raw.node, cluster: &raw.cluster, network: &raw.network, trust_domain, base };
    let entry = raw.entry.as_ref().map(|entry| convert_entry::entry(entry, &here, &place.key("entry"), problems));
    Some(NodeConfig {
        node: required(&raw.node, &place.key("node"), problems),
        cluster: raw.cluster.as_str().into(),
        network: raw.network.as_str().into(),
        cluster_domain: match raw.cluster_domain.as_str() {
            "" => "cluster.local".into(),
            name => normal_host(name).into(),
        },
        identity: identity?,
        enrol: enrolments(&raw.enrol, base, &place.key("enrol"), problems),
        gateways: gateways(&raw.gateways, &place.key("gateways"), problems),
        gateway: role.flatten(),
        exports: exports(&raw.exports, &place.key("exports"), problems),
        trust: trust(&raw.trust, base, &place.key("trust"), problems),
        exclusions: Exclusions {
            ports: raw.exclusions.ports.clone(),
            cidrs: raw
                .exclusions
                .cidrs
                .iter()
                .enumerate()
                .filter_map(|(index, text)| {
                    let place = place.key("exclusions").key("cidrs").index(index);
                    cidr(text, &place, problems)
                })
                .collect(),
            inbound_ports: raw.exclusions.inbound_ports.clone(),
        },
        plaintext_to_mesh: match raw.plaintext_to_mesh {
            raw::PlaintextToMesh::Allow => PlaintextToMesh::Allow,
            raw::PlaintextToMesh::Refuse => PlaintextToMesh::Refuse,
        },
        preferred_namespace: raw.preferred_namespace.as_str().into(),
        egress: egress(raw.outbound, &raw.outbound_allowed, &place, problems),
        egress_of: egress_of(raw, &place.key("enrol"), problems),
        control_plane,
        node_ports: convert_entry::node_ports(&raw.node_ports, entry.is_some(), &place.key("nodePorts"), problems),
        entry: entry.flatten(),
        trusted_entries: convert_entry::trusted_entries(&raw.trusted_entries, &place.key("trustedEntries"), problems),
        telemetry: telemetry(raw, &place, problems),
    })
}

fn control_plane(raw: &raw::ControlPlane, base: &Path) -> ControlPlane {
    ControlPlane {
        address: raw.address.clone(),
        ca_address: raw.ca_address.clone(),
        server_name: raw.server_name.clone(),
        root_cert: raw.root_cert.as_ref().map(|path| base.join(path)),
        token: raw.token.as_ref().map(|path| base.join(path)),
        cluster_id: raw.cluster_id.clone(),
        on_demand: raw.on_demand,
        peers: raw.peers.iter().map(|peer| control_plane(peer, base)).collect(),
    }
}

fn trust_domain_name(name: &str, place: &Place, problems: &mut Problems) {
    if SpiffeId::new(name, "n", "s").is_err() {
        problems.add(
            place,
            format!("{name:?} is not a trust domain"),
            "write a name of letters, digits, '.', '_' and '-', as cluster.local",
        );
    }
}

fn store(
    raw: &raw::Identity,
    asks_authority: bool,
    trust_domain: &str,
    base: &Path,
    place: &Place,
    problems: &mut Problems,
) -> Option<StoreConfig> {
    let ttl = match &raw.ttl {
        None => DEFAULT_TTL,
        Some(text) => duration(text).filter(|ttl| TTL_RANGE.contains(&ttl.as_secs())).unwrap_or_else(|| {
            problems.add(
                &place.key("ttl"),
                format!("{text:?} is not a time from 10s to 10 years"),
                "write it as 24h, 90m or 30s",
            );
            DEFAULT_TTL
        }),
    };
    let source = match (&raw.ca_directory, &raw.roots, raw.certificates.as_slice()) {
        (Some(directory), None, []) => CertificateSource::Directory(base.join(directory)),
        (None, Some(roots), certificates @ [_, ..]) => CertificateSource::Files {
            certificates: certificates
                .iter()
                .enumerate()
                .filter_map(|(index, entry)| {
                    let place = place.key("certificates").index(index).key("identity");
                    Some(CertificateFiles {
                        identity: identity(&entry.identity, &place, problems)?,
                        chain: base.join(&entry.chain),
                        key: base.join(&entry.key),
                    })
                })
                .collect(),
            roots: base.join(roots),
        },
        (None, None, []) if asks_authority => CertificateSource::Authority,
        _ => {
            problems.add(
                place,
                "needs either caDirectory, or certificates together with roots, or controlPlane beside it",
                "write caDirectory: <folder made by \"causeway ca\">",
            );
            return None;
        }
    };
    Some(StoreConfig {
        source,
        trust_domain: trust_domain.to_owned(),
        ttl,
        revocation: raw.crl.as_ref().map(|path| base.join(path)),
    })
}

fn duration(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

fn enrolments(raw: &[raw::Enrolment], base: &Path, place: &Place, problems: &mut Problems) -> Vec<Enrolment> {
    let mut workloads = Unique::default();
    let mut namespaces = Unique::default();
    raw.iter()
        .enumerate()
        .map(|(index, entry)| {
            let place = place.index(index);
            workloads.check(&entry.workload, &place.key("workload"), "workload", problems);
            namespaces.check(&entry.netns, &place.key("netns"), "network namespace", problems);
            required(&entry.netns, &place.key("netns"), problems);
            Enrolment {
                workload: entry.workload.as_str().into(),
                netns: if entry.netns.contains('/') {
                    base.join(&entry.netns)
                } else {
                    Path::new(NETNS_DIRECTORY).join(&entry.netns)
                },
                inode: None,
                ips: Vec::new(),
                service_account: None,
                cgroup: entry.cgroup.as_ref().map(PathBuf::from),
                existing: match entry.existing {
                    raw::Existing::Keep => ExistingConnections::Keep,
                    raw::Existing::Close => ExistingConnections::Close,
                },
                dns: entry.dns.unwrap_or(true),
            }
        })
        .collect()
}

fn gateways(raw: &[raw::GatewayEntry], place: &Place, problems: &mut Problems) -> Vec<GatewayEntry> {
    raw.iter()
        .enumerate()
        .map(|(index, entry)| {
            let place = place.index(index);
            for (field, empty) in
                [("addresses", entry.addresses.is_empty()), ("identities", entry.identities.is_empty())]
            {
                if empty {
                    problems.add(&place.key(field), "is empty", "name at least one");
                }
            }
            let addresses = entry
                .addresses
                .iter()
                .enumerate()
                .filter_map(|(index, text)| gateway_address(text, &place.key("addresses").index(index), problems));
            let addresses = addresses.collect();
            let identities = entry
                .identities
                .iter()
                .enumerate()
                .filter_map(|(index, text)| identity(text, &place.key("identities").index(index), problems));
            let identities = identities.collect();
            GatewayEntry { network: entry.network.as_str().into(), addresses, identities }
        })
        .collect()
}

fn gateway_role(
    raw: &raw::GatewayRole,
    trust_domain: &str,
    place: &Place,
    problems: &mut Problems,
) -> Option<GatewayRole> {
    if raw.listen.is_empty() {
        problems.add(&place.key("listen"), "is empty", "name at least one ip:port");
    }
    let listen = raw
        .listen
        .iter()
        .enumerate()
        .filter_map(|(index, text)| socket(text, &place.key("listen").index(index), problems))
        .collect();
    let id = identity(&raw.identity, &place.key("identity"), problems)?;
    if id.trust_domain() != trust_domain {
        problems.add(
            &place.key("identity"),
            format!("{id} is not of the own trust domain {trust_domain}"),
            "use an identity of trustDomain",
        );
    }
    let mut trusted_sources = Vec::new();
    for (index, text) in raw.trusted_sources.iter().enumerate() {
        let place = place.key("trustedSources").index(index);
        if text == "any" {
            trusted_sources.push(SourceMatch::Any);
        } else if let Some(prefix) = text.strip_suffix('*') {
            trusted_sources.push(SourceMatch::Prefix(prefix.into()));
        } else {
            trusted_sources.extend(identity(text, &place, problems).map(SourceMatch::Exact));
        }
    }
    let place = place.key("passthrough");
    let ways = raw.passthrough.iter().enumerate();
    let passthrough = ways.filter_map(|(index, way)| passthrough(way, &place.index(index), problems)).collect();
    Some(GatewayRole { listen, identity: id, trusted_sources, passthrough })
}

fn passthrough(raw: &raw::Passthrough, place: &Place, problems: &mut Problems) -> Option<Passthrough> {
    if raw.hosts.is_empty() {
        problems.add(&place.key("hosts"), "is empty", "name what may be asked for, as istiod.istio-system.svc");
    }
    let listen = socket(&raw.listen, &place.key("listen"), problems);
    let to = gateway_address(&raw.to, &place.key("to"), problems);
    Some(Passthrough { listen: listen?, hosts: raw.hosts.iter().map(|host| normal_host(host)).collect(), to: to? })
}

fn exports(raw: &[String], place: &Place, problems: &mut Problems) -> Exports {
    if raw.iter().any(|text| text == "*") {
        return Exports::All;
    }
    let names = raw.iter().enumerate().filter(|(_, text)| *text != SHARED);
    let named = names.filter_map(|(index, text)| service_key(text, &place.index(index), problems)).collect();
    if raw.iter().any(|text| text == SHARED) { Exports::Shared { named, shared: None } } else { Exports::Named(named) }
}

fn trust(raw: &[raw::NetworkTrust], base: &Path, place: &Place, problems: &mut Problems) -> Vec<NetworkTrust> {
    let mut networks = Unique::default();
    raw.iter()
        .enumerate()
        .map(|(index, entry)| {
            let place = place.index(index);
            networks.check(&entry.network, &place.key("network"), "network", problems);
            let domains = entry.trust_domains.iter().enumerate().map(|(index, domain)| {
                let place = place.key("trustDomains").index(index).key("name");
                trust_domain_name(&domain.name, &place, problems);
                TrustedDomain { name: domain.name.clone(), roots: base.join(&domain.roots) }
            });
            NetworkTrust { network: entry.network.as_str().into(), domains: domains.collect() }
        })
        .collect()
}
