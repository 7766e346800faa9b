//! Pods of services without virtual addresses, by name.

use std::sync::Arc;

use super::{Model, Service, Workload};

/// A pod in another network, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodName {
    /// Key of its service, `namespace/hostname`.
    pub service: Arc<str>,
    /// Name of the pod.
    pub pod: Arc<str>,
    /// Network it is in, if it exists.
    pub network: Arc<str>,
}

/// A pod that a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedPod<'a> {
    /// It may be used.
    Ready(&'a Arc<Workload>),
    /// It is there and not ready; its name is its own all the same.
    NotReady,
}

impl Service {
    /// Whether its name means its pods and each of them has a name of its own.
    #[must_use]
    pub fn is_headless(&self) -> bool {
        self.vips.is_empty()
    }
}

impl Model {
    /// The pod of this name among the endpoints that a service has in a network.
    #[must_use]
    pub fn named_pod(&self, service: &Service, pod: &str, network: &str) -> Option<NamedPod<'_>> {
        let is = |workload: &Workload| *workload.network == *network && *workload.name == *pod;
        if let Some(endpoint) = self.endpoints(service).iter().find(|endpoint| is(&endpoint.workload)) {
            return Some(NamedPod::Ready(&endpoint.workload));
        }
        self.members(service).iter().any(|member| is(&member.workload)).then_some(NamedPod::NotReady)
    }
}
