//! Clusters, nodes and pods on one kernel.
//!
//! `cluster` c has nodes k = 1, 2, … with the addresses of [`address`]; all clusters use the same pod and service ranges.
//! A `wan` namespace has one bridge per cluster and routes between them, so what the bridges' own devices show is exactly
//! the traffic between clusters.

pub mod address;
mod build;
mod guard;
mod model;
mod run;

pub use guard::stale_cleanup;
pub use model::gateway_identity;

use crate::{Daemon, Place, Result, cgroup, context, netns};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A cluster of a topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterId(pub(crate) usize);

/// A node of a topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(pub(crate) usize);

/// Namespaces, cgroups and daemons of one test; dropping it removes them all.
#[derive(Debug)]
pub struct Topology {
    prefix: String,
    scratch: PathBuf,
    wan_cgroup: PathBuf,
    clusters: Vec<Cluster>,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    services: Vec<Service>,
    enrolled: BTreeSet<String>,
    foreign: BTreeSet<String>,
    policies: Vec<serde_json::Value>,
    exclusions: Option<serde_json::Value>,
    workers: Option<usize>,
    environment: Vec<(String, String)>,
    /// By node: keys of its `causeway` section.
    sections: BTreeMap<usize, serde_json::Value>,
    closed: bool,
}

#[derive(Debug)]
struct Cluster {
    name: String,
    network: String,
    trust_domain: String,
}

#[derive(Debug)]
struct Node {
    name: String,
    cluster: usize,
    /// 1 for the first node of its cluster.
    number: u8,
    place: Place,
    cgroup: PathBuf,
    gateway: Gateway,
    pods: u8,
    daemon: Option<Daemon>,
}

/// Whether a node is an entry point of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gateway {
    No,
    /// Its daemon is.
    Own,
    /// Another program on the node is; other clusters cannot tell.
    Foreign,
}

#[derive(Debug)]
struct Service {
    /// `namespace/name`.
    name: String,
    /// (port of the service, port of the application).
    ports: Vec<(u16, u16)>,
    /// Indexes of pods.
    endpoints: Vec<usize>,
    exported: bool,
    /// Instead of the one a cluster gives it.
    hostname: Option<String>,
    /// Without addresses of its own.
    headless: bool,
}

/// A pod: a handle that is cheap to copy. Programs run in it through its [`Place`].
#[derive(Clone, Debug)]
pub struct Pod(Arc<PodData>);

/// What a pod is.
#[derive(Debug)]
pub struct PodData {
    /// `namespace/name`.
    pub name: String,
    /// The uid in the mesh model.
    pub uid: String,
    /// The name of its service account, in the pod's namespace.
    pub service_account: String,
    /// Its IPv4 address, which pods of other clusters have as well.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address, which pods of other clusters have as well.
    pub ip6: Ipv6Addr,
    /// The address it is known by outside its cluster: on its loopback, used as source towards nodes.
    pub egress4: Ipv4Addr,
    /// Where its programs run.
    pub place: Place,
    index: usize,
    node: usize,
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0.place
    }
}

impl Pod {
    /// What the pod is.
    pub fn data(&self) -> &PodData {
        &self.0
    }

    /// Where its programs run.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// The SPIFFE name of its service account.
    pub fn identity(&self, trust_domain: &str) -> String {
        let namespace = self.0.name.split('/').next().unwrap_or_default();
        format!("spiffe://{trust_domain}/ns/{namespace}/sa/{}", self.0.service_account)
    }
}

impl Topology {
    /// An empty topology. Removes what dead runs left behind first.
    ///
    /// # Errors
    /// Without root or cgroup v2.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !crate::sys::is_root() {
            return Err("namespaces and cgroups need root".into());
        }
        stale_cleanup();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{}{}x{number}-", guard::PREFIX, std::process::id());
        let scratch = std::env::temp_dir().join(format!("{prefix}{name}"));
        std::fs::create_dir_all(&scratch).map_err(context(scratch.display()))?;
        // Programs that give up root (PostgreSQL) keep their files in here too.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&scratch, open).map_err(context(scratch.display()))?;
        let wan_cgroup = cgroup::root()?.join(format!("{prefix}wan"));
        cgroup::create(&wan_cgroup)?;
        let topology = Self {
            prefix,
            scratch,
            wan_cgroup,
            clusters: Vec::new(),
            nodes: Vec::new(),
            pods: Vec::new(),
            services: Vec::new(),
            enrolled: BTreeSet::new(),
            foreign: BTreeSet::new(),
            policies: Vec::new(),
            exclusions: None,
            workers: None,
            environment: Vec::new(),
            sections: BTreeMap::new(),
            closed: false,
        };
        netns::create(&topology.wan_name())?;
        netns::sysctl(&topology.wan_name(), "net/ipv4/ip_forward", "1")?;
        netns::sysctl(&topology.wan_name(), "net/ipv6/conf/all/forwarding", "1")?;
        Ok(topology)
    }

    /// Adds a cluster whose pods and nodes are in `network`; its trust domain is `cluster.local`.
    ///
    /// # Panics
    /// If its bridge cannot be made.
    pub fn cluster(&mut self, name: &str, network: &str) -> ClusterId {
        self.cluster_in(name, network, "cluster.local")
    }

    /// As [`Topology::cluster`], with a trust domain of its own.
    ///
    /// # Panics
    /// If its bridge cannot be made.
    pub fn cluster_in(&mut self, name: &str, network: &str, trust_domain: &str) -> ClusterId {
        self.clusters.push(Cluster {
            name: name.to_owned(),
            network: network.to_owned(),
            trust_domain: trust_domain.to_owned(),
        });
        if let Err(error) = self.build_bridge(self.clusters.len()) {
            panic!("the bridge of {name}: {error}");
        }
        ClusterId(self.clusters.len() - 1)
    }

    /// Lets the node's daemon also be an east-west gateway of its network.
    pub fn gateway(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(node.0) {
            node.gateway = Gateway::Own;
        }
    }

    /// Lets a program other than the daemon be the gateway on this node; starting it is the caller's part.
    pub fn foreign_gateway(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(node.0) {
            node.gateway = Gateway::Foreign;
        }
    }

    /// The pod is in the mesh, but another program in it ends its tunnels: it is not enrolled on its node.
    pub fn foreign(&mut self, pod: &Pod) {
        self.enrolled.remove(&pod.0.uid);
        self.foreign.insert(pod.0.uid.clone());
    }

    /// A service that every cluster knows, exported through the gateways: (service port, application port) and its pods.
    pub fn service(&mut self, name: &str, ports: &[(u16, u16)], endpoints: &[&Pod]) {
        self.add_service(name, ports, endpoints, true);
    }

    /// As [`Topology::service`], but the gateways do not forward to it.
    pub fn local_service(&mut self, name: &str, ports: &[(u16, u16)], endpoints: &[&Pod]) {
        self.add_service(name, ports, endpoints, false);
    }

    fn add_service(&mut self, name: &str, ports: &[(u16, u16)], endpoints: &[&Pod], exported: bool) {
        let endpoints = endpoints.iter().map(|pod| pod.0.index).collect();
        let (name, ports) = (name.to_owned(), ports.to_vec());
        self.services.push(Service { name, ports, endpoints, exported, hostname: None, headless: false });
    }

    /// Changes the pods behind a service; [`Topology::publish`] makes the daemons see it.
    pub fn set_endpoints(&mut self, name: &str, endpoints: &[&Pod]) {
        if let Some(service) = self.services.iter_mut().find(|service| service.name == name) {
            service.endpoints = endpoints.iter().map(|pod| pod.0.index).collect();
        }
    }

    /// Gives a service another host name.
    pub fn set_hostname(&mut self, name: &str, hostname: &str) {
        if let Some(service) = self.services.iter_mut().find(|service| service.name == name) {
            service.hostname = Some(hostname.to_owned());
        }
    }

    /// Takes the addresses of a service away: its name means its pods.
    pub fn set_headless(&mut self, name: &str) {
        if let Some(service) = self.services.iter_mut().find(|service| service.name == name) {
            service.headless = true;
        }
    }

    /// Authorisation policies, as the model file spells them, for all nodes.
    pub fn set_policies(&mut self, policies: Vec<serde_json::Value>) {
        self.policies = policies;
    }

    /// The `exclusions` of all nodes, as the model file spells them.
    pub fn set_exclusions(&mut self, exclusions: serde_json::Value) {
        self.exclusions = Some(exclusions);
    }

    /// Keys of a node's `causeway` section that differ from what the kit would write; null takes a key away.
    pub fn set_section(&mut self, node: NodeId, keys: serde_json::Value) {
        self.sections.insert(node.0, keys);
    }

    /// The number of workers of every daemon; without it the daemon chooses.
    pub fn set_workers(&mut self, workers: usize) {
        self.workers = Some(workers);
    }

    /// Environment variables of every daemon that is started from now on.
    pub fn set_environment(&mut self, variables: &[(&str, &str)]) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        self.environment = variables.collect();
    }

    /// The address of a service in a cluster.
    ///
    /// # Panics
    /// If there is no such service.
    pub fn vip(&self, cluster: ClusterId, service: &str) -> Ipv4Addr {
        let number = self.services.iter().position(|known| known.name == service);
        let Some(number) = number else { panic!("no service {service}") };
        address::vip4(cluster.0 + 1, number)
    }

    /// The IPv6 address of a service in a cluster.
    ///
    /// # Panics
    /// If there is no such service.
    pub fn vip6(&self, cluster: ClusterId, service: &str) -> Ipv6Addr {
        let number = self.services.iter().position(|known| known.name == service);
        let Some(number) = number else { panic!("no service {service}") };
        address::vip6(cluster.0 + 1, number)
    }

    /// The folder for files of this run.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// What the names of all namespaces and cgroups of this topology begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where tools of a node run: in its namespace, beside the daemon and not in its cgroup.
    ///
    /// # Panics
    /// If the node is of another topology.
    pub fn node_place(&self, node: NodeId) -> &Place {
        &self.node_data(node).place
    }

    /// The name of a node, as its workloads carry it.
    pub fn node_name(&self, node: NodeId) -> &str {
        &self.node_data(node).name
    }

    /// The nodes of a cluster.
    pub fn nodes_of(&self, cluster: ClusterId) -> Vec<NodeId> {
        self.nodes().filter(|node| self.node_data(*node).cluster == cluster.0).collect()
    }

    /// The pods on a node.
    pub fn pods_on(&self, node: NodeId) -> Vec<Pod> {
        self.pods.iter().filter(|pod| pod.data().node == node.0).cloned().collect()
    }

    /// Whether a pod is in the mesh.
    pub fn is_enrolled(&self, pod: &Pod) -> bool {
        self.enrolled.contains(&pod.data().uid)
    }

    /// The name of a cluster and of its network.
    ///
    /// # Panics
    /// If the cluster is of another topology.
    pub fn cluster_names(&self, cluster: ClusterId) -> (&str, &str) {
        match self.clusters.get(cluster.0) {
            Some(cluster) => (&cluster.name, &cluster.network),
            None => panic!("the cluster belongs to another topology"),
        }
    }

    /// Makes the certificate authorities of all clusters, if they are not there yet.
    ///
    /// # Errors
    /// What `causeway ca` said.
    pub fn authorities(&self) -> Result<()> {
        if self.scratch.join("ca").exists() { Ok(()) } else { self.make_authorities() }
    }

    /// The folder of a cluster's intermediate, in the layout of Istio's `cacerts`.
    pub fn authority(&self, cluster: ClusterId) -> PathBuf {
        let found = self.clusters.get(cluster.0);
        found.map(|known| self.ca_folder(&known.trust_domain).join(&known.name)).unwrap_or_default()
    }

    /// The address of a node.
    pub fn node_ip(&self, node: NodeId) -> Ipv4Addr {
        let node = self.node_data(node);
        address::node4(node.cluster + 1, node.number)
    }

    /// Where programs between the clusters run.
    pub fn wan_place(&self) -> Place {
        Place { netns: self.wan_name(), cgroup: self.wan_cgroup.clone(), scratch: self.scratch.clone() }
    }

    /// The device in the `wan` namespace that carries everything between this cluster and the others, and nothing else.
    pub fn link_of(&self, cluster: ClusterId) -> String {
        format!("br-c{}", cluster.0 + 1)
    }

    /// All pods, in the order in which they were made.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId)
    }

    fn wan_name(&self) -> String {
        format!("{}wan", self.prefix)
    }

    fn node_data(&self, node: NodeId) -> &Node {
        match self.nodes.get(node.0) {
            Some(node) => node,
            None => panic!("the node belongs to another topology"),
        }
    }
}
