//! Where objects of the model come from.

use std::fmt;
use std::sync::Arc;

use super::{Policy, Service, Workload};

/// A source of objects. Of two that publish one key, the lower counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(u8);

impl SourceId {
    /// The own control plane.
    pub const CONTROL_PLANE: Self = Self(0);
    /// The model file of the node.
    pub const FILE: Self = Self(u8::MAX);

    /// The control plane of a peer, by its place in the configuration; nothing beyond the 254th.
    #[must_use]
    pub fn peer(index: usize) -> Option<Self> {
        u8::try_from(index).ok()?.checked_add(1).map(Self).filter(|id| *id != Self::FILE)
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::CONTROL_PLANE => f.write_str("the control plane"),
            Self::FILE => f.write_str("the model file"),
            Self(peer) => write!(f, "peer control plane {}", peer - 1),
        }
    }
}

/// What one source changes at once: readers see all of it or nothing. What is removed is removed first.
#[derive(Debug, Default)]
pub struct Update {
    /// New or changed workloads.
    pub workloads: Vec<Workload>,
    /// New or changed services.
    pub services: Vec<Service>,
    /// New or changed policies.
    pub policies: Vec<Policy>,
    /// Uids of workloads that are gone.
    pub removed_workloads: Vec<Arc<str>>,
    /// Keys of services that are gone.
    pub removed_services: Vec<Arc<str>>,
    /// Keys of policies that are gone.
    pub removed_policies: Vec<Arc<str>>,
}

/// What an update did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Objects that are different now.
    pub changed: usize,
    /// Whether a policy changed, or the identity or list of policies of a workload of this node: connections that were
    /// allowed may no longer be.
    pub authorization: bool,
    /// Keys that another source publishes too, said for the first time; the second source counts.
    pub shadowed: Vec<(Arc<str>, SourceId)>,
}
