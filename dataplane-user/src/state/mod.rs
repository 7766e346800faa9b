//! The mesh model: workloads, services, policies, and the file it is read from.
//!
//! A [`Model`] is an immutable snapshot with its indexes; [`ModelStore`] holds the newest one. Field names follow the
//! resources that istiod publishes to node proxies (`istio.workload` and `istio.security`).

mod cidr;
pub mod file;
mod model;
mod node;
mod policy;
mod service;
mod store;
mod workload;

pub use cidr::{Cidr, CidrError};
pub use model::{Endpoint, Gateway, Model};
pub use node::{
    Enrolment, Exclusions, ExistingConnections, Exports, GatewayAddress, GatewayEntry, GatewayRole, NetworkTrust,
    NodeConfig, PlaintextToMesh, SourceMatch, TrustedDomain,
};
pub use policy::{Action, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};
pub use service::{
    CidrVip, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress, Scope, Service, Visibility, WeightedWaypoint,
};
pub use store::ModelStore;
pub use workload::{ApplicationTunnel, Destination, GatewayRef, Locality, Protocol, TunnelKind, Workload};

/// Host names compare in lower case and without a trailing dot.
#[must_use]
pub fn normal_host(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
