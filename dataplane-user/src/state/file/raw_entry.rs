//! The keys about node ports as they are written. Field documentation here is what `causeway schema` prints.

use schemars::JsonSchema;
use serde::Deserialize;

use super::EntryDefaults;

/// Where connections to node ports come in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    /// In whose name clients from outside enter the mesh, as spiffe://cluster.local/ns/istio-system/sa/causeway.
    pub(super) identity: String,
    /// Path of the node's network namespace; without it, the daemon's own.
    #[serde(default)]
    pub(super) netns: Option<String>,
    /// Devices that connections arrive at; without them, those of the default routes.
    #[serde(default)]
    pub(super) uplinks: Vec<String>,
    /// The node's addresses; without them, those of the uplinks.
    #[serde(default)]
    pub(super) addresses: Vec<String>,
    /// Addresses that the cluster knows the node by; the devices that have them are uplinks too where none is named.
    #[serde(default)]
    pub(super) internal_addresses: Vec<String>,
}

impl Entry {
    /// The entry of a node whose file has none.
    pub(super) fn new(defaults: &EntryDefaults, trust_domain: &str) -> Self {
        Self {
            identity: defaults.identity(trust_domain),
            netns: None,
            uplinks: Vec::new(),
            addresses: Vec::new(),
            internal_addresses: Vec::new(),
        }
    }

    /// Takes over what the file leaves out.
    pub(super) fn fill(&mut self, defaults: &EntryDefaults) {
        self.netns.get_or_insert_with(|| defaults.netns.clone());
        for (own, default) in
            [(&mut self.uplinks, &defaults.uplinks), (&mut self.internal_addresses, &defaults.internal)]
        {
            if own.is_empty() {
                own.clone_from(default);
            }
        }
    }
}

/// Which endpoints clients from outside reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum ExternalTrafficPolicy {
    /// Those of all nodes and clusters.
    #[default]
    Cluster,
    /// Those of this node.
    Local,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

/// A port of every address of the node: either service with port, or gateway.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct NodePort {
    /// "namespace/hostname" of the service.
    #[serde(default)]
    pub(super) service: Option<String>,
    /// Port of the service.
    #[serde(default)]
    pub(super) port: Option<u16>,
    /// The east-west gateway of the own network instead of a service.
    #[serde(default)]
    pub(super) gateway: bool,
    /// The port of the node.
    pub(super) node_port: u16,
    /// Which endpoints clients from outside reach.
    #[serde(default)]
    pub(super) external_traffic_policy: ExternalTrafficPolicy,
    /// With externalTrafficPolicy: Local, where load balancers ask by HTTP whether this node has endpoints.
    #[serde(default)]
    pub(super) health_check_node_port: Option<u16>,
    /// Families of the node's addresses that have the port; without them, both.
    #[serde(default)]
    pub(super) families: Vec<Family>,
}

/// Who is believed about the address of a client outside the mesh.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct TrustedEntries {
    /// Identities of entries: an identity, or a prefix ending in "*".
    pub(super) identities: Vec<String>,
    /// Ranges of this cluster's pods: an address in them is never believed.
    pub(super) pod_ranges: Vec<String>,
}
