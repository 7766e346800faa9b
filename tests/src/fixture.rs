//! The topology that most tests use, ready made.

use crate::topology::{ClusterId, NodeId};
use crate::{Pod, Proc, Result, Topology, apps};
use std::net::Ipv4Addr;

/// Two clusters with one pod range: one node and a client in the first; in the second a gateway node and a node behind it,
/// each with a pod of the service `default/web`. Services with one pod go to the one behind the gateway.
#[derive(Debug)]
pub struct TwoClusters {
    /// All of it.
    pub topology: Topology,
    /// The first cluster and the second.
    pub clusters: [ClusterId; 2],
    /// The node of the first cluster.
    pub client_node: NodeId,
    /// The node of the second cluster with the gateway role.
    pub gateway_node: NodeId,
    /// The node of the second cluster without it.
    pub server_node: NodeId,
    /// In the mesh, in the first cluster.
    pub client: Pod,
    /// In the mesh, on the gateway's node.
    pub neighbour: Pod,
    /// In the first cluster, not in the mesh.
    pub outsider: Pod,
    /// In the mesh; the first on the gateway's node, the second on the other.
    pub web: [Pod; 2],
    servers: Vec<Proc>,
}

impl TwoClusters {
    /// Builds everything except services and daemons.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn build(name: &str) -> Result<Self> {
        let mut topology = Topology::new(name)?;
        let one = topology.cluster("cluster1", "network1");
        let two = topology.cluster("cluster2", "network2");
        let client_node = topology.node(one)?;
        let gateway_node = topology.node(two)?;
        let server_node = topology.node(two)?;
        topology.gateway(gateway_node);
        let client = topology.pod(client_node, "default/client")?;
        let outsider = topology.plain_pod(client_node, "default/outsider", "outsider")?;
        let web_a = topology.pod_as(gateway_node, "default/web-a", "web")?;
        let neighbour = topology.pod(gateway_node, "default/neighbour")?;
        let web_b = topology.pod_as(server_node, "default/web-b", "web")?;
        let web = [web_a, web_b];
        topology.service("default/web", &[(80, 8080)], &[&web[0], &web[1]]);
        Ok(Self {
            topology,
            clusters: [one, two],
            client_node,
            gateway_node,
            server_node,
            client,
            neighbour,
            outsider,
            web,
            servers: Vec::new(),
        })
    }

    /// As [`TwoClusters::build`], with nginx behind `default/web` and all daemons ready.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn start(name: &str) -> Result<Self> {
        Self::build(name)?.started()
    }

    /// Starts nginx behind `default/web` and all daemons.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn started(mut self) -> Result<Self> {
        for pod in &self.web {
            self.servers.push(apps::nginx(pod, 8080)?);
        }
        self.topology.start()?;
        Ok(self)
    }

    /// Adds a service on `port` whose one pod is behind the gateway's node, and starts its server by `testkit-peer serve`.
    ///
    /// # Errors
    /// If the server does not start.
    pub fn peer_service(&mut self, name: &str, kind: &str, port: u16) -> Result<()> {
        self.topology.service(name, &[(port, port)], &[&self.web[1]]);
        let text = port.to_string();
        let process = self.web[1].spawn(&["testkit-peer", "serve", kind, "--port", &text])?;
        self.servers.push(apps::wait_for_port(&self.web[1], port, process)?);
        Ok(())
    }

    /// The address of a service in the first cluster.
    pub fn vip(&self, service: &str) -> Ipv4Addr {
        self.topology.vip(self.clusters[0], service)
    }

    /// curl of a service's root from a pod, which must succeed.
    ///
    /// # Errors
    /// What curl said.
    pub fn curl(&self, from: &Pod, to: impl std::fmt::Display) -> Result<String> {
        let url = format!("http://{to}/");
        from.run_ok(&["curl", "--silent", "--show-error", "--max-time", "10", &url])
    }

    /// Runs `testkit-peer` in the client pod; it must succeed.
    ///
    /// # Errors
    /// What it said.
    pub fn peer(&self, arguments: &[&str]) -> Result<String> {
        self.client.run_ok(&[&["testkit-peer"], arguments].concat())
    }
}
