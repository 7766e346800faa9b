//! Names, addresses and folders of clusters: everything else is computed from two small numbers.

use crate::paths;
use std::path::PathBuf;

/// What the state folder is called in the mount namespace of a node.
pub const STATE_INSIDE: &str = "/run/causeway";
/// What the folder of tools is called there.
pub const TOOLS_INSIDE: &str = "/run/tools";
/// The token of the administrator; it opens nothing outside the clusters' own namespaces.
pub const ADMIN_TOKEN: &str = "development-admin";
/// Service addresses of every cluster.
pub const SERVICES: &str = "10.96.0.0/16";
/// The address of the API server as a service.
pub const API_SERVICE: &str = "10.96.0.1";
/// The address of the cluster's DNS.
pub const DNS_SERVICE: &str = "10.96.0.10";
/// Pod addresses of every cluster.
pub const PODS: &str = "10.244.0.0/16";
/// The address of the namespace that joins all nodes, which is also where an outside client stands.
pub const OUTSIDE: &str = "172.29.0.1";
/// More would not fit the address plan, and no machine of ours.
pub const MOST: u8 = 9;

/// How many clusters of how many nodes, and who translates service addresses in them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Clusters, from 1 on.
    pub clusters: u8,
    /// Nodes of each, from 1 on.
    pub nodes: u8,
    /// How kube-proxy works.
    pub proxy: Proxy,
}

/// The modes of kube-proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Proxy {
    /// Rules of iptables
    Iptables,
    /// Rules of nftables
    Nftables,
}

/// A cluster by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cluster(pub u8);

/// A node by the number of its cluster and its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// The number of the cluster.
    pub cluster: u8,
    /// Its own number, from 1 on; 1 carries the control plane.
    pub number: u8,
}

/// Where kubeconfigs, logs and the files of nodes are.
pub fn state() -> PathBuf {
    paths::target().join("cluster")
}

/// What names in the kernel begin with: another checkout on this machine has its own.
pub fn tag() -> String {
    let bytes = paths::target();
    let hash = bytes
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("cwk{:04x}", (hash >> 16) ^ (hash & 0xffff))
}

/// The network namespace in which the nodes of all clusters meet.
pub fn outside() -> String {
    format!("{}-wan", tag())
}

impl Proxy {
    /// As kube-proxy's configuration spells it.
    pub fn name(self) -> &'static str {
        match self {
            Proxy::Iptables => "iptables",
            Proxy::Nftables => "nftables",
        }
    }
}

impl Shape {
    /// All clusters.
    pub fn clusters(self) -> impl Iterator<Item = Cluster> {
        (1..=self.clusters).map(Cluster)
    }

    /// All nodes of all clusters.
    pub fn all_nodes(self) -> Vec<Node> {
        self.clusters().flat_map(|cluster| self.nodes_of(cluster)).collect()
    }

    /// The nodes of one cluster.
    pub fn nodes_of(self, cluster: Cluster) -> Vec<Node> {
        (1..=self.nodes).map(|number| Node { cluster: cluster.0, number }).collect()
    }

    /// One line that `up` leaves behind for the commands after it.
    pub fn line(self) -> String {
        format!("{} {} {}\n", self.clusters, self.nodes, self.proxy.name())
    }

    /// Reads that line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (clusters, nodes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let proxy = match words.next()? {
            "iptables" => Proxy::Iptables,
            "nftables" => Proxy::Nftables,
            _ => return None,
        };
        Some(Self { clusters, nodes, proxy })
    }
}

impl Cluster {
    /// Its name, for Istio and in kubeconfigs.
    pub fn name(self) -> String {
        format!("cluster{}", self.0)
    }

    /// The name of its network.
    pub fn network(self) -> String {
        format!("network{}", self.0)
    }

    /// The addresses of its nodes.
    pub fn nodes(self) -> String {
        format!("172.29.{}.0/24", self.0)
    }

    /// Its folder.
    pub fn folder(self) -> PathBuf {
        state().join(self.name())
    }

    /// Its folder in the mount namespace of its nodes.
    pub fn inside(self) -> String {
        format!("{STATE_INSIDE}/{}", self.name())
    }

    /// The node that carries the control plane.
    pub fn first(self) -> Node {
        Node { cluster: self.0, number: 1 }
    }

    /// Its kubeconfig.
    pub fn kubeconfig(self) -> PathBuf {
        self.folder().join("kubeconfig")
    }

    /// Where its API server answers.
    pub fn server(self) -> String {
        format!("https://{}:6443", self.first().address())
    }
}

impl Node {
    /// Its name in Kubernetes.
    pub fn name(self) -> String {
        format!("c{}n{}", self.cluster, self.number)
    }

    /// A node by its name.
    pub fn parse(name: &str) -> Option<Self> {
        let (cluster, number) = name.strip_prefix('c')?.split_once('n')?;
        Some(Self { cluster: cluster.parse().ok()?, number: number.parse().ok()? })
    }

    /// Its cluster.
    pub fn cluster(self) -> Cluster {
        Cluster(self.cluster)
    }

    /// The name of its network namespace, its cgroup and its link.
    pub fn unit(self) -> String {
        format!("{}-{}", tag(), self.name())
    }

    /// Its address, the only kind that is routed between clusters.
    pub fn address(self) -> String {
        format!("172.29.{}.{}", self.cluster, self.number)
    }

    /// The addresses of its pods.
    pub fn pods(self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    /// Its folder.
    pub fn folder(self) -> PathBuf {
        self.cluster().folder().join(self.name())
    }

    /// Its folder in its own mount namespace.
    pub fn inside(self) -> String {
        format!("{}/{}", self.cluster().inside(), self.name())
    }

    /// What one of its daemons wrote.
    pub fn log(self, daemon: &str) -> PathBuf {
        self.folder().join(format!("{daemon}.log"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Cluster, Node, Proxy, Shape, tag};

    #[test]
    fn names_are_read_back_as_what_they_were() {
        for (cluster, number) in [(1, 1), (2, 9), (9, 3)] {
            let node = Node { cluster, number };
            assert_eq!(Node::parse(&node.name()), Some(node));
        }
        assert_eq!(Node::parse("wan"), None);
        let shape = Shape { clusters: 2, nodes: 3, proxy: Proxy::Nftables };
        assert_eq!(Shape::parse(&shape.line()), Some(shape));
        assert_eq!(Shape::parse("2 2 ipvs"), None);
    }

    #[test]
    fn names_of_links_fit_the_kernel() {
        let longest = Node { cluster: super::MOST, number: super::MOST }.unit();
        assert!(longest.len() < 16, "{longest}");
        assert_eq!(tag().len(), 7);
    }

    #[test]
    fn clusters_differ_in_node_addresses_and_share_pod_addresses() {
        let shape = Shape { clusters: 2, nodes: 2, proxy: Proxy::Iptables };
        let addresses: Vec<String> = shape.all_nodes().into_iter().map(Node::address).collect();
        assert_eq!(addresses, ["172.29.1.1", "172.29.1.2", "172.29.2.1", "172.29.2.2"]);
        let pods = |cluster| shape.nodes_of(Cluster(cluster)).into_iter().map(Node::pods).collect::<Vec<_>>();
        assert_eq!(pods(1), pods(2));
    }
}
