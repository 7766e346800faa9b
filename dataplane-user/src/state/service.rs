//! Services.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Cidr, Extension, GatewayRef, Ports};
use crate::identity::SpiffeId;

/// An address together with the network it is valid in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network.
    pub network: Arc<str>,
    /// The address.
    pub ip: IpAddr,
}

/// A virtual address range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CidrVip {
    /// The network.
    pub network: Arc<str>,
    /// The range.
    pub range: Cidr,
}

/// A waypoint with its share of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// Who.
    pub waypoint: GatewayRef,
    /// Share; 0 gets nothing.
    pub weight: u32,
}

/// What a load balancing preference compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Region of the locality.
    Region,
    /// Zone of the locality.
    Zone,
    /// Subzone of the locality.
    Subzone,
    /// Node.
    Node,
    /// Cluster.
    Cluster,
    /// Network.
    Network,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LoadBalancingMode {
    /// Among all.
    #[default]
    Standard,
    /// Among those that match every preference.
    Strict,
    /// Among those that match best.
    Failover,
    /// Not at all: the original destination is used.
    Passthrough,
}

/// Load balancing of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancing {
    /// Preferences, the most important first.
    pub preferences: Vec<Scope>,
    /// How they are used.
    pub mode: LoadBalancingMode,
    /// Whether unhealthy endpoints are used too.
    pub allow_unhealthy: bool,
}

/// Address families of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IpFamilies {
    /// Not said.
    #[default]
    Automatic,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Whether an endpoint address of this family may be used.
    #[must_use]
    pub fn accepts(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

/// Who sees a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Workloads of its namespace.
    Namespace,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Primary key, `namespace/hostname`.
    pub key: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Normalised host name.
    pub hostname: Arc<str>,
    /// Virtual addresses.
    pub vips: Vec<NetworkAddress>,
    /// Virtual ranges.
    pub cidr_vips: Vec<CidrVip>,
    /// Service port to target port; 0 means that the endpoint decides.
    pub ports: Ports,
    /// Subject alternative names as published.
    pub subject_alt_names: Vec<Arc<str>>,
    /// Those of them that are SPIFFE names.
    pub identities: Vec<SpiffeId>,
    /// Waypoint of traffic that names the service.
    pub waypoint: Option<GatewayRef>,
    /// Waypoints with shares; used before `waypoint` when any share is above 0.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Load balancing.
    pub load_balancing: LoadBalancing,
    /// Address families.
    pub ip_families: IpFamilies,
    /// Wins among services of one host name outside the client's namespace.
    pub canonical: bool,
    /// Who sees it.
    pub visibility: Visibility,
    /// Whether what comes in through an ingress gateway goes through the waypoint too.
    pub ingress_use_waypoint: bool,
    /// What others attached to it.
    pub extensions: Box<[Extension]>,
}

impl Service {
    /// Whether a client of this namespace may see the service.
    #[must_use]
    pub fn visible_to(&self, client_namespace: &str) -> bool {
        self.visibility == Visibility::Public || &*self.namespace == client_namespace
    }
}
