//! Changes of a snapshot that nobody else sees yet.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Addresses, DEFAULT_GATEWAY_PORT, Endpoint, Gateway, Held, Model, Several, Shards};
use crate::state::{GatewayAddress, NodeConfig, Policy, PolicyScope, Protocol, Service, Workload};

/// What one update changes in the members of services; applied once per service at its end.
#[derive(Default)]
pub(in crate::state) struct Changes {
    members: HashMap<Arc<str>, BTreeMap<Arc<str>, Option<Endpoint>>>,
    gateways: bool,
    policies: bool,
}

impl Model {
    /// Sets or removes the workload of a uid.
    pub(in crate::state) fn set_workload(&mut self, uid: &str, new: Option<Held<Workload>>, changes: &mut Changes) {
        let old = match &new {
            Some(held) => self.workloads.insert(held.value.uid.clone(), held.clone()),
            None => self.workloads.remove(uid),
        };
        let new = new.map(|held| held.value);
        let old = old.map(|held| held.value);
        if let Some(old) = &old {
            self.unindex_workload(old, new.as_deref());
            for key in old.services.keys() {
                changes.members.entry(key.clone()).or_default().insert(old.uid.clone(), None);
            }
            if old.is_network_gateway() {
                Arc::make_mut(&mut self.gateway_records).remove(&old.uid);
                changes.gateways = true;
            }
        }
        let Some(new) = new else {
            return;
        };
        self.index_workload(&new);
        for (key, ports) in new.services.iter() {
            let endpoint = Endpoint { workload: new.clone(), ports: ports.clone() };
            changes.members.entry(key.clone()).or_default().insert(new.uid.clone(), Some(endpoint));
        }
        if new.is_network_gateway() {
            Arc::make_mut(&mut self.gateway_records).insert(new.uid.clone(), new);
            changes.gateways = true;
        }
    }

    fn network(&mut self, name: &Arc<str>) -> &mut Addresses {
        Arc::make_mut(&mut self.networks).entry(name.clone()).or_default()
    }

    fn index_workload(&mut self, workload: &Arc<Workload>) {
        let cluster = self.node.cluster.clone();
        let order = |a: &Workload, b: &Workload| by_rank(a, b, &cluster);
        if !workload.host_network && !workload.ips.is_empty() {
            let network = self.network(&workload.network);
            for ip in &workload.ips {
                put(&mut network.workloads, *ip, workload, |known| known.uid == workload.uid, order);
            }
        }
        if !workload.hostname.is_empty() {
            let host = workload.hostname.clone();
            put(&mut self.by_hostname, host, workload, |known| known.uid == workload.uid, order);
        }
    }

    /// Takes a workload out of the indexes, except from where its successor will take its place.
    fn unindex_workload(&mut self, old: &Workload, new: Option<&Workload>) {
        let same = |known: &Workload| known.uid == old.uid;
        if !old.host_network {
            let kept = new.filter(|new| !new.host_network && new.network == old.network);
            let gone = old.ips.iter().filter(|ip| !kept.is_some_and(|new| new.ips.contains(ip)));
            let gone: Vec<_> = gone.collect();
            if !gone.is_empty() {
                let network = self.network(&old.network);
                for ip in gone {
                    take(&mut network.workloads, ip, same);
                }
                self.forget_if_empty(&old.network);
            }
        }
        if !old.hostname.is_empty() && new.is_none_or(|new| new.hostname != old.hostname) {
            take(&mut self.by_hostname, &old.hostname, same);
        }
    }

    fn forget_if_empty(&mut self, network: &Arc<str>) {
        let empty =
            |network: &Addresses| network.workloads.is_empty() && network.vips.is_empty() && network.ranges.is_empty();
        if self.networks.get(network).is_some_and(empty) {
            Arc::make_mut(&mut self.networks).remove(network);
        }
    }

    /// Sets or removes the service of a key.
    pub(in crate::state) fn set_service(&mut self, key: &Arc<str>, new: Option<Held<Service>>, changes: &mut Changes) {
        let old = self.held_service(key).map(|held| held.value.clone());
        let same = |known: &Service| known.key == *key;
        if let Some(old) = &old {
            for vip in &old.vips {
                take(&mut self.network(&vip.network).vips, &vip.ip, same);
                self.forget_if_empty(&vip.network);
            }
            for vip in &old.cidr_vips {
                self.network(&vip.network).ranges.remove(vip.range, key);
                self.forget_if_empty(&vip.network);
            }
            if new.as_ref().is_none_or(|new| new.value.hostname != old.hostname) {
                take(&mut self.by_host, &old.hostname, same);
            }
        }
        if let Some(Held { value: new, .. }) = &new {
            let by_key = |a: &Service, b: &Service| a.key.cmp(&b.key);
            for vip in &new.vips {
                put(&mut self.network(&vip.network).vips, vip.ip, new, same, by_key);
            }
            for vip in &new.cidr_vips {
                self.network(&vip.network).ranges.insert(vip.range, new);
            }
            put(&mut self.by_host, new.hostname.clone(), new, same, by_key);
        }
        self.service_count = self.service_count + usize::from(new.is_some()) - usize::from(old.is_some());
        match self.services.get_mut(key) {
            Some(entry) => entry.service = new,
            None => {
                let entry = super::ServiceEntry { service: new, ..Default::default() };
                self.services.insert(key.clone(), entry);
            }
        }
        // Which members are usable depends on the service, so they are looked at again.
        changes.members.entry(key.clone()).or_default();
    }

    /// Sets or removes the policy of a key.
    pub(in crate::state) fn set_policy(&mut self, key: &str, new: Option<Held<Policy>>, changes: &mut Changes) {
        let policies = Arc::make_mut(&mut self.policies);
        match new {
            Some(held) => policies.insert(held.value.key.clone(), held),
            None => policies.remove(key),
        };
        changes.policies = true;
    }

    /// Brings what is derived from several objects up to date.
    pub(in crate::state) fn settle(&mut self, changes: Changes) {
        for (key, changed) in changes.members {
            self.settle_members(&key, changed);
        }
        if changes.gateways {
            self.index_gateways();
        }
        if changes.policies {
            self.index_policies();
        }
    }

    fn settle_members(&mut self, key: &Arc<str>, changed: BTreeMap<Arc<str>, Option<Endpoint>>) {
        if !self.services.contains_key(&**key) {
            self.services.insert(key.clone(), super::ServiceEntry::default());
        }
        let Some(entry) = self.services.get_mut(&**key) else {
            return;
        };
        if !changed.is_empty() {
            entry.members = merged(&entry.members, changed);
        }
        entry.usable = match &entry.service {
            None => Arc::default(),
            Some(held) if held.value.load_balancing.allow_unhealthy => entry.members.clone(),
            Some(_) if entry.members.iter().all(|member| member.workload.healthy) => entry.members.clone(),
            Some(_) => entry.members.iter().filter(|member| member.workload.healthy).cloned().collect(),
        };
        if entry.service.is_none() && entry.members.is_empty() {
            self.services.remove(&**key);
        }
    }

    fn index_policies(&mut self) {
        let mut mesh = Vec::new();
        let mut namespaces: HashMap<Arc<str>, Vec<Arc<Policy>>> = HashMap::new();
        for policy in self.policies() {
            match policy.scope {
                PolicyScope::Global => mesh.push(policy.clone()),
                PolicyScope::Namespace | PolicyScope::Unreadable => {
                    namespaces.entry(policy.namespace.clone()).or_default().push(policy.clone());
                }
                PolicyScope::WorkloadSelector => {}
            }
        }
        self.mesh_policies = mesh.into();
        self.namespace_policies = Arc::new(namespaces);
    }

    /// Takes over what this node does. Indexes that depend on it are made anew.
    pub(in crate::state) fn set_node(&mut self, node: Arc<NodeConfig>) {
        let other_cluster = node.cluster != self.node.cluster;
        self.node = node;
        self.index_gateways();
        if other_cluster {
            // Which of several records of one address counts depends on the own cluster.
            let workloads: Vec<_> = self.workloads().cloned().collect();
            for workload in workloads {
                self.index_workload(&workload);
            }
        }
    }

    pub(super) fn index_gateways(&mut self) {
        let mut gateways: HashMap<Arc<str>, Vec<Gateway>> = HashMap::new();
        for workload in self.gateway_records.values() {
            let network = gateways.entry(workload.network.clone()).or_default();
            network.extend(addresses(workload).into_iter().map(|address| Gateway {
                address,
                identities: vec![workload.identity.clone()],
                workload: Some(workload.clone()),
            }));
        }
        for entry in &self.node.gateways {
            let network = gateways.entry(entry.network.clone()).or_default();
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
        self.gateways = Arc::new(gateways);
    }
}

/// Where a gateway's record says that it listens.
fn addresses(workload: &Workload) -> Vec<GatewayAddress> {
    // NetworkGateway/<network>/<address>/<port>: the port is nowhere else in the record.
    let port = workload.uid.rsplit('/').next().and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let port = port.unwrap_or(DEFAULT_GATEWAY_PORT);
    if workload.ips.is_empty() && !workload.hostname.is_empty() {
        return vec![GatewayAddress::Host(workload.hostname.to_string(), port)];
    }
    workload.ips.iter().map(|ip| GatewayAddress::Ip(SocketAddr::new(*ip, port))).collect()
}

/// The list of members, by uid, with changes made.
fn merged(members: &[Endpoint], changed: BTreeMap<Arc<str>, Option<Endpoint>>) -> Arc<[Endpoint]> {
    let mut merged = Vec::with_capacity(members.len() + changed.len());
    let mut members = members.iter().peekable();
    for (uid, change) in changed {
        while let Some(member) = members.next_if(|member| *member.workload.uid < *uid) {
            merged.push(member.clone());
        }
        members.next_if(|member| member.workload.uid == uid);
        merged.extend(change);
    }
    merged.extend(members.cloned());
    merged.into()
}

/// Of two records of one address the better first.
fn by_rank(a: &Workload, b: &Workload, own_cluster: &str) -> Ordering {
    let rank = |workload: &Workload| {
        (workload.uid.contains("//Pod/"), &*workload.cluster == own_cluster, workload.protocol == Protocol::Hbone)
    };
    rank(b).cmp(&rank(a)).then_with(|| a.uid.cmp(&b.uid))
}

fn put<K: std::hash::Hash + Eq + Clone, T>(
    index: &mut Shards<K, Several<T>>,
    key: K,
    item: &Arc<T>,
    same: impl Fn(&T) -> bool,
    order: impl Fn(&T, &T) -> Ordering,
) {
    let several = Several::with(index.get(&key), item.clone(), same, order);
    index.insert(key, several);
}

fn take<K: std::hash::Hash + Eq + Clone, T>(index: &mut Shards<K, Several<T>>, key: &K, same: impl Fn(&T) -> bool) {
    let Some(present) = index.get(key) else {
        return;
    };
    match present.without(same) {
        Some(rest) => {
            index.insert(key.clone(), rest);
        }
        None => {
            index.remove(key);
        }
    }
}
