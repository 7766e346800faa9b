//! The model file of each node, as an operator would write it: what its cluster knows, nothing more.

use super::{Gateway, Node, NodeId, Pod, Service, Topology, address};
use crate::{Error, Result, context};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The name and the service account of every gateway.
const GATEWAY_NAMESPACE: &str = "istio-eastwest";
const GATEWAY_ACCOUNT: &str = "eastwest";
const HBONE: u16 = 15008;

impl Topology {
    /// Writes the model file of every node; running daemons see the change by themselves.
    ///
    /// # Errors
    /// The file system's.
    pub fn publish(&self) -> Result<()> {
        self.nodes().try_for_each(|node| self.write_model(node, &self.model(node)?))
    }

    /// Replaces the model file of a node in one step, as an editor or a configuration tool does.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_model(&self, node: NodeId, model: &Value) -> Result<()> {
        let text = serde_yaml_ng::to_string(model).map_err(context("the model as YAML"))?;
        self.write_model_text(node, &text)
    }

    /// As [`Topology::write_model`], for text that need not be a valid model.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_model_text(&self, node: NodeId, text: &str) -> Result<()> {
        let path = self.model_path(node);
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text).map_err(context(fresh.display()))?;
        std::fs::rename(&fresh, &path).map_err(context(path.display()))
    }

    /// The model file of a node.
    pub fn model_path(&self, node: NodeId) -> PathBuf {
        self.scratch.join(format!("{}.yaml", self.node_data(node).name))
    }

    /// What the model file of a node says now.
    ///
    /// # Errors
    /// If the node is of another topology.
    pub fn model(&self, node: NodeId) -> Result<Value> {
        let section = self.sections.get(&node.0);
        if section.and_then(|keys| keys.pointer("/controlPlane/address")).is_some() {
            // The mesh comes from the control plane; the file says what is local to the node.
            return Ok(json!({"causeway": self.node_section(self.node_data(node))?}));
        }
        let node = self.node_data(node);
        let network = self.network(node);
        let mut workloads: Vec<Value> =
            self.pods.iter().filter(|pod| self.cluster_of(pod) == node.cluster).map(|pod| self.workload(pod)).collect();
        for other in self.other_networks(&network) {
            workloads.extend(self.gateways(&other).map(|gateway| self.gateway_workload(gateway)));
            for service in &self.services {
                workloads.extend(self.split_horizon(service, &other));
            }
        }
        let services: Vec<Value> = (0..self.services.len()).filter_map(|number| self.service_value(number)).collect();
        Ok(json!({
            "workloads": workloads,
            "services": services,
            "policies": self.policies,
            "causeway": self.node_section(node)?,
        }))
    }

    fn node_section(&self, node: &Node) -> Result<Value> {
        let cluster = self.clusters.get(node.cluster).ok_or("no such cluster")?;
        let enrol: Vec<Value> = self
            .pods
            .iter()
            .filter(|pod| self.nodes.get(pod.data().node).is_some_and(|of| of.name == node.name))
            .filter(|pod| self.enrolled.contains(&pod.data().uid))
            .map(|pod| json!({"workload": pod.data().uid, "netns": pod.netns, "cgroup": pod.cgroup}))
            .collect();
        let mut section = json!({
            "node": node.name,
            "cluster": cluster.name,
            "network": cluster.network,
            "trustDomain": cluster.trust_domain,
            "identity": {"caDirectory": self.ca_folder(&cluster.trust_domain).join(&cluster.name)},
            "enrol": enrol,
        });
        let Some(fields) = section.as_object_mut() else {
            return Err(Error::from("not an object"));
        };
        if node.gateway == Gateway::Own {
            let listen = format!("{}:{HBONE}", address::node4(node.cluster + 1, node.number));
            let exports: Vec<String> =
                self.services.iter().filter(|service| service.exported).map(Service::key).collect();
            fields.insert(
                "gateway".into(),
                json!({"listen": [listen], "identity": gateway_identity(&cluster.trust_domain)}),
            );
            fields.insert("exports".into(), json!(exports));
        }
        let trust: Vec<Value> = self
            .clusters
            .iter()
            .filter(|other| other.network != cluster.network && other.trust_domain != cluster.trust_domain)
            .map(|other| {
                let roots = self.ca_folder(&other.trust_domain).join(&other.name).join("root-cert.pem");
                json!({"network": other.network, "trustDomains": [{"name": other.trust_domain, "roots": roots}]})
            })
            .collect();
        if !trust.is_empty() {
            fields.insert("trust".into(), json!(trust));
        }
        if let Some(exclusions) = &self.exclusions {
            fields.insert("exclusions".into(), exclusions.clone());
        }
        let number = self.nodes.iter().position(|known| known.name == node.name).unwrap_or(usize::MAX);
        for (key, value) in self.sections.get(&number).and_then(Value::as_object).into_iter().flatten() {
            match value {
                Value::Null => fields.remove(key),
                value => fields.insert(key.clone(), value.clone()),
            };
        }
        Ok(section)
    }

    fn workload(&self, pod: &Pod) -> Value {
        let data = pod.data();
        let (namespace, name) = data.name.split_once('/').unwrap_or(("default", &data.name));
        let node = self.nodes.get(data.node);
        let cluster = node.and_then(|node| self.clusters.get(node.cluster));
        let mut services = Map::new();
        for service in self.services.iter().filter(|service| service.endpoints.contains(&data.index)) {
            services.insert(service.key(), ports(service));
        }
        let protocol =
            if self.enrolled.contains(&data.uid) || self.foreign.contains(&data.uid) { "HBONE" } else { "TCP" };
        json!({
            "uid": data.uid,
            "name": name,
            "namespace": namespace,
            "serviceAccount": data.service_account,
            "workloadIps": [data.ip4.to_string(), data.ip6.to_string()],
            "protocol": protocol,
            "node": node.map(|node| node.name.as_str()).unwrap_or_default(),
            "network": cluster.map(|cluster| cluster.network.as_str()).unwrap_or_default(),
            "trustDomain": cluster.map(|cluster| cluster.trust_domain.as_str()).unwrap_or_default(),
            "clusterId": cluster.map(|cluster| cluster.name.as_str()).unwrap_or_default(),
            "services": services,
        })
    }

    /// The one record that stands for the endpoints of a service in another network.
    fn split_horizon(&self, service: &Service, network: &str) -> Option<Value> {
        let gateway = self.gateways(network).next()?;
        let here = |pod: &usize| self.pods.get(*pod).is_some_and(|pod| self.network_of(pod) == network);
        let capacity = service.endpoints.iter().filter(|pod| here(pod)).count();
        if capacity == 0 || !service.exported {
            return None;
        }
        let ip = address::node4(gateway.cluster + 1, gateway.number);
        let cluster = self.clusters.get(gateway.cluster)?;
        let (namespace, name) = service.name.split_once('/')?;
        let mut services = Map::new();
        services.insert(
            service.key(),
            json!(
                service
                    .ports
                    .iter()
                    .map(|(port, _)| (port.to_string(), 0))
                    .collect::<std::collections::BTreeMap<_, _>>()
            ),
        );
        Some(json!({
            "uid": format!("{network}/SplitHorizonWorkload/{GATEWAY_NAMESPACE}/{GATEWAY_ACCOUNT}/{ip}/{}", service.key()),
            "name": format!("remote-{name}"),
            "namespace": namespace,
            "workloadIps": [],
            "protocol": "HBONE",
            "network": network,
            "trustDomain": cluster.trust_domain,
            "clusterId": cluster.name,
            "capacity": capacity,
            "networkGateway": {"destination": format!("{network}/{ip}"), "hboneMtlsPort": HBONE},
            "services": services,
        }))
    }

    fn gateway_workload(&self, gateway: &Node) -> Value {
        let ip = address::node4(gateway.cluster + 1, gateway.number);
        let cluster = self.clusters.get(gateway.cluster);
        let network = self.network(gateway);
        json!({
            "uid": format!("NetworkGateway/{network}/{ip}/{HBONE}"),
            "name": GATEWAY_ACCOUNT,
            "namespace": GATEWAY_NAMESPACE,
            "serviceAccount": GATEWAY_ACCOUNT,
            "workloadIps": [ip.to_string()],
            "protocol": "TCP",
            "services": {},
            "network": network,
            "trustDomain": cluster.map(|cluster| cluster.trust_domain.as_str()).unwrap_or_default(),
            "clusterId": cluster.map(|cluster| cluster.name.as_str()).unwrap_or_default(),
        })
    }

    fn service_value(&self, number: usize) -> Option<Value> {
        let service = self.services.get(number)?;
        let (namespace, name) = service.name.split_once('/')?;
        let vips: Vec<String> = self
            .clusters
            .iter()
            .enumerate()
            .filter(|_| !service.headless)
            .flat_map(|(c, cluster)| {
                let network = &cluster.network;
                [
                    format!("{network}/{}", address::vip4(c + 1, number)),
                    format!("{network}/{}", address::vip6(c + 1, number)),
                ]
            })
            .collect();
        let identities: BTreeSet<String> = service
            .endpoints
            .iter()
            .filter_map(|pod| self.pods.get(*pod))
            .map(|pod| pod.identity(&self.trust_domain_of(pod)))
            .collect();
        Some(json!({
            "name": name,
            "namespace": namespace,
            "hostname": service.hostname(),
            "vips": vips,
            "ports": ports(service),
            "subjectAltNames": identities,
        }))
    }

    fn other_networks(&self, own: &str) -> BTreeSet<String> {
        let all = self.clusters.iter().map(|cluster| cluster.network.clone());
        all.filter(|network| network != own).collect()
    }

    fn gateways<'a>(&'a self, network: &'a str) -> impl Iterator<Item = &'a Node> {
        self.nodes.iter().filter(move |node| node.gateway != Gateway::No && self.network(node) == network)
    }

    fn network(&self, node: &Node) -> String {
        self.clusters.get(node.cluster).map(|cluster| cluster.network.clone()).unwrap_or_default()
    }

    fn cluster_of(&self, pod: &Pod) -> usize {
        self.nodes.get(pod.data().node).map_or(usize::MAX, |node| node.cluster)
    }

    fn network_of(&self, pod: &Pod) -> String {
        self.nodes.get(pod.data().node).map(|node| self.network(node)).unwrap_or_default()
    }

    fn trust_domain_of(&self, pod: &Pod) -> String {
        let cluster = self.clusters.get(self.cluster_of(pod));
        cluster.map(|cluster| cluster.trust_domain.clone()).unwrap_or_default()
    }

    /// Where `causeway ca` puts the authorities of a trust domain: one folder per cluster.
    pub fn ca_folder(&self, trust_domain: &str) -> PathBuf {
        self.scratch.join("ca").join(trust_domain)
    }
}

impl Service {
    /// How the model refers to it: `namespace/hostname`.
    fn key(&self) -> String {
        let (namespace, _) = self.name.split_once('/').unwrap_or(("default", &self.name));
        format!("{namespace}/{}", self.hostname())
    }

    fn hostname(&self) -> String {
        let (namespace, name) = self.name.split_once('/').unwrap_or(("default", &self.name));
        self.hostname.clone().unwrap_or_else(|| format!("{name}.{namespace}.svc.cluster.local"))
    }
}

/// The SPIFFE name of every gateway in a trust domain.
pub fn gateway_identity(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{GATEWAY_NAMESPACE}/sa/{GATEWAY_ACCOUNT}")
}

fn ports(service: &Service) -> Value {
    let ports: Map<String, Value> =
        service.ports.iter().map(|(port, target)| (port.to_string(), json!(target))).collect();
    Value::Object(ports)
}
