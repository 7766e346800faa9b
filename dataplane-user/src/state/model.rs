//! An immutable snapshot of the mesh with its indexes.

mod index;

pub(super) use index::Changes;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::ranges::Ranges;
use super::several::Several;
use super::shards::Shards;
use super::{GatewayAddress, NodeConfig, Policy, PolicyScope, Ports, Service, SourceId, Update, Workload, normal_host};
use crate::identity::SpiffeId;

/// Port of a gateway whose record does not say one.
const DEFAULT_GATEWAY_PORT: u16 = 15008;

/// A workload as a member of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own mapping of service port to target port.
    pub ports: Ports,
}

/// An entry point of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Where.
    pub address: GatewayAddress,
    /// Who may answer there.
    pub identities: Vec<SpiffeId>,
    /// The record that describes it, unless it was configured by hand.
    pub workload: Option<Arc<Workload>>,
}

/// What is held of one key, and who said so.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) value: Arc<T>,
    pub(super) source: SourceId,
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), source: self.source }
    }
}

/// A service with its members. Members may come before the service they name.
#[derive(Debug, Clone, Default)]
struct ServiceEntry {
    service: Option<Held<Service>>,
    /// All, by uid.
    members: Arc<[Endpoint]>,
    /// Those that may be used as far as their health goes; the same list when that is all.
    usable: Arc<[Endpoint]>,
}

/// What addresses mean in one network.
#[derive(Debug, Clone, Default)]
struct Addresses {
    workloads: Shards<IpAddr, Several<Workload>>,
    vips: Shards<IpAddr, Several<Service>>,
    ranges: Ranges,
}

/// The mesh as one node knows it. Lookups never allocate and never scan the mesh. A copy shares everything, so that the next
/// snapshot costs what it changes.
#[derive(Debug, Clone)]
pub struct Model {
    /// What this node does.
    pub node: Arc<NodeConfig>,
    /// Whether everything that is waited for at start has arrived; until then nothing may be decided.
    pub synced: bool,
    pub(super) workloads: Shards<Arc<str>, Held<Workload>>,
    services: Shards<Arc<str>, ServiceEntry>,
    service_count: usize,
    pub(super) policies: Arc<BTreeMap<Arc<str>, Held<Policy>>>,
    networks: Arc<HashMap<Arc<str>, Addresses>>,
    by_hostname: Shards<Arc<str>, Several<Workload>>,
    by_host: Shards<Arc<str>, Several<Service>>,
    mesh_policies: Arc<[Arc<Policy>]>,
    namespace_policies: Arc<HashMap<Arc<str>, Vec<Arc<Policy>>>>,
    /// Workloads that describe a gateway, by uid.
    gateway_records: Arc<BTreeMap<Arc<str>, Arc<Workload>>>,
    gateways: Arc<HashMap<Arc<str>, Vec<Gateway>>>,
}

/// How well a range fits: of the client's namespace, its prefix, canonical.
type Rank = (bool, u8, bool);

impl Model {
    /// A model of one source, the file. Of two records with one key the later wins; sources that must not have such report
    /// them first.
    #[must_use]
    pub fn new(
        node: impl Into<Arc<NodeConfig>>,
        workloads: Vec<Workload>,
        services: Vec<Service>,
        policies: Vec<Policy>,
    ) -> Self {
        let mut model = Self {
            node: node.into(),
            synced: true,
            workloads: Shards::default(),
            services: Shards::default(),
            service_count: 0,
            policies: Arc::default(),
            networks: Arc::default(),
            by_hostname: Shards::default(),
            by_host: Shards::default(),
            mesh_policies: Arc::default(),
            namespace_policies: Arc::default(),
            gateway_records: Arc::default(),
            gateways: Arc::default(),
        };
        model.index_gateways();
        let update = Update { workloads, services, policies, ..Update::default() };
        super::writer::Shadow::default().apply(&mut model, SourceId::FILE, update);
        model
    }

    /// A workload by its uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).map(|held| &held.value)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values().map(|held| &held.value)
    }

    /// Number of workloads.
    #[must_use]
    pub fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// The workload that an address in a network means. Of several: a pod's record, then one of the own cluster, then one
    /// that speaks HBONE.
    #[must_use]
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.networks.get(network)?.workloads.get(&ip.to_canonical())?.as_slice().first()
    }

    /// A workload by its host name.
    #[must_use]
    pub fn workload_by_hostname(&self, hostname: &str) -> Option<&Arc<Workload>> {
        self.by_hostname.get(hostname)?.as_slice().first()
    }

    /// A service by namespace and host name.
    #[must_use]
    pub fn service(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.services_by_host(hostname).iter().find(|service| &*service.namespace == namespace)
    }

    /// A service by its key, `namespace/hostname`.
    #[must_use]
    pub fn service_by_key(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key)?.service.as_ref().map(|held| &held.value)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.held_services().map(|held| &held.value)
    }

    pub(super) fn held_services(&self) -> impl Iterator<Item = &Held<Service>> {
        self.services.values().filter_map(|entry| entry.service.as_ref())
    }

    pub(super) fn held_service(&self, key: &str) -> Option<&Held<Service>> {
        self.services.get(key)?.service.as_ref()
    }

    /// Number of services.
    #[must_use]
    pub fn service_count(&self) -> usize {
        self.service_count
    }

    /// The service that an address in a network means to a client: an exact virtual address first (client's namespace, then
    /// canonical, then the first), then ranges (client's namespace, then the longest prefix, then canonical).
    #[must_use]
    pub fn service_by_vip(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let network = self.networks.get(network)?;
        if let Some(exact) = network.vips.get(&ip).and_then(|several| preferred(several.as_slice(), client_namespace)) {
            return Some(exact);
        }
        let mut best: Option<(Rank, &Arc<Service>)> = None;
        for (range, service) in network.ranges.containing(ip) {
            let rank = (&*service.namespace == client_namespace, range.prefix(), service.canonical);
            // Of equals the first wins.
            if service.visible_to(client_namespace) && best.is_none_or(|(known, _)| rank > known) {
                best = Some((rank, service));
            }
        }
        best.map(|(_, service)| service)
    }

    /// The service with exactly this virtual address, whoever may see it: a canonical one, else the first.
    #[must_use]
    pub fn service_with_vip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Service>> {
        let several = self.networks.get(network)?.vips.get(&ip.to_canonical())?.as_slice();
        several.iter().find(|service| service.canonical).or(several.first())
    }

    /// The service that a host name means to a client: its own namespace's, then a canonical one, then the first.
    #[must_use]
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let named = match self.by_host.get(hostname) {
            Some(named) => named,
            None => self.by_host.get(normal_host(hostname).as_str())?,
        };
        preferred(named.as_slice(), client_namespace)
    }

    /// All services of a host name, by namespace.
    #[must_use]
    pub fn services_by_host(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_host.get(hostname).map(Several::as_slice).unwrap_or_default()
    }

    /// Members of a service that may be used as far as their health goes, by uid.
    #[must_use]
    pub fn endpoints(&self, service: &Service) -> &[Endpoint] {
        self.services.get(&*service.key).map(|entry| &*entry.usable).unwrap_or_default()
    }

    /// The same list to keep: it never changes, and as long as the service's members do not, every snapshot hands out the
    /// very same allocation. Whoever derives something from it may keep that for as long as `Arc::ptr_eq` holds.
    #[must_use]
    pub fn endpoint_list(&self, service: &Service) -> Arc<[Endpoint]> {
        self.services.get(&*service.key).map(|entry| entry.usable.clone()).unwrap_or_default()
    }

    /// All members of a service, whatever their health, by uid.
    #[must_use]
    pub fn members(&self, service: &Service) -> &[Endpoint] {
        self.services.get(&*service.key).map(|entry| &*entry.members).unwrap_or_default()
    }

    /// A policy by its key, `namespace/name`.
    #[must_use]
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key).map(|held| &held.value)
    }

    /// All policies, by key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values().map(|held| &held.value)
    }

    /// The policies that concern a workload: mesh-wide, of its namespace, and those it lists.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        let namespace = self.namespace_policies.get(&workload.namespace);
        let listed = workload.policies.iter().filter_map(|key| self.policy(key)).filter(|policy| match policy.scope {
            PolicyScope::WorkloadSelector => true,
            // Those of its own namespace are among the namespace's.
            PolicyScope::Unreadable => policy.namespace != workload.namespace,
            PolicyScope::Global | PolicyScope::Namespace => false,
        });
        self.mesh_policies.iter().chain(namespace.into_iter().flatten()).chain(listed)
    }

    /// Keys of policies that a workload lists and nobody published.
    pub fn unknown_policies<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<str>> {
        workload.policies.iter().filter(|key| !self.policies.contains_key(*key))
    }

    /// Entry points of a network: those described by records first, then those configured.
    #[must_use]
    pub fn gateways(&self, network: &str) -> &[Gateway] {
        self.gateways.get(network).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Of several services the client's own namespace's, then a canonical one, then the first.
fn preferred<'a>(several: &'a [Arc<Service>], client_namespace: &str) -> Option<&'a Arc<Service>> {
    several
        .iter()
        .filter(|service| service.visible_to(client_namespace))
        .rev()
        // Of equals the first wins, and `max_by_key` would take the last.
        .max_by_key(|service| (&*service.namespace == client_namespace, service.canonical))
}

#[cfg(test)]
mod tests;
