//! Messages of `istio.workload`: workloads and services as a control plane publishes them to node proxies.
//!
//! Field numbers are those of `workload.proto` in `istio/ztunnel`. Enumerations are kept as numbers, so that a value nobody
//! here knows is refused by name instead of read as the first one.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Message, Oneof};

/// Type URL of [`Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";

/// Any message, by its type.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    /// Type URL.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// Encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// A number that may be absent.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct UInt32Value {
    /// The number.
    #[prost(uint32, tag = "1")]
    pub value: u32,
}

/// What an Address resource is.
#[derive(Clone, PartialEq, Message)]
pub struct Address {
    /// Workload or service.
    #[prost(oneof = "AddressType", tags = "1, 2")]
    pub kind: Option<AddressType>,
}

/// Workload or service.
#[derive(Clone, PartialEq, Oneof)]
#[allow(clippy::large_enum_variant, reason = "lives only while one resource is converted")]
pub enum AddressType {
    /// A workload.
    #[prost(message, tag = "1")]
    Workload(Workload),
    /// A service.
    #[prost(message, tag = "2")]
    Service(Service),
}

/// A workload.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "named as in the model, which describes them")]
pub struct Workload {
    #[prost(string, tag = "20")]
    pub uid: String,
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub addresses: Vec<Bytes>,
    #[prost(string, tag = "21")]
    pub hostname: String,
    #[prost(string, tag = "4")]
    pub network: String,
    #[prost(int32, tag = "5")]
    pub tunnel_protocol: i32,
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    #[prost(string, tag = "7")]
    pub service_account: String,
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    #[prost(string, tag = "9")]
    pub node: String,
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    #[prost(int32, tag = "12")]
    pub workload_type: i32,
    #[prost(string, tag = "13")]
    pub workload_name: String,
    #[prost(bool, tag = "14")]
    pub native_tunnel: bool,
    #[prost(string, repeated, tag = "16")]
    pub authorization_policies: Vec<String>,
    #[prost(int32, tag = "17")]
    pub status: i32,
    #[prost(string, tag = "18")]
    pub cluster_id: String,
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    #[prost(btree_map = "string, message", tag = "22")]
    pub services: BTreeMap<String, PortList>,
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    #[prost(int32, tag = "25")]
    pub network_mode: i32,
    #[prost(message, repeated, tag = "26")]
    pub extensions: Vec<Extension>,
    #[prost(message, optional, tag = "27")]
    pub capacity: Option<UInt32Value>,
}

/// A service.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "named as in the model, which describes them")]
pub struct Service {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub hostname: String,
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    #[prost(int32, tag = "9")]
    pub ip_families: i32,
    #[prost(message, repeated, tag = "10")]
    pub extensions: Vec<Extension>,
    #[prost(bool, tag = "11")]
    pub canonical: bool,
    #[prost(bool, tag = "12")]
    pub ingress_use_waypoint: bool,
    #[prost(message, repeated, tag = "13")]
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    #[prost(int32, tag = "14")]
    pub visibility: i32,
}

/// How a gateway or waypoint is reached.
#[derive(Clone, PartialEq, Message)]
pub struct GatewayAddress {
    /// Who.
    #[prost(oneof = "GatewayDestination", tags = "1, 2")]
    pub destination: Option<GatewayDestination>,
    /// Its HBONE port.
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

/// Who a gateway or waypoint is.
#[derive(Clone, PartialEq, Oneof)]
pub enum GatewayDestination {
    /// By name.
    #[prost(message, tag = "1")]
    Hostname(NamespacedHostname),
    /// By address.
    #[prost(message, tag = "2")]
    Address(NetworkAddress),
}

/// A host name of a namespace.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "say what they are")]
pub struct NamespacedHostname {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub hostname: String,
}

/// An address, or a range, of a network.
#[derive(Clone, PartialEq, Message)]
pub struct NetworkAddress {
    /// The network.
    #[prost(string, tag = "1")]
    pub network: String,
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// Leading bits that count; absent means all.
    #[prost(uint32, optional, tag = "3")]
    pub length: Option<u32>,
}

/// Ports of a workload for one service.
#[derive(Clone, PartialEq, Message)]
pub struct PortList {
    /// The ports.
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<Port>,
}

/// A port.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Port {
    /// Port of the service.
    #[prost(uint32, tag = "1")]
    pub service_port: u32,
    /// Port of the workload; 0 when it is named.
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
    /// What is spoken on it; decides nothing here.
    #[prost(int32, tag = "3")]
    pub app_protocol: i32,
}

/// How endpoints are chosen.
#[derive(Clone, PartialEq, Message)]
pub struct LoadBalancing {
    /// What is compared, the most important first.
    #[prost(int32, repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    /// What the comparison means.
    #[prost(int32, tag = "2")]
    pub mode: i32,
    /// Whether unhealthy ones count.
    #[prost(int32, tag = "3")]
    pub health_policy: i32,
}

/// Where a workload runs.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "say what they are")]
pub struct Locality {
    #[prost(string, tag = "1")]
    pub region: String,
    #[prost(string, tag = "2")]
    pub zone: String,
    #[prost(string, tag = "3")]
    pub subzone: String,
}

/// An application that takes all traffic on one port.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ApplicationTunnel {
    /// NONE 0, PROXY 1.
    #[prost(int32, tag = "1")]
    pub protocol: i32,
    /// 0 means not set.
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

/// A waypoint with its share.
#[derive(Clone, PartialEq, Message)]
pub struct WeightedWaypoint {
    /// Who.
    #[prost(message, optional, tag = "1")]
    pub destination: Option<GatewayAddress>,
    /// Share.
    #[prost(uint32, tag = "2")]
    pub weight: u32,
}

/// Something that only its maker understands.
#[derive(Clone, PartialEq, Message)]
pub struct Extension {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it is.
    #[prost(message, optional, tag = "2")]
    pub config: Option<Any>,
}
