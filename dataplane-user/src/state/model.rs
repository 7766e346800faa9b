//! An immutable snapshot of the mesh with its indexes.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Cidr, GatewayAddress, NodeConfig, Policy, PolicyScope, Protocol, Service, Workload, normal_host};
use crate::identity::SpiffeId;

/// Port of a gateway whose record does not say one.
const DEFAULT_GATEWAY_PORT: u16 = 15008;

/// A workload as a member of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own mapping of service port to target port.
    pub ports: BTreeMap<u16, u16>,
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

#[derive(Debug, Default)]
struct ServiceEntry {
    service: Option<Arc<Service>>,
    endpoints: Vec<Endpoint>,
}

/// The mesh as one node knows it. Lookups never allocate and never scan the mesh.
#[derive(Debug)]
pub struct Model {
    /// What this node does.
    pub node: NodeConfig,
    workloads: BTreeMap<Arc<str>, Arc<Workload>>,
    by_ip: HashMap<Arc<str>, HashMap<IpAddr, Arc<Workload>>>,
    by_hostname: HashMap<Arc<str>, Arc<Workload>>,
    services: HashMap<Arc<str>, ServiceEntry>,
    by_vip: HashMap<Arc<str>, HashMap<IpAddr, Arc<Service>>>,
    by_cidr: HashMap<Arc<str>, Vec<(Cidr, Arc<Service>)>>,
    by_host: HashMap<Arc<str>, Vec<Arc<Service>>>,
    policies: BTreeMap<Arc<str>, Arc<Policy>>,
    mesh_policies: Vec<Arc<Policy>>,
    namespace_policies: HashMap<Arc<str>, Vec<Arc<Policy>>>,
    gateways: HashMap<Arc<str>, Vec<Gateway>>,
}

impl Model {
    /// Builds all indexes. Of two records with one key the later wins; sources that must not have such report them first.
    #[must_use]
    pub fn new(node: NodeConfig, workloads: Vec<Workload>, services: Vec<Service>, policies: Vec<Policy>) -> Self {
        let mut model = Self {
            node,
            workloads: BTreeMap::new(),
            by_ip: HashMap::new(),
            by_hostname: HashMap::new(),
            services: HashMap::new(),
            by_vip: HashMap::new(),
            by_cidr: HashMap::new(),
            by_host: HashMap::new(),
            policies: BTreeMap::new(),
            mesh_policies: Vec::new(),
            namespace_policies: HashMap::new(),
            gateways: HashMap::new(),
        };
        for workload in workloads {
            model.workloads.insert(workload.uid.clone(), Arc::new(workload));
        }
        for service in services {
            let entry = model.services.entry(service.key.clone()).or_default();
            entry.service = Some(Arc::new(service));
        }
        for policy in policies {
            model.policies.insert(policy.key.clone(), Arc::new(policy));
        }
        model.index_services();
        model.index_workloads();
        model.index_policies();
        model.index_gateways();
        model
    }

    fn index_services(&mut self) {
        let mut services: Vec<_> = self.services.values().filter_map(|entry| entry.service.clone()).collect();
        // "The first of several" must not depend on the order of a hash map.
        services.sort_by(|a, b| a.key.cmp(&b.key));
        for service in services {
            for vip in &service.vips {
                let network = self.by_vip.entry(vip.network.clone()).or_default();
                network.insert(vip.ip, service.clone());
            }
            for vip in &service.cidr_vips {
                let network = self.by_cidr.entry(vip.network.clone()).or_default();
                network.push((vip.range, service.clone()));
            }
            let named = self.by_host.entry(service.hostname.clone()).or_default();
            named.push(service);
        }
    }

    fn index_workloads(&mut self) {
        for workload in self.workloads.values() {
            if !workload.host_network {
                let network = self.by_ip.entry(workload.network.clone()).or_default();
                for ip in &workload.ips {
                    match network.get(ip) {
                        Some(known) if !outranks(workload, known, &self.node.cluster) => {}
                        _ => {
                            network.insert(*ip, workload.clone());
                        }
                    }
                }
            }
            if !workload.hostname.is_empty() {
                self.by_hostname.insert(workload.hostname.clone(), workload.clone());
            }
            for (key, ports) in &workload.services {
                let Some(entry) = self.services.get_mut(key) else {
                    continue;
                };
                let wanted = entry
                    .service
                    .as_ref()
                    .is_some_and(|service| workload.healthy || service.load_balancing.allow_unhealthy);
                if wanted {
                    entry.endpoints.push(Endpoint { workload: workload.clone(), ports: ports.clone() });
                }
            }
        }
    }

    fn index_policies(&mut self) {
        for policy in self.policies.values() {
            match policy.scope {
                PolicyScope::Global => self.mesh_policies.push(policy.clone()),
                PolicyScope::Namespace => {
                    self.namespace_policies.entry(policy.namespace.clone()).or_default().push(policy.clone())
                }
                PolicyScope::WorkloadSelector => {}
            }
        }
    }

    fn index_gateways(&mut self) {
        for workload in self.workloads.values().filter(|w| w.is_network_gateway()) {
            // NetworkGateway/<network>/<address>/<port>: the port is nowhere else in the record.
            let port = workload
                .uid
                .rsplit('/')
                .next()
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .unwrap_or(DEFAULT_GATEWAY_PORT);
            let mut addresses: Vec<_> =
                workload.ips.iter().map(|ip| GatewayAddress::Ip(SocketAddr::new(*ip, port))).collect();
            if addresses.is_empty() && !workload.hostname.is_empty() {
                addresses.push(GatewayAddress::Host(workload.hostname.to_string(), port));
            }
            let network = self.gateways.entry(workload.network.clone()).or_default();
            network.extend(addresses.into_iter().map(|address| Gateway {
                address,
                identities: vec![workload.identity.clone()],
                workload: Some(workload.clone()),
            }));
        }
        for entry in &self.node.gateways {
            let network = self.gateways.entry(entry.network.clone()).or_default();
            for address in &entry.addresses {
                match network.iter_mut().find(|known| known.address == *address) {
                    Some(known) => known.identities.extend(entry.identities.iter().cloned()),
                    None => network.push(Gateway {
                        address: address.clone(),
                        identities: entry.identities.clone(),
                        workload: None,
                    }),
                }
            }
        }
    }

    /// A workload by its uid.
    #[must_use]
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// All workloads, by uid.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The workload that an address in a network means. Of several: a pod's record, then one of the own cluster, then one
    /// that speaks HBONE.
    #[must_use]
    pub fn workload_by_ip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.by_ip.get(network)?.get(&ip.to_canonical())
    }

    /// A workload by its host name.
    #[must_use]
    pub fn workload_by_hostname(&self, hostname: &str) -> Option<&Arc<Workload>> {
        self.by_hostname.get(hostname)
    }

    /// A service by namespace and host name.
    #[must_use]
    pub fn service(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.by_host.get(hostname)?.iter().find(|service| &*service.namespace == namespace)
    }

    /// A service by its key, `namespace/hostname`.
    #[must_use]
    pub fn service_by_key(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key)?.service.as_ref()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().filter_map(|e| e.service.as_ref())
    }

    /// The service that an address in a network means to a client: an exact virtual address first, then ranges (client's
    /// namespace, then the longest prefix, then canonical).
    #[must_use]
    pub fn service_by_vip(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let exact = self
            .by_vip
            .get(network)
            .and_then(|vips| vips.get(&ip))
            .filter(|service| service.visible_to(client_namespace));
        if exact.is_some() {
            return exact;
        }
        self.by_cidr
            .get(network)?
            .iter()
            .filter(|(range, service)| range.contains(ip) && service.visible_to(client_namespace))
            // Of equals the first wins, and `max_by_key` would take the last.
            .rev()
            .max_by_key(|(range, service)| (&*service.namespace == client_namespace, range.prefix(), service.canonical))
            .map(|(_, service)| service)
    }

    /// The service with exactly this virtual address, whoever may see it.
    #[must_use]
    pub fn service_with_vip(&self, network: &str, ip: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(network)?.get(&ip.to_canonical())
    }

    /// The service that a host name means to a client: its own namespace's, then a canonical one, then the first.
    #[must_use]
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let named = match self.by_host.get(hostname) {
            Some(named) => named,
            None => self.by_host.get(normal_host(hostname).as_str())?,
        };
        named
            .iter()
            .filter(|service| service.visible_to(client_namespace))
            .rev()
            .max_by_key(|service| (&*service.namespace == client_namespace, service.canonical))
    }

    /// All services of a host name, by namespace.
    #[must_use]
    pub fn services_by_host(&self, hostname: &str) -> &[Arc<Service>] {
        self.by_host.get(hostname).map(Vec::as_slice).unwrap_or_default()
    }

    /// Members of a service that may be used as far as their health goes, by uid.
    #[must_use]
    pub fn endpoints(&self, service: &Service) -> &[Endpoint] {
        self.services.get(&service.key).map(|entry| entry.endpoints.as_slice()).unwrap_or_default()
    }

    /// A policy by its key, `namespace/name`.
    #[must_use]
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// All policies, by key.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The policies that concern a workload: mesh-wide, of its namespace, and those it lists.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        let namespace = self.namespace_policies.get(&workload.namespace);
        let listed = workload
            .policies
            .iter()
            .filter_map(|key| self.policies.get(key))
            .filter(|policy| policy.scope == PolicyScope::WorkloadSelector);
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

/// Which of two records an address means.
fn outranks(new: &Workload, known: &Workload, own_cluster: &str) -> bool {
    let rank = |workload: &Workload| {
        (workload.uid.contains("//Pod/"), &*workload.cluster == own_cluster, workload.protocol == Protocol::Hbone)
    };
    rank(new) > rank(known)
}

#[cfg(test)]
mod tests;
