//! Workloads.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::Memberships;
use crate::identity::SpiffeId;

/// What a workload understands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Plain TCP.
    #[default]
    Tcp,
    /// HBONE on port 15008.
    Hbone,
}

/// Where a workload runs. Few distinct places exist, so copies share one allocation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality(Arc<Place>);

impl Locality {
    /// A locality of these parts.
    #[must_use]
    pub fn new(region: Arc<str>, zone: Arc<str>, subzone: Arc<str>) -> Self {
        Self(Arc::new(Place { region, zone, subzone }))
    }

    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl std::ops::Deref for Locality {
    type Target = Place;
    fn deref(&self) -> &Place {
        &self.0
    }
}

/// Parts of a locality, for load balancing. Empty text is a value like any other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Place {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Subzone.
    pub subzone: Arc<str>,
}

/// How a gateway or waypoint is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// An address in a network.
    Address {
        /// The network.
        network: Arc<str>,
        /// The address.
        ip: IpAddr,
    },
    /// A service or workload by its host name.
    Hostname {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its normalised host name.
        hostname: Arc<str>,
    },
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { network, ip } => write!(f, "{network}/{ip}"),
            Self::Hostname { namespace, hostname } => write!(f, "{namespace}/{hostname}"),
        }
    }
}

/// Reference to a gateway or waypoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayRef {
    /// Who.
    pub destination: Destination,
    /// Its HBONE port.
    pub port: u16,
}

/// How bytes reach the application behind a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TunnelKind {
    /// Unchanged.
    None,
    /// After a PROXY protocol header.
    Proxy,
}

/// An application that takes all traffic on one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// In what form.
    pub kind: TunnelKind,
    /// The port that replaces every target port, if set.
    pub port: Option<u16>,
}

/// Something attached to an object that only its maker understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// Its name.
    pub name: Box<str>,
    /// Type of the content.
    pub type_url: Box<str>,
    /// Content as it came.
    pub config: Box<[u8]>,
}

/// One workload. Empty text means "not known".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Primary key.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// Trust domain.
    pub trust_domain: Arc<str>,
    /// The identity made of the three above.
    pub identity: SpiffeId,
    /// Network.
    pub network: Arc<str>,
    /// Cluster.
    pub cluster: Arc<str>,
    /// Node.
    pub node: Arc<str>,
    /// Addresses; never IPv4-mapped.
    pub ips: Vec<IpAddr>,
    /// Host name, resolved by DNS when there is no address.
    pub hostname: Arc<str>,
    /// What it understands.
    pub protocol: Protocol,
    /// Waypoint of traffic that names this workload by its address.
    pub waypoint: Option<Arc<GatewayRef>>,
    /// Gateway through which other networks reach it.
    pub network_gateway: Option<Arc<GatewayRef>>,
    /// Application tunnel.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Keys of the policies selected for it.
    pub policies: Vec<Arc<str>>,
    /// Whether it is ready.
    pub healthy: bool,
    /// Locality.
    pub locality: Locality,
    /// Weight; 0 is never drawn.
    pub capacity: u32,
    /// Shares its node's address, so the address does not name it.
    pub host_network: bool,
    /// Services it belongs to, `namespace/hostname`, with its own mapping of service port to target port.
    pub services: Memberships,
    /// Owner's name.
    pub workload_name: Arc<str>,
    /// Owner's kind, lower case.
    pub workload_type: Arc<str>,
    /// Canonical name.
    pub canonical_name: Arc<str>,
    /// Canonical revision.
    pub canonical_revision: Arc<str>,
    /// Speaks HBONE itself, without a node's help.
    pub native_tunnel: bool,
    /// What others attached to it.
    pub extensions: Box<[Extension]>,
}

impl Workload {
    /// Whether istiod made this record to describe a gateway of a network.
    #[must_use]
    pub fn is_network_gateway(&self) -> bool {
        self.uid.starts_with("NetworkGateway/")
    }

    /// Whether this record stands for all endpoints of a service in another network.
    #[must_use]
    pub fn is_split_horizon(&self) -> bool {
        self.uid.contains("/SplitHorizonWorkload/")
    }
}
