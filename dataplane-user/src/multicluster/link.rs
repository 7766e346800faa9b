//! The objects by which one cluster reaches another, and those that go when it no longer shall.

use serde_json::{Value, json};

use super::facts::{Cluster, Entry, Kind};
use super::finding::Finding;
use super::objects::full_name;
use super::{names, reader};

/// The check that refuses links.
const CHECK: &str = "gateway";

/// How the other cluster is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By what its own gateway object says; istiod reads it there and follows it.
    LoadBalancer,
    /// By a port of those nodes on which its gateway runs, at addresses of this type.
    NodePort(String),
}

/// An entry point of another cluster, as this one is told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Name of the other cluster.
    pub cluster: String,
    /// Its network.
    pub network: String,
    /// Addresses, IP or host names.
    pub addresses: Vec<String>,
    /// Where HBONE is spoken there.
    pub port: u16,
    /// Service account of the gateway.
    pub account: String,
    /// Trust domain of the gateway.
    pub trust_domain: String,
    /// `LoadBalancer` or `NodePort`.
    pub service_type: String,
    /// Where it is.
    pub region: String,
    /// See `region`.
    pub zone: String,
}

impl Peer {
    /// The object that describes it.
    #[must_use]
    pub fn gateway(&self, namespace: &str) -> Value {
        let (managed, value) = names::MANAGED_BY;
        let mut labels = json!({managed: value, names::NETWORK: self.network, names::CLUSTER: self.cluster});
        let mut annotations = json!({names::ACCOUNT: self.account});
        for (key, value) in [(names::REGION, &self.region), (names::ZONE, &self.zone)] {
            insert(&mut labels, key, value);
        }
        insert(&mut annotations, names::TRUST_DOMAIN, &self.trust_domain);
        insert(&mut annotations, names::SERVICE_TYPE, &self.service_type);
        let addresses: Vec<Value> = self
            .addresses
            .iter()
            .map(|address| {
                let is_ip = address.parse::<std::net::IpAddr>().is_ok();
                json!({"type": if is_ip { "IPAddress" } else { "Hostname" }, "value": address})
            })
            .collect();
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": gateway_name(&self.cluster), "namespace": namespace,
                "labels": labels, "annotations": annotations},
            "spec": {"gatewayClassName": names::REMOTE, "addresses": addresses, "listeners": [{
                "name": "hbone", "port": self.port, "protocol": "HBONE", "tls": {"mode": "Passthrough"}}]}})
    }
}

/// Name of the object that describes a cluster's entry point to another.
#[must_use]
pub fn gateway_name(cluster: &str) -> String {
    format!("peer-{}", reader::name_of(cluster))
}

fn insert(map: &mut Value, key: &str, value: &str) {
    if let (Some(map), false) = (map.as_object_mut(), value.is_empty()) {
        map.insert(key.to_owned(), json!(value));
    }
}

/// What a link in one direction is made of; the secret with the token follows once `there` exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the cluster that is reached: the right to read it.
    pub there: Vec<Value>,
    /// In the cluster that reaches it.
    pub here: Vec<Value>,
    /// In the cluster that reaches it, left by an earlier link of another kind.
    pub stale: Vec<Value>,
    /// Addresses and port that will be dialled.
    pub dialled: (Vec<String>, u16),
}

/// How `from` gets to `to`.
///
/// # Errors
/// There is no entry point, or none of this kind.
pub fn plan(from: &Cluster, to: &Cluster, way: &Way) -> Result<Plan, Box<Finding>> {
    let mut here = Vec::new();
    let name = to.label();
    let dialled = match way {
        Way::LoadBalancer => (published(from, to)?, names::HBONE_PORT),
        Way::NodePort(kind) => {
            let peer = by_node_port(to, kind)?;
            here.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": from.gateway_namespace}}));
            here.push(peer.gateway(&from.gateway_namespace));
            (peer.addresses, peer.port)
        }
    };
    let stale = match way {
        Way::LoadBalancer => ours(from, &name),
        Way::NodePort(_) => Vec::new(),
    };
    Ok(Plan { there: reader::objects(&from.label(), &to.istio_namespace), here, stale, dialled })
}

/// The addresses by which istiod publishes a cluster that exposes itself by a load balancer.
fn published(from: &Cluster, to: &Cluster) -> Result<Vec<String>, Box<Finding>> {
    let gateways = to.gateways(names::EAST_WEST);
    let Some(gateway) = gateways.first() else {
        let finding = Finding::error(
            CHECK,
            "no gateway of class istio-east-west",
            format!("{}: {}", to.context, to.gateway_namespace),
        );
        let node_port = to.entries().iter().any(|entry| entry.kind == "NodePort");
        let repair = if node_port {
            format!("causeway multicluster link --from {} --to {} --node-port", from.context, to.context)
        } else {
            format!("causeway multicluster expose --context {}", to.context)
        };
        return Err(Box::new(finding.why("other clusters find no way into this network").repair(repair)));
    };
    let addresses: Vec<String> = gateways.iter().flat_map(|gateway| gateway.addresses.clone()).collect();
    if addresses.is_empty() {
        return Err(Box::new(super::check::no_address(to, gateway)));
    }
    Ok(addresses)
}

/// The ports of nodes by which a cluster can be entered.
fn by_node_port(to: &Cluster, kind: &str) -> Result<Peer, Box<Finding>> {
    if let Some(gateway) = to.gateways(names::EAST_WEST).first() {
        let finding = Finding::error(
            CHECK,
            "a gateway of class istio-east-west stands beside the node port",
            format!("{}: {}", to.context, gateway.name),
        );
        return Err(Box::new(
            finding
                .why("istiods that read this cluster publish its addresses with port 15008, and the node port is never dialled")
                .repair(format!("causeway multicluster expose --context {} --node-port", to.context)),
        ));
    }
    let entries = to.entries();
    let found = entries.iter().find_map(|entry| Some((entry, entry.node_port?)));
    let Some((entry, port)) = found else {
        let finding = Finding::error(
            CHECK,
            "no service with a node port for port 15008",
            format!("{}: {}", to.context, to.gateway_namespace),
        );
        return Err(Box::new(
            finding
                .why("other clusters find no way into this network")
                .repair(format!("causeway multicluster expose --context {} --node-port", to.context)),
        ));
    };
    let addresses = to.node_addresses(entry, kind);
    if addresses.is_empty() {
        return Err(Box::new(no_node(to, entry, kind)));
    }
    Ok(Peer {
        cluster: to.label(),
        network: to.network().to_owned(),
        addresses,
        port,
        account: names::GATEWAY.to_owned(),
        trust_domain: to.trust_domain(),
        service_type: "NodePort".to_owned(),
        ..Peer::default()
    })
}

fn no_node(to: &Cluster, entry: &Entry, kind: &str) -> Finding {
    let (ready, count) = to.behind(entry);
    let what = if ready.is_empty() {
        format!("none of {count} gateway pods is ready")
    } else {
        format!("no node with a gateway pod has an address of type {kind}")
    };
    Finding::error(CHECK, what, format!("{}: service {}", to.context, entry.name))
        .why("only nodes with a ready gateway pod are entry points")
        .repair(if ready.is_empty() {
            to.start_gateways()
        } else {
            format!(
                "causeway multicluster link --node-port --address-type {}",
                if kind == "InternalIP" { "ExternalIP" } else { "InternalIP" }
            )
        })
}

/// The objects of `from` that lead to a cluster of this name, made by a link.
fn ours(from: &Cluster, peer: &str) -> Vec<Value> {
    let gateways = from.gateways(names::REMOTE).into_iter().filter(|gateway| gateway.ours && gateway.cluster == peer);
    let wanted: Vec<String> = gateways.map(|gateway| gateway.name).collect();
    from.of(Kind::Gateway).iter().filter(|object| wanted.contains(&full_name(object))).map(identity).collect()
}

/// What goes in `from` when it no longer reaches the cluster of this name.
#[must_use]
pub fn unlinked(from: &Cluster, peer: &str) -> Vec<Value> {
    let secrets = from.remote_secrets().into_iter().filter(|secret| secret.cluster == peer);
    let secrets = secrets.map(|secret| {
        json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": secret.name, "namespace": from.istio_namespace}})
    });
    secrets.chain(ours(from, peer)).collect()
}

/// An object without what is in it.
fn identity(object: &Value) -> Value {
    let field = |pointer: &str| object.pointer(pointer).cloned().unwrap_or_default();
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": field("/metadata/name"), "namespace": field("/metadata/namespace")}})
}
