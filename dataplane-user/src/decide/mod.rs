//! Routing, load balancing and policy: pure functions over a snapshot of the mesh model.
//!
//! Nothing here waits, locks or logs. Each function returns a verdict with its reason; the order of its steps is that of
//! Istio's node proxy (`istio/ztunnel`: `src/proxy/outbound.rs`, `src/proxy/inbound.rs`, `src/rbac.rs`), so that both can
//! serve one mesh.

mod abroad;
mod balance;
mod entry;
mod gateway;
mod inbound;
mod nested;
mod outbound;
mod policy;
mod remote_pod;
mod waypoint;

pub use abroad::{Allotted, abroad, allotted};
pub use entry::{Caller, client, entry, entry_gateways, is_entered, local_endpoints};
pub use gateway::{GatewayTarget, SourceKind, gateway, gateway_from, still_exported};
pub use inbound::{InboundTarget, inbound};
pub use outbound::{DecideError, GatewayCandidate, HboneRoute, NamedRoute, NestedRoute, Outbound, outbound};
pub use policy::{PolicyContext, PolicyVerdict, policy};
pub use remote_pod::reserved;

pub use crate::state::GatewayAddress;

/// Port of HBONE on pods and gateways.
const HBONE_PORT: u16 = 15008;
/// Ports of our own listeners inside a pod: traffic to them would loop.
const OWN_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// What is known about the load and the state of endpoints.
pub trait LoadView {
    /// Open connections from here to a workload.
    fn open(&self, uid: &str) -> u32;
    /// Whether a workload failed so often lately that it is left out for a while.
    fn ejected(&self, uid: &str) -> bool;
}

/// Knows nothing: every endpoint is idle and in use.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLoad;

impl LoadView for NoLoad {
    fn open(&self, _uid: &str) -> u32 {
        0
    }
    fn ejected(&self, _uid: &str) -> bool {
        false
    }
}

/// A CONNECT request is answered with this status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{leg}: {status}: {reason}")]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The leg that failed.
    pub leg: &'static str,
    /// Why, for the access log.
    pub reason: String,
}

impl Refusal {
    fn new(status: u16, leg: &'static str, reason: impl Into<String>) -> Self {
        Self { status, leg, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests;
