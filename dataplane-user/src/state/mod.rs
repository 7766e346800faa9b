//! The mesh model: workloads, services, policies, and the file it is read from.
//!
//! A [`Model`] is an immutable snapshot with its indexes; [`ModelStore`] holds the newest one and merges what its sources
//! publish. Field names follow the
//! resources that istiod publishes to node proxies (`istio.workload` and `istio.security`).

mod cidr;
mod egress;
pub mod file;
mod headless;
mod intern;
mod model;
mod node;
mod node_port;
mod policy;
mod ports;
mod ranges;
mod service;
mod several;
mod shards;
mod source;
mod store;
mod telemetry;
mod workload;
mod writer;

pub use cidr::{Cidr, CidrError};
pub use egress::{AllowedRange, Egress, OutboundMode};
pub use headless::{NamedPod, PodName};
pub use intern::Intern;
pub use model::{Endpoint, Gateway, Model};
pub use node::{
    ControlPlane, Enrolment, Exclusions, ExistingConnections, Exports, GatewayAddress, GatewayEntry, GatewayRole,
    NetworkTrust, NodeConfig, Passthrough, PlaintextToMesh, SourceMatch, TrustedDomain,
};
pub use node_port::{Entry, NodePort, NodePortTarget, TrustedEntries};
pub use policy::{Action, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};
pub use ports::{Memberships, Ports};
pub use service::{
    CidrVip, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress, Scope, Service, Visibility, WeightedWaypoint,
};
pub use source::{Applied, SourceId, Update};
pub use store::ModelStore;
pub use telemetry::{Lines, LogConfig, LogFormat, Share, Telemetry, Traces};
pub use workload::{
    ApplicationTunnel, Destination, Extension, GatewayRef, Locality, Place, Protocol, TunnelKind, Workload,
};

/// Host names compare in lower case and without a trailing dot.
#[must_use]
pub fn normal_host(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}
