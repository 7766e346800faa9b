//! The key `causeway` as it is written. Field documentation here is what `causeway schema` prints.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Defaults, raw_entry};

/// What this node does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Node {
    /// Name of this node, as its workloads carry it; without it, NODE_NAME of the environment.
    #[serde(default)]
    pub(super) node: String,
    /// Name of the own cluster; without it, CLUSTER_ID of the environment.
    #[serde(default)]
    pub(super) cluster: String,
    /// Name of the own network; without it, NETWORK of the environment.
    #[serde(default)]
    pub(super) network: String,
    /// Own trust domain; without it, TRUST_DOMAIN of the environment, else cluster.local.
    #[serde(default)]
    pub(super) trust_domain: String,
    /// Domain of the cluster's service names; without it, CLUSTER_DOMAIN of the environment, else cluster.local.
    #[serde(default)]
    pub(super) cluster_domain: String,
    /// Where certificates come from; without it, from the authority of controlPlane.
    #[serde(default)]
    pub(super) identity: Identity,
    /// Istio's control plane.
    #[serde(default)]
    pub(super) control_plane: Option<ControlPlane>,
    /// Workloads of this node to bring under redirection.
    #[serde(default)]
    pub(super) enrol: Vec<Enrolment>,
    /// Further entry points of other networks.
    #[serde(default)]
    pub(super) gateways: Vec<GatewayEntry>,
    /// The east-west gateway role of this node.
    #[serde(default)]
    pub(super) gateway: Option<GatewayRole>,
    /// Services other networks may reach through the gateway role, "namespace/hostname"; "*" means all, "global" those that
    /// are labelled istio.io/global=true in the Kubernetes API of this cluster.
    #[serde(default)]
    pub(super) exports: Vec<String>,
    /// Trust domains of other networks.
    #[serde(default)]
    pub(super) trust: Vec<NetworkTrust>,
    /// What is never redirected.
    #[serde(default)]
    pub(super) exclusions: Exclusions,
    /// Plaintext that arrives at an enrolled workload.
    #[serde(default)]
    pub(super) plaintext_to_mesh: PlaintextToMesh,
    /// TCP connections of workloads to destinations that the mesh does not know.
    #[serde(default)]
    pub(super) outbound: OutboundMode,
    /// With outbound: registry-only, destinations outside the mesh that may be reached all the same.
    #[serde(default)]
    pub(super) outbound_allowed: Vec<AllowedRange>,
    /// Where connections to node ports come in.
    #[serde(default)]
    pub(super) entry: Option<raw_entry::Entry>,
    /// Services that are reached at a port of this node.
    #[serde(default)]
    pub(super) node_ports: Vec<raw_entry::NodePort>,
    /// Who is believed about the address of a client outside the mesh, for policies and the application; without it, nobody.
    #[serde(default)]
    pub(super) trusted_entries: raw_entry::TrustedEntries,
    /// Of the environment alone.
    #[serde(skip)]
    pub(super) preferred_namespace: String,
    /// The access log.
    #[serde(default)]
    pub(super) log: Log,
    /// A span for each connection, sent to a collector; without it, none.
    #[serde(default)]
    pub(super) traces: Option<Traces>,
}

/// Whether connections to destinations outside the mesh pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OutboundMode {
    #[default]
    AllowAny,
    RegistryOnly,
}

/// Destinations outside the mesh.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AllowedRange {
    /// An address or a range, as 203.0.113.0/24.
    pub(super) cidr: String,
    /// Ports; without them, all.
    #[serde(default)]
    pub(super) ports: Vec<u16>,
}

/// Where Istio's control plane is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ControlPlane {
    /// https://host:port of the server of resources.
    pub(super) address: String,
    /// https://host:port of the certificate authority.
    pub(super) ca_address: String,
    /// The name their certificates carry, if not the host of the address.
    pub(super) server_name: Option<String>,
    /// PEM file with the roots their certificates lead to.
    pub(super) root_cert: Option<String>,
    /// File with the token that says who this node is.
    pub(super) token: Option<String>,
    /// The cluster of the token.
    pub(super) cluster_id: String,
    /// Ask for what connections need instead of everything.
    pub(super) on_demand: bool,
    /// Control planes of peer clusters, whose resources are merged.
    pub(super) peers: Vec<ControlPlane>,
}

/// Either caDirectory, or certificates and roots.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Identity {
    /// Folder with ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem of an intermediate.
    #[serde(default)]
    pub(super) ca_directory: Option<String>,
    /// Ready-made certificates.
    #[serde(default)]
    pub(super) certificates: Vec<Certificate>,
    /// PEM file with the roots of the own trust domain.
    #[serde(default)]
    pub(super) roots: Option<String>,
    /// Life of certificates made from the intermediate or asked of the authority, as 24h, 90m or 30s.
    #[serde(default)]
    pub(super) ttl: Option<String>,
    /// PEM file with certificate revocation lists; it is watched.
    #[serde(default)]
    pub(super) crl: Option<String>,
}

/// Certificate of one identity.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Certificate {
    /// As spiffe://cluster.local/ns/default/sa/web.
    pub(super) identity: String,
    /// PEM file, leaf first.
    pub(super) chain: String,
    /// PEM file with the private key.
    pub(super) key: String,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum Existing {
    #[default]
    Keep,
    Close,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Enrolment {
    /// uid of the workload.
    pub(super) workload: String,
    /// Its network namespace: a name below /run/netns or a path.
    pub(super) netns: String,
    /// Path of its cgroup.
    #[serde(default)]
    pub(super) cgroup: Option<String>,
    /// Whether connections that are open at that time live on.
    #[serde(default)]
    pub(super) existing: Existing,
    /// Whether its DNS queries are captured; without it, they are, unless ISTIO_META_DNS_CAPTURE of the environment says
    /// otherwise.
    #[serde(default)]
    pub(super) dns: Option<bool>,
    /// Instead of the node's.
    #[serde(default)]
    pub(super) outbound: Option<OutboundMode>,
    /// Instead of the node's.
    #[serde(default)]
    pub(super) outbound_allowed: Option<Vec<AllowedRange>>,
}

impl Node {
    /// Puts in what the file leaves out.
    pub(super) fn fill(&mut self, defaults: &Defaults) {
        for (value, default) in [
            (&mut self.node, &defaults.node),
            (&mut self.cluster, &defaults.cluster),
            (&mut self.network, &defaults.network),
            (&mut self.trust_domain, &defaults.trust_domain),
            (&mut self.cluster_domain, &defaults.cluster_domain),
        ] {
            if value.is_empty() {
                value.clone_from(default);
            }
        }
        self.preferred_namespace.clone_from(&defaults.preferred_namespace);
        if let Some(defaults) = &defaults.entry {
            let entry = self.entry.get_or_insert_with(|| raw_entry::Entry::new(defaults, &self.trust_domain));
            entry.fill(defaults);
            let trusted = &mut self.trusted_entries;
            if trusted.identities.is_empty() && !defaults.pod_ranges.is_empty() {
                trusted.identities = vec![entry.identity.clone()];
                trusted.pod_ranges.clone_from(&defaults.pod_ranges);
            }
        }
        if self.identity.ttl.is_none() {
            self.identity.ttl = defaults.ttl.map(|ttl| format!("{}s", ttl.as_secs()));
        }
        for enrolment in &mut self.enrol {
            enrolment.dns.get_or_insert(defaults.dns);
        }
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GatewayEntry {
    pub(super) network: String,
    /// "ip:port" or "host:port".
    pub(super) addresses: Vec<String>,
    /// Who may answer there.
    pub(super) identities: Vec<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GatewayRole {
    /// "ip:port" to listen on.
    pub(super) listen: Vec<String>,
    /// Identity of the gateway.
    pub(super) identity: String,
    /// Identities believed about being a waypoint or gateway: an identity, a prefix ending in "*", or "any".
    #[serde(default)]
    pub(super) trusted_sources: Vec<String>,
    /// TLS connections that are passed on unread, by the name they ask for.
    #[serde(default)]
    pub(super) passthrough: Vec<Passthrough>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Passthrough {
    /// "ip:port" to listen on.
    pub(super) listen: String,
    /// Names that are passed on, as istiod.istio-system.svc; connections that ask for others are closed.
    pub(super) hosts: Vec<String>,
    /// "ip:port" or "host:port" that they are passed on to.
    pub(super) to: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NetworkTrust {
    pub(super) network: String,
    pub(super) trust_domains: Vec<TrustedDomain>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TrustedDomain {
    pub(super) name: String,
    /// PEM file with its roots.
    pub(super) roots: String,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Exclusions {
    /// Destination ports of outbound connections.
    pub(super) ports: Vec<u16>,
    /// Destination ranges of outbound connections.
    pub(super) cidrs: Vec<String>,
    /// Ports of inbound connections.
    pub(super) inbound_ports: Vec<u16>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum PlaintextToMesh {
    #[default]
    Allow,
    Refuse,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Log {
    /// Without it, what LOG_FORMAT says, else text.
    pub(super) format: Option<LogFormat>,
    /// Share of the connections that succeed which have a line, 0 to 1. Failures always have one.
    pub(super) sample: f64,
    /// Which connections have a line.
    pub(super) connections: Lines,
    /// The same by namespace of the pod that is enrolled here, at a gateway of the service.
    pub(super) namespaces: std::collections::BTreeMap<String, Lines>,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: None, sample: 1.0, connections: Lines::All, namespaces: Default::default() }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) enum Lines {
    /// None at all.
    Off,
    /// Those that failed.
    Errors,
    /// Those that failed, and the share of the others.
    #[default]
    All,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Traces {
    /// Where an OpenTelemetry collector takes OTLP over HTTP, as "http://127.0.0.1:4318".
    pub(super) endpoint: String,
    /// Share of the connections that begin here which have a span, 0 to 1; without it, all.
    #[serde(default = "all")]
    pub(super) sample: f64,
}

fn all() -> f64 {
    1.0
}
