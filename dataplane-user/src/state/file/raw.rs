//! The file as it is written. Field documentation here is what `causeway schema` prints.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

/// Model file of Causeway: the mesh as ztunnel's local file describes it, and what this node does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    /// Pods, virtual machines, gateways, and records that stand for remote endpoints.
    #[serde(default)]
    pub(super) workloads: Vec<Workload>,
    /// Services.
    #[serde(default)]
    pub(super) services: Vec<Service>,
    /// Authorization policies.
    #[serde(default)]
    pub(super) policies: Vec<Policy>,
    /// What this node does.
    pub(super) causeway: super::raw_node::Node,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
pub(super) enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
pub(super) enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
pub(super) enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

/// A gateway or waypoint.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GatewayRef {
    /// "network/address" or "namespace/hostname".
    pub(super) destination: String,
    /// Its HBONE port.
    #[serde(default = "hbone_port")]
    pub(super) hbone_mtls_port: u16,
}

fn hbone_port() -> u16 {
    15008
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
pub(super) enum TunnelKind {
    #[default]
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "PROXY")]
    Proxy,
}

/// An application that takes all traffic on one port.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ApplicationTunnel {
    #[serde(default)]
    pub(super) protocol: TunnelKind,
    #[serde(default)]
    pub(super) port: Option<u16>,
}

#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Locality {
    #[serde(default)]
    pub(super) region: String,
    #[serde(default)]
    pub(super) zone: String,
    #[serde(default)]
    pub(super) subzone: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    /// Primary key, as "cluster//Pod/namespace/name".
    pub(super) uid: String,
    #[serde(default)]
    pub(super) name: String,
    pub(super) namespace: String,
    /// Without it, "default".
    #[serde(default)]
    pub(super) service_account: String,
    /// Without it, that of this node.
    #[serde(default)]
    pub(super) trust_domain: String,
    pub(super) workload_ips: Vec<String>,
    #[serde(default)]
    pub(super) protocol: Protocol,
    #[serde(default)]
    pub(super) node: String,
    #[serde(default)]
    pub(super) network: String,
    #[serde(default)]
    pub(super) cluster_id: String,
    #[serde(default)]
    pub(super) hostname: String,
    /// Waypoint of traffic that names this workload by its address.
    #[serde(default)]
    pub(super) waypoint: Option<GatewayRef>,
    /// Gateway through which other networks reach it.
    #[serde(default)]
    pub(super) network_gateway: Option<GatewayRef>,
    #[serde(default)]
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    /// Speaks HBONE itself, without a node's help.
    #[serde(default)]
    pub(super) native_tunnel: bool,
    /// Keys of policies selected for it, "namespace/name".
    #[serde(default)]
    pub(super) authorization_policies: Vec<String>,
    #[serde(default)]
    pub(super) status: Status,
    #[serde(default)]
    pub(super) locality: Locality,
    /// Weight in load balancing; 0 is never chosen.
    #[serde(default = "one")]
    pub(super) capacity: u32,
    #[serde(default)]
    pub(super) network_mode: NetworkMode,
    /// Services it belongs to, "namespace/hostname", with its target port for each service port.
    #[serde(default)]
    pub(super) services: BTreeMap<String, Ports>,
    #[serde(default)]
    pub(super) workload_name: String,
    /// deployment, cronjob, pod or job.
    #[serde(default)]
    pub(super) workload_type: String,
    #[serde(default)]
    pub(super) canonical_name: String,
    #[serde(default)]
    pub(super) canonical_revision: String,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CidrVip {
    #[serde(default)]
    pub(super) network: String,
    /// As 10.0.0.0/8.
    pub(super) cidr: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WeightedWaypoint {
    pub(super) destination: GatewayRef,
    pub(super) weight: u32,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub(super) enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
pub(super) enum Mode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
pub(super) enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LoadBalancer {
    /// The most important first.
    #[serde(default)]
    pub(super) routing_preferences: Vec<Scope>,
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default)]
    pub(super) health_policy: HealthPolicy,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub(super) enum IpFamilies {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
    Dual,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize, JsonSchema)]
pub(super) enum Visibility {
    #[default]
    Public,
    Namespace,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) namespace: String,
    /// Fully qualified, as web.default.svc.cluster.local.
    pub(super) hostname: String,
    /// Virtual addresses, "network/address"; each belongs to one service only.
    pub(super) vips: Vec<String>,
    #[serde(default)]
    pub(super) cidr_vips: Vec<CidrVip>,
    /// Target port for each service port; 0 leaves it to the endpoint.
    pub(super) ports: Ports,
    /// Identities accepted besides an endpoint's own; the only ones accepted from endpoints of another network.
    #[serde(default)]
    pub(super) subject_alt_names: Vec<String>,
    /// Waypoint of traffic that names the service.
    #[serde(default)]
    pub(super) waypoint: Option<GatewayRef>,
    #[serde(default)]
    pub(super) weighted_waypoints: Vec<WeightedWaypoint>,
    #[serde(default)]
    pub(super) load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    pub(super) ip_families: Option<IpFamilies>,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default)]
    pub(super) visibility: Visibility,
    /// Whether what comes in through an ingress gateway goes through the waypoint too.
    #[serde(default)]
    pub(super) ingress_use_waypoint: bool,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub(super) enum PolicyScope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
pub(super) enum Action {
    Allow,
    Deny,
}

/// Exactly one of the fields.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct StringMatch {
    #[serde(rename = "Exact")]
    pub(super) exact: Option<String>,
    #[serde(rename = "Prefix")]
    pub(super) prefix: Option<String>,
    #[serde(rename = "Suffix")]
    pub(super) suffix: Option<String>,
    /// Matches any text but the empty one; the value is an empty list.
    #[serde(rename = "Presence")]
    pub(super) presence: Option<[(); 0]>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServiceAccountMatch {
    pub(super) namespace: String,
    pub(super) service_account: String,
}

/// Every field that is set must hold; within a field, any value.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Match {
    pub(super) namespaces: Vec<StringMatch>,
    pub(super) not_namespaces: Vec<StringMatch>,
    pub(super) principals: Vec<StringMatch>,
    pub(super) not_principals: Vec<StringMatch>,
    pub(super) service_accounts: Vec<ServiceAccountMatch>,
    pub(super) not_service_accounts: Vec<ServiceAccountMatch>,
    pub(super) source_ips: Vec<String>,
    pub(super) not_source_ips: Vec<String>,
    pub(super) destination_ips: Vec<String>,
    pub(super) not_destination_ips: Vec<String>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) scope: PolicyScope,
    pub(super) action: Action,
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Rules (any must hold) of clauses (all) of matches (any).
    pub(super) rules: Vec<Vec<Vec<Match>>>,
}

/// A mapping of ports. YAML writes keys as numbers, JSON can only write them as text; both are read.
#[derive(Debug, Clone, Default)]
pub(super) struct Ports(pub(super) BTreeMap<u16, u16>);

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Ports;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of service ports to target ports, as {\"80\": 8080}")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ports, A::Error> {
                let mut ports = BTreeMap::new();
                while let Some(PortKey(key)) = map.next_key()? {
                    if ports.insert(key, map.next_value()?).is_some() {
                        return Err(A::Error::custom(format!("port {key} occurs twice")));
                    }
                }
                Ok(Ports(ports))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

struct PortKey(u16);

impl<'de> Deserialize<'de> for PortKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Port;
        impl Visitor<'_> for Port {
            type Value = PortKey;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 1 to 65535")
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<PortKey, E> {
                u16::try_from(value)
                    .ok()
                    .filter(|port| *port != 0)
                    .map(PortKey)
                    .ok_or_else(|| E::custom(format!("invalid port {value}, expected 1 to 65535")))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<PortKey, E> {
                let number = value
                    .parse::<u64>()
                    .map_err(|_| E::custom(format!("invalid port {value:?}, expected 1 to 65535")))?;
                self.visit_u64(number)
            }
        }
        deserializer.deserialize_any(Port)
    }
}

impl JsonSchema for Ports {
    fn schema_name() -> Cow<'static, str> {
        "Ports".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "propertyNames": { "pattern": "^[1-9][0-9]{0,4}$" },
            "additionalProperties": { "type": "integer", "minimum": 0, "maximum": 65535 }
        })
    }
}
