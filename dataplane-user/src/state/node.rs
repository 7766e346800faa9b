//! What one node or gateway is configured to do: the `causeway` key of the model file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Cidr, Egress, Entry, Locality, Memberships, NodePort, Protocol, Telemetry, TrustedEntries, Workload};
use crate::identity::{SpiffeId, StoreConfig};

/// A dialable gateway address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayAddress {
    /// An address.
    Ip(SocketAddr),
    /// A host name, resolved on every dial, and a port.
    Host(String, u16),
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => write!(f, "{address}"),
            Self::Host(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// What happens to connections that are open when a workload is enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExistingConnections {
    /// They live on untouched.
    #[default]
    Keep,
    /// They are closed.
    Close,
}

/// A workload to bring under redirection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// Its uid.
    pub workload: Arc<str>,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Inode of that namespace, where it is known: another one at the same path is not the workload's.
    pub inode: Option<u64>,
    /// Addresses that it must have; empty where nobody has said.
    pub ips: Vec<IpAddr>,
    /// Its service account, where somebody has said it before the control plane knows the workload.
    pub service_account: Option<Arc<str>>,
    /// Path of its cgroup.
    pub cgroup: Option<PathBuf>,
    /// Connections open at that time.
    pub existing: ExistingConnections,
    /// Whether its DNS queries are captured.
    pub dns: bool,
}

impl Enrolment {
    /// The workload as a client, as far as it follows from where it runs: what the control plane will say of it, without what
    /// only that knows. `None` without a service account, or for a uid that is no pod's.
    #[must_use]
    pub fn client(&self, node: &NodeConfig) -> Option<Workload> {
        let account = self.service_account.clone()?;
        let mut parts = self.workload.split('/');
        let (cluster, _, kind, namespace, name) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if kind != "Pod" || cluster != &*node.cluster || parts.next().is_some() {
            return None;
        }
        Some(Workload {
            uid: self.workload.clone(),
            name: name.into(),
            namespace: namespace.into(),
            identity: SpiffeId::new(node.trust_domain(), namespace, &account).ok()?,
            service_account: account,
            trust_domain: node.trust_domain().into(),
            network: node.network.clone(),
            cluster: node.cluster.clone(),
            node: node.node.clone(),
            ips: self.ips.clone(),
            hostname: "".into(),
            protocol: Protocol::Tcp,
            waypoint: None,
            network_gateway: None,
            application_tunnel: None,
            policies: Vec::new(),
            healthy: true,
            locality: Locality::default(),
            capacity: 1,
            host_network: false,
            services: Memberships::default(),
            workload_name: name.into(),
            workload_type: "pod".into(),
            canonical_name: name.into(),
            canonical_revision: "latest".into(),
            native_tunnel: false,
            extensions: Box::default(),
        })
    }
}

/// Further entry points of another network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayEntry {
    /// The network.
    pub network: Arc<str>,
    /// Where.
    pub addresses: Vec<GatewayAddress>,
    /// Who answers there.
    pub identities: Vec<SpiffeId>,
}

/// An identity that may say what kind of proxy it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceMatch {
    /// Anybody.
    Any,
    /// This one.
    Exact(SpiffeId),
    /// All whose name begins so.
    Prefix(Arc<str>),
}

impl SourceMatch {
    /// Whether the identity is meant.
    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == id,
            Self::Prefix(prefix) => id.as_str().starts_with(&**prefix),
        }
    }
}

/// The east-west gateway role of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRole {
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// Its identity.
    pub identity: SpiffeId,
    /// Who is believed about being a waypoint or a gateway.
    pub trusted_sources: Vec<SourceMatch>,
    /// TLS connections that it passes on unread.
    pub passthrough: Vec<Passthrough>,
}

/// TLS connections that a gateway passes on by the name they ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passthrough {
    /// Where they come in.
    pub listen: SocketAddr,
    /// Names that are passed on.
    pub hosts: Vec<String>,
    /// Where they go.
    pub to: GatewayAddress,
}

/// Services that the gateway role may forward to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exports {
    /// All that have an endpoint in the own network.
    All,
    /// Those with these keys.
    Named(BTreeSet<Arc<str>>),
    /// Those, and all that clusters share.
    Shared {
        /// Those with these keys, shared or not.
        named: BTreeSet<Arc<str>>,
        /// Keys of what clusters share, as the Kubernetes API has told; `None` before it has.
        shared: Option<BTreeSet<Arc<str>>>,
    },
}

impl Exports {
    /// Whether a service may be reached from other networks.
    #[must_use]
    pub fn contains(&self, service_key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(keys) => keys.contains(service_key),
            Self::Shared { named, shared } => {
                named.contains(service_key) || shared.as_ref().is_some_and(|keys| keys.contains(service_key))
            }
        }
    }

    /// Keys that are known; none where all services are meant.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        let (named, shared) = match self {
            Self::All => (None, None),
            Self::Named(keys) => (Some(keys), None),
            Self::Shared { named, shared } => (Some(named), shared.as_ref()),
        };
        named.into_iter().chain(shared).flatten()
    }

    /// Whether somebody still has to say what is exported.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        matches!(self, Self::Shared { shared: None, .. })
    }
}

/// A trust domain of a peer with its roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedDomain {
    /// Name.
    pub name: String,
    /// PEM file.
    pub roots: PathBuf,
}

/// The trust domains accepted from workloads of another network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkTrust {
    /// The network.
    pub network: Arc<str>,
    /// Its trust domains.
    pub domains: Vec<TrustedDomain>,
}

/// What is never redirected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exclusions {
    /// Destination ports of outbound connections.
    pub ports: Vec<u16>,
    /// Destination ranges of outbound connections.
    pub cidrs: Vec<Cidr>,
    /// Ports of inbound connections.
    pub inbound_ports: Vec<u16>,
}

/// Plaintext that arrives at an enrolled workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlaintextToMesh {
    /// Delivered unless a policy refuses it.
    #[default]
    Allow,
    /// Refused.
    Refuse,
}

/// Where Istio's control plane is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControlPlane {
    /// `https://host:port` of the server of resources; empty if there is none.
    pub address: String,
    /// `https://host:port` of the certificate authority; empty if there is none.
    pub ca_address: String,
    /// The name their certificates carry, if not the host of the address.
    pub server_name: Option<String>,
    /// PEM file with the roots their certificates lead to.
    pub root_cert: Option<PathBuf>,
    /// File with the token that says who this node is.
    pub token: Option<PathBuf>,
    /// The cluster of the token.
    pub cluster_id: String,
    /// Ask for what connections need instead of everything.
    pub on_demand: bool,
    /// Control planes of peer clusters, whose resources are merged; on equal keys the own one counts, then the first.
    pub peers: Vec<ControlPlane>,
}

/// What this node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of the node, as workloads carry it.
    pub node: Arc<str>,
    /// Own cluster.
    pub cluster: Arc<str>,
    /// Own network.
    pub network: Arc<str>,
    /// Domain of the cluster's service names, normalised.
    pub cluster_domain: Arc<str>,
    /// Certificates and the own trust domain.
    pub identity: StoreConfig,
    /// Workloads to bring under redirection.
    pub enrol: Vec<Enrolment>,
    /// Further entry points of other networks.
    pub gateways: Vec<GatewayEntry>,
    /// The gateway role, if this node has it.
    pub gateway: Option<GatewayRole>,
    /// What the gateway role may forward to.
    pub exports: Exports,
    /// Trust domains of other networks.
    pub trust: Vec<NetworkTrust>,
    /// What is never redirected.
    pub exclusions: Exclusions,
    /// Plaintext that arrives at an enrolled workload.
    pub plaintext_to_mesh: PlaintextToMesh,
    /// The namespace whose service a name means that several have, if none of them is the client's or canonical; may be empty.
    pub preferred_namespace: Arc<str>,
    /// Destinations outside the mesh.
    pub egress: Egress,
    /// The same for workloads whose enrolment says something else, by uid.
    pub egress_of: BTreeMap<Arc<str>, Egress>,
    /// Istio's control plane, if there is one.
    pub control_plane: Option<ControlPlane>,
    /// Where connections to node ports come in, if there are any.
    pub entry: Option<Entry>,
    /// Services reached at a port of this node.
    pub node_ports: Vec<NodePort>,
    /// Who is believed about clients outside the mesh.
    pub trusted_entries: TrustedEntries,
    /// Access log and spans.
    pub telemetry: Telemetry,
}

impl NodeConfig {
    /// What holds for a workload's destinations outside the mesh, and whether its own enrolment says so.
    #[must_use]
    pub fn egress(&self, uid: &str) -> (&Egress, bool) {
        self.egress_of.get(uid).map_or((&self.egress, false), |own| (own, true))
    }

    /// The own trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.identity.trust_domain
    }

    /// Names of the trust domains accepted from a network, besides the own.
    #[must_use]
    pub fn trusted_domains(&self, network: &str) -> Vec<String> {
        self.trust
            .iter()
            .filter(|trust| &*trust.network == network)
            .flat_map(|trust| trust.domains.iter().map(|domain| domain.name.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::path::Path;

    use super::*;
    use crate::state::file;

    #[test]
    fn a_pod_is_known_as_a_client_by_where_it_runs() {
        let text = "causeway: {node: n1, cluster: east, network: net1, trustDomain: td, controlPlane: {}}";
        let node = file::parse(text, Path::new("m.yaml")).unwrap().node;
        let enrolment = |workload: &str, account: Option<&str>| Enrolment {
            workload: workload.into(),
            netns: "/proc/7/ns/net".into(),
            inode: Some(1),
            ips: Vec::new(),
            service_account: account.map(Into::into),
            cgroup: None,
            existing: ExistingConnections::Keep,
            dns: true,
        };
        let client = enrolment("east//Pod/shop/web-0", Some("web")).client(&node).unwrap();
        assert_eq!(client.identity.to_string(), "spiffe://td/ns/shop/sa/web");
        assert_eq!((&*client.network, &*client.node, client.protocol), ("net1", "n1", Protocol::Tcp));
        for (workload, account) in [
            ("east//Pod/shop/web-0", None),
            ("west//Pod/shop/web-0", Some("web")),
            ("east/networking.istio.io/WorkloadEntry/shop/web-0", Some("web")),
            ("east//Pod/shop/web-0/more", Some("web")),
            ("web", Some("web")),
        ] {
            assert_eq!(enrolment(workload, account).client(&node), None, "{workload} {account:?}");
        }
    }
}
