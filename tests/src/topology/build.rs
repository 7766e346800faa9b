//! Making namespaces, links, routes and cgroup folders.

use super::{ClusterId, Gateway, Node, NodeId, Pod, PodData, Topology, address};
use crate::{Place, Result, cgroup, netns};
use std::sync::Arc;

impl Topology {
    /// The bridge of a cluster in the `wan` namespace, with the router's addresses.
    pub(super) fn build_bridge(&self, cluster: usize) -> Result<()> {
        let wan = self.wan_name();
        let lines = format!(
            "link add br-c{cluster} type bridge\n\
             link set br-c{cluster} up\n\
             addr add {}/24 dev br-c{cluster}\n\
             addr add {}/64 dev br-c{cluster} nodad\n",
            address::router4(cluster),
            address::router6(cluster)
        );
        netns::batch(Some(&wan), &lines)
    }

    /// Adds a node to a cluster.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn node(&mut self, cluster: ClusterId) -> Result<NodeId> {
        let c = cluster.0 + 1;
        let peers: Vec<u8> =
            self.nodes.iter().filter(|node| node.cluster == cluster.0).map(|node| node.number).collect();
        let number = u8::try_from(peers.len() + 1).map_err(|_| "too many nodes")?;
        let name = format!("c{c}n{number}");
        let namespace = format!("{}{name}", self.prefix);
        let folder = cgroup::root()?.join(&namespace);
        for part in ["system", "tools", "kubepods"] {
            cgroup::create(&folder.join(part))?;
        }
        netns::create(&namespace)?;
        let place = Place { netns: namespace.clone(), cgroup: folder.join("tools"), scratch: self.scratch.clone() };
        self.nodes.push(Node {
            name: name.clone(),
            cluster: cluster.0,
            number,
            place,
            cgroup: folder,
            gateway: Gateway::No,
            pods: 0,
            daemon: None,
        });
        netns::sysctl(&namespace, "net/ipv4/ip_forward", "1")?;
        netns::sysctl(&namespace, "net/ipv6/conf/all/forwarding", "1")?;
        self.connect_node(c, number, &name, &namespace)?;
        for peer in peers {
            self.route_between(c, number, peer)?;
        }
        Ok(NodeId(self.nodes.len() - 1))
    }

    fn connect_node(&self, c: usize, number: u8, name: &str, namespace: &str) -> Result<()> {
        let wan = self.wan_name();
        netns::batch(None, &format!("link add {name} netns {wan} type veth peer name eth0 netns {namespace}\n"))?;
        let (own4, own6) = (address::node4(c, number), address::node6(c, number));
        let egress4 = address::egress4(c, number, 0);
        let egress6 = address::egress6(c, number, 0);
        netns::batch(
            Some(&wan),
            &format!(
                "link set {name} master br-c{c}\nlink set {name} up\n\
                 route add {egress4}/24 via {own4}\nroute add {egress6}/64 via {own6}\n"
            ),
        )?;
        netns::batch(
            Some(namespace),
            &format!(
                "addr add {own4}/24 dev eth0\naddr add {own6}/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via {}\nroute add default via {}\n\
                 route add unreachable {}\nroute add unreachable {}\n",
                address::router4(c),
                address::router6(c),
                address::PODS4,
                address::PODS6,
            ),
        )
    }

    /// Nodes of one cluster know each other's pods, as any CNI arranges it.
    fn route_between(&self, c: usize, one: u8, two: u8) -> Result<()> {
        for (here, there) in [(one, two), (two, one)] {
            let lines = format!(
                "route add {}/24 via {}\nroute add {}/64 via {}\nroute add {}/24 via {}\n",
                address::pod4(there, 0),
                address::node4(c, there),
                address::pod6(there, 0),
                address::node6(c, there),
                address::egress4(c, there, 0),
                address::node4(c, there),
            );
            netns::batch(Some(&format!("{}c{c}n{here}", self.prefix)), &lines)?;
        }
        Ok(())
    }

    /// Adds a pod of the mesh (`namespace/name`) to a node; its service account has the name of the pod.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn pod(&mut self, node: NodeId, name: &str) -> Result<Pod> {
        let account = name.split('/').next_back().unwrap_or(name).to_owned();
        self.pod_as(node, name, &account)
    }

    /// As [`Topology::pod`], with a service account that several pods may share.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn pod_as(&mut self, node: NodeId, name: &str, service_account: &str) -> Result<Pod> {
        let pod = self.plain_pod(node, name, service_account)?;
        self.enrolled.insert(pod.data().uid.clone());
        Ok(pod)
    }

    /// A pod outside the mesh; [`Topology::enrol`] can bring it in later.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn plain_pod(&mut self, node: NodeId, name: &str, service_account: &str) -> Result<Pod> {
        let index = self.pods.len();
        let node_index = node.0;
        let (c, number, host, folder) = {
            let node = self.nodes.get_mut(node_index).ok_or("the node belongs to another topology")?;
            node.pods += 1;
            (node.cluster + 1, node.number, node.place.netns.clone(), node.cgroup.clone())
        };
        let pod = self.nodes.get(node_index).map_or(0, |node| node.pods) + 1;
        let cluster = self.clusters.get(c - 1).map(|cluster| cluster.name.clone()).unwrap_or_default();
        let namespace = format!("{}c{c}-{}", self.prefix, name.replace('/', "-"));
        let folder = folder.join("kubepods").join(format!("pod{index}"));
        cgroup::create(&folder)?;
        netns::create(&namespace)?;
        let data = PodData {
            name: name.to_owned(),
            uid: format!("{cluster}//Pod/{name}"),
            service_account: service_account.to_owned(),
            ip4: address::pod4(number, pod),
            ip6: address::pod6(number, pod),
            egress4: address::egress4(c, number, pod),
            place: Place { netns: namespace.clone(), cgroup: folder, scratch: self.scratch.clone() },
            index,
            node: node_index,
        };
        let handle = Pod(Arc::new(data));
        self.pods.push(handle.clone());
        connect_pod(c, number, pod, &host, &namespace)?;
        Ok(handle)
    }

    /// Ends a pod and makes it anew, as it was: the same name, cgroup and addresses, another network namespace.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn remake(&self, pod: &Pod) -> Result<()> {
        let data = pod.data();
        let node = self.nodes.get(data.node).ok_or("the pod belongs to another topology")?;
        let (host, number) = (&node.place.netns, data.ip4.octets()[3]);
        cgroup::destroy(&data.place.cgroup)?;
        netns::delete(&data.place.netns)?;
        // Whoever still has the namespace open keeps its device.
        netns::ip(&["-n", host, "link", "del", &format!("p{number}")])?;
        cgroup::create(&data.place.cgroup)?;
        netns::create(&data.place.netns)?;
        connect_pod(node.cluster + 1, node.number, number, host, &data.place.netns)
    }

    /// Brings a pod into the mesh; [`Topology::publish`] makes its daemon see it.
    pub fn enrol(&mut self, pod: &Pod) {
        self.enrolled.insert(pod.data().uid.clone());
    }

    /// Takes a pod out of the mesh; [`Topology::publish`] makes its daemon see it.
    pub fn release(&mut self, pod: &Pod) {
        self.enrolled.remove(&pod.data().uid);
    }
}

fn connect_pod(c: usize, number: u8, pod: u8, host: &str, namespace: &str) -> Result<()> {
    netns::batch(None, &format!("link add p{pod} netns {host} type veth peer name eth0 netns {namespace}\n"))?;
    let (ip4, ip6) = (address::pod4(number, pod), address::pod6(number, pod));
    let (gate4, gate6) = (address::pod4(number, 1), address::pod6(number, 1));
    let (egress4, egress6) = (address::egress4(c, number, pod), address::egress6(c, number, pod));
    // What the node itself sends to its pods carries the node's address, as other nodes of the cluster see it.
    let (own4, own6) = (address::node4(c, number), address::node6(c, number));
    netns::batch(
        Some(host),
        &format!(
            "addr add {gate4}/32 dev p{pod}\naddr add {gate6}/128 dev p{pod} nodad\nlink set p{pod} up\n\
             route add {ip4}/32 dev p{pod} src {own4}\nroute add {ip6}/128 dev p{pod} src {own6}\n\
             route add {egress4}/32 via {ip4} dev p{pod} onlink\nroute add {egress6}/128 via {ip6} dev p{pod} onlink\n"
        ),
    )?;
    // The egress address is on the loopback: only routes that name it as source use it, and no one asks for it by ARP.
    netns::batch(
        Some(namespace),
        &format!(
            "addr add {egress4}/32 dev lo\naddr add {egress6}/128 dev lo nodad\n\
             addr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\nlink set eth0 up\n\
             route add {gate4}/32 dev eth0 src {ip4}\nroute add {gate6}/128 dev eth0\n\
             route add default via {gate4} dev eth0 src {ip4}\nroute add default via {gate6} dev eth0 src {ip6}\n\
             route add {} via {gate4} dev eth0 src {egress4}\nroute add {} via {gate6} dev eth0 src {egress6}\n",
            address::NODES4,
            address::NODES6,
        ),
    )
}
