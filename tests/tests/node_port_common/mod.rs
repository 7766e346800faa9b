//! Two clusters with nodes that clients outside reach.

use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use testkit::outside::Outside;
use testkit::topology::{ClusterId, NodeId, address};
use testkit::{Pod, Proc, Result, Topology, apps, netns, process};

pub const PATIENCE: Duration = Duration::from_secs(15);
/// In whose name clients enter the mesh.
pub const ENTRY: &str = "spiffe://cluster.local/ns/istio-system/sa/causeway";
/// The port most tests use.
pub const NODE_PORT: u16 = 30080;

/// Two nodes in the first cluster, a gateway and a node behind it in the second. Services with one pod each: `near` on the
/// first node, `far` on the second, `remote` in the other cluster; all answer with their client's address.
pub struct Stage {
    pub topology: Topology,
    pub clusters: [ClusterId; 2],
    pub nodes: [NodeId; 4],
    pub near: Pod,
    pub remote: Pod,
    /// In the mesh, on the first node.
    pub client: Pod,
    /// Outside the mesh, on the first node.
    pub outsider: Pod,
    pub outside: Outside,
    served: Vec<Pod>,
    servers: Vec<Proc>,
}

impl Stage {
    pub fn build(name: &str) -> Result<Self> {
        let mut topology = Topology::new(name)?;
        let clusters = [topology.cluster("cluster1", "network1"), topology.cluster("cluster2", "network2")];
        let nodes = [
            topology.node(clusters[0])?,
            topology.node(clusters[0])?,
            topology.node(clusters[1])?,
            topology.node(clusters[1])?,
        ];
        topology.gateway(nodes[2]);
        let near = topology.pod(nodes[0], "default/near")?;
        let far = topology.pod(nodes[1], "default/far")?;
        let remote = topology.pod(nodes[3], "default/remote")?;
        let client = topology.pod(nodes[0], "default/client")?;
        let outsider = topology.plain_pod(nodes[0], "default/outsider", "outsider")?;
        for (service, pod) in [("default/near", &near), ("default/far", &far), ("default/remote", &remote)] {
            topology.service(service, &[(80, 8080)], &[pod]);
        }
        topology.service("default/echo", &[(9000, 9000)], &[&near]);
        let outside = Outside::new(&topology)?;
        let served = vec![near.clone(), far, remote.clone()];
        Ok(Self { topology, clusters, nodes, near, remote, client, outsider, outside, served, servers: Vec::new() })
    }

    /// Starts the servers and all daemons, and waits for the node ports of the first node.
    pub fn start(mut self) -> Result<Self> {
        for pod in &self.served {
            self.servers.push(apps::nginx(pod, 8080)?);
        }
        self.topology.start()?;
        Ok(self)
    }

    /// What the first node's section says with one node port for `near`.
    pub fn near_section() -> Value {
        json!({"entry": {"identity": ENTRY}, "nodePorts": [{
            "service": "default/near.default.svc.cluster.local", "port": 80, "nodePort": NODE_PORT,
        }]})
    }

    /// Opens a node port for `near` at the first node.
    pub fn open_near(&mut self) {
        self.topology.set_section(self.nodes[0], Self::near_section());
    }

    /// The node ports of the first node.
    pub fn open(&mut self, ports: Value) {
        self.topology.set_section(self.nodes[0], json!({"entry": {"identity": ENTRY}, "nodePorts": ports}));
    }

    /// Publishes, and waits until this node's daemon has read it.
    pub fn publish_to(&self, node: NodeId) {
        self.reloading(node, || self.topology.publish());
    }

    /// Replaces the model of a node, and waits until its daemon has read it.
    pub fn rewrite(&self, node: NodeId, model: &Value) {
        self.reloading(node, || self.topology.write_model(node, model));
    }

    fn reloading(&self, node: NodeId, write: impl FnOnce() -> Result<()>) {
        let read = || self.topology.daemon(node).log().matches("model reloaded").count();
        let before = read();
        write().unwrap();
        process::until(PATIENCE, || read() > before).unwrap();
    }

    /// Waits until exactly these ports of the first node are open.
    pub fn wait_ports(&self, ports: &[u16]) {
        let open = || self.topology.daemon(self.nodes[0]).status().unwrap_or_default()["node_ports"]["ports"].clone();
        process::until(PATIENCE, || open() == json!(ports)).unwrap_or_else(|_| panic!("{ports:?}: {}", open()));
    }

    /// A counter of the first node's kernel programs.
    pub fn kernel(&self, name: &str) -> u64 {
        let read = || {
            let status = self.topology.daemon(self.nodes[0]).status().unwrap();
            status.pointer(&format!("/kernel/{name}")).and_then(Value::as_u64).unwrap_or(0)
        };
        // They are read four times a second.
        let mut last = read();
        let mut same = 0;
        let _ = process::until(Duration::from_secs(3), || {
            let now = read();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            same > 80
        });
        last
    }

    /// A second way to the first node, on a wire of its own, with a route back by each.
    pub fn second_uplink(&self) -> Result<()> {
        let wan = self.topology.wan_place().netns;
        let node = self.topology.node_place(self.nodes[0]).netns.clone();
        netns::batch(None, &format!("link add second netns {wan} type veth peer name eth1 netns {node}\n"))?;
        netns::batch(Some(&wan), "addr add 172.31.1.254/24 dev second\nlink set second up\n")?;
        netns::batch(
            Some(&node),
            "addr add 172.31.1.1/24 dev eth1\nlink set eth1 up\n\
             route add default via 172.31.1.254 dev eth1 metric 100\n",
        )
    }

    /// Packets a device of the first node has sent.
    pub fn sent_by(&self, device: &str) -> u64 {
        let place = self.topology.node_place(self.nodes[0]);
        let text = place.run_ok(&["ip", "-json", "-stats", "link", "show", device]).unwrap();
        let links: Value = serde_json::from_str(&text).unwrap();
        links.pointer("/0/stats64/tx/packets").and_then(Value::as_u64).unwrap_or(0)
    }

    /// A rule of the first node as kube-proxy writes one: the port goes to `near`, answers come back through the node.
    pub fn dnat(&self, port: u16) -> Result<()> {
        self.dnat_to(port, 8080)
    }

    pub fn dnat_to(&self, port: u16, target: u16) -> Result<()> {
        let place = self.topology.node_place(self.nodes[0]);
        let (port, near) = (port.to_string(), self.near.data());
        for (tool, to) in
            [("iptables", format!("{}:{target}", near.ip4)), ("ip6tables", format!("[{}]:{target}", near.ip6))]
        {
            let rule =
                ["-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", &port, "-j", "DNAT", "--to-destination", &to];
            place.run_ok(&[&[tool][..], &rule].concat())?;
            let masquerade = [
                "-t",
                "nat",
                "-A",
                "POSTROUTING",
                "-p",
                "tcp",
                "-m",
                "conntrack",
                "--ctstate",
                "DNAT",
                "-j",
                "MASQUERADE",
            ];
            place.run_ok(&[&[tool][..], &masquerade].concat())?;
        }
        Ok(())
    }

    /// How many packets met the rule for a port.
    pub fn dnat_packets(&self, port: u16) -> u64 {
        let place = self.topology.node_place(self.nodes[0]);
        ["iptables", "ip6tables"]
            .iter()
            .map(|tool| place.run_ok(&[tool, "-t", "nat", "-L", "PREROUTING", "-v", "-x", "-n"]).unwrap())
            .flat_map(|text| {
                let lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines
            })
            .filter(|line| line.contains(&format!("dpt:{port}")))
            .filter_map(|line| line.split_whitespace().next().and_then(|packets| packets.parse::<u64>().ok()))
            .sum()
    }

    /// Whether the namespace of node ports of the first node is there.
    pub fn has_entry(&self) -> bool {
        let name = format!("causeway-{}{}", self.topology.prefix(), self.topology.node_name(self.nodes[0]));
        std::path::Path::new("/run/netns").join(name).exists()
    }
}

/// The usual port of a node of the first cluster.
pub fn node4(number: u8) -> SocketAddr {
    SocketAddr::new(address::node4(1, number).into(), NODE_PORT)
}

/// As [`node4`].
pub fn node6(number: u8) -> SocketAddr {
    SocketAddr::new(address::node6(1, number).into(), NODE_PORT)
}

/// Addresses of clients outside.
pub fn clients4(count: u16) -> Vec<IpAddr> {
    (0..count).map(|number| Ipv4Addr::new(198, 18, (number / 250) as u8, (number % 250 + 1) as u8).into()).collect()
}

/// As [`clients4`].
pub fn clients6(count: u16) -> Vec<IpAddr> {
    (0..count).map(|number| Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, number + 1).into()).collect()
}
