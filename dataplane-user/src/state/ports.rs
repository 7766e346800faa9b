//! Port mappings and memberships, in forms that many workloads share.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A mapping of service ports to target ports. Few distinct ones exist, so copies share one allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Ports(Arc<[(u16, u16)]>);

impl Ports {
    /// The target port of a service port.
    #[must_use]
    pub fn get(&self, port: &u16) -> Option<&u16> {
        let at = self.0.binary_search_by_key(port, |(service, _)| *service).ok()?;
        self.0.get(at).map(|(_, target)| target)
    }

    /// Whether the service port is mapped.
    #[must_use]
    pub fn contains_key(&self, port: &u16) -> bool {
        self.get(port).is_some()
    }

    /// Pairs of service port and target port, by service port.
    pub fn iter(&self) -> impl Iterator<Item = (&u16, &u16)> {
        self.0.iter().map(|(service, target)| (service, target))
    }

    /// The service ports, in order.
    pub fn keys(&self) -> impl Iterator<Item = &u16> {
        self.0.iter().map(|(service, _)| service)
    }

    /// Number of mapped ports.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no port is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn allocation(&self) -> &Arc<[(u16, u16)]> {
        &self.0
    }
}

impl From<BTreeMap<u16, u16>> for Ports {
    fn from(map: BTreeMap<u16, u16>) -> Self {
        Self(map.into_iter().collect())
    }
}

/// The services a workload belongs to, `namespace/hostname`, each with the workload's own mapping of ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memberships(Box<[(Arc<str>, Ports)]>);

impl Memberships {
    /// The own mapping of ports for a service.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Ports> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(at).map(|(_, ports)| ports)
    }

    /// Whether it belongs to a service.
    #[must_use]
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Keys of the services, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|(key, _)| key)
    }

    /// Keys with mappings, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Ports)> {
        self.0.iter().map(|(key, ports)| (key, ports))
    }
}

impl From<BTreeMap<Arc<str>, Ports>> for Memberships {
    fn from(map: BTreeMap<Arc<str>, Ports>) -> Self {
        Self(map.into_iter().collect())
    }
}
