//! Names that Istio, the Gateway API and we give to things.

/// Label of the control plane's namespace, of gateways and of their services: the network they belong to.
pub const NETWORK: &str = "topology.istio.io/network";
/// Label of a remote gateway: the cluster it leads to.
pub const CLUSTER: &str = "topology.istio.io/cluster";
/// Label of what links make, and the value it has.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "causeway-multicluster");
/// Label of a service that all clusters share, where it is `true`.
pub const GLOBAL: &str = "istio.io/global";
/// Label of a service or namespace: the waypoint in front of it.
pub const WAYPOINT: &str = "istio.io/use-waypoint";
/// Label of the secret by which an istiod reads another cluster.
pub const REMOTE_SECRET: &str = "istio/multiCluster";
/// Annotation of that secret: the cluster's name.
pub const SECRET_CLUSTER: &str = "networking.istio.io/cluster";
/// Annotation of a gateway: the service account its pods prove to be.
pub const ACCOUNT: &str = "gateway.istio.io/service-account";
/// Annotation of a gateway: the trust domain its pods belong to.
pub const TRUST_DOMAIN: &str = "gateway.istio.io/trust-domain";
/// Annotation of a remote gateway: by what type of service it is preferably reached.
pub const SERVICE_TYPE: &str = "peering.solo.io/preferred-data-plane-service-type";
/// Labels of a place.
pub const REGION: &str = "topology.kubernetes.io/region";
/// See [`REGION`].
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Class of a cluster's own entry point.
pub const EAST_WEST: &str = "istio-east-west";
/// Class of the entry points of others.
pub const REMOTE: &str = "istio-remote";
/// Class of waypoints.
pub const WAYPOINT_CLASS: &str = "istio-waypoint";

/// What our entry point and everything of it is called.
pub const GATEWAY: &str = "causeway-gateway";
/// Where it is, here and in every peer: istiod takes the namespace of a remote gateway for that of its identity.
pub const GATEWAY_NAMESPACE: &str = "istio-eastwest";
/// Where istiod is.
pub const ISTIO_NAMESPACE: &str = "istio-system";
/// Where HBONE is spoken.
pub const HBONE_PORT: u16 = 15008;
/// Where a gateway says that it is ready.
pub const READY_PORT: u16 = 15021;
/// The port of istiod, and that of a gateway behind which it is.
pub const ISTIOD_PORT: u16 = 15012;
