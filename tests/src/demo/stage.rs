//! What the demo is played on: one node in the first cluster, two in the second, of which the first is the gateway.

use super::report::Report;
use crate::topology::{ClusterId, NodeId, address};
use crate::{Pod, Proc, Result, Topology, apps, netns};
use std::time::Instant;

/// The service that is called.
pub const SERVICE: &str = "default/web";

/// The name it is called by.
pub const NAME: &str = "web.shop.mesh.internal";

/// The service for the throughput step: one pod, on the node that is not the gateway.
pub const IPERF: &str = "default/iperf";

/// The picture at the beginning.
const PICTURE: &str = "\
 cluster1 (network1)                                   cluster2 (network2)
 pods 10.244.0.0/16                                    pods 10.244.0.0/16: the same range
 +- node c1n1 172.30.1.1 -----+                        +- node c2n1 172.30.2.1 --------------+
 | pod client                 |    only 172.30.0.0/16  | east-west gateway :15008            |
 |   curl http://web  --> eBPF|=== is routed here =====| pod web-a (nginx)   pod client2     |
 | pod outsider (not in mesh) |    nested HBONE        +- node c2n2 172.30.2.2 --------------+
 +----------------------------+                        | pod web-b (nginx)                   |
                                                       +-------------------------------------+";

/// The clusters with their pods and servers.
#[derive(Debug)]
pub struct Stage {
    /// All of it.
    pub topology: Topology,
    /// The clusters.
    pub clusters: [ClusterId; 2],
    /// The only node of the first cluster.
    pub client_node: NodeId,
    /// The node of the second cluster that is the gateway; `web-a` runs here.
    pub gateway_node: NodeId,
    /// The other node of the second cluster; `web-b` runs here.
    pub other_node: NodeId,
    /// Calls from the first cluster.
    pub client: Pod,
    /// Calls from within the second cluster.
    pub neighbour: Pod,
    /// In the first cluster, but not in the mesh.
    pub outsider: Pod,
    /// Serve, one on each node of the second cluster.
    pub web: [Pod; 2],
    servers: Vec<Proc>,
}

impl Stage {
    /// Builds namespaces, starts the servers and the daemons.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn build(report: &mut Report) -> Result<Self> {
        report.step("build", "Building two clusters out of network namespaces and cgroups");
        report.say(PICTURE);
        let mut topology = Topology::new("demo")?;
        let one = topology.cluster("cluster1", "network1");
        let two = topology.cluster("cluster2", "network2");
        let client_node = topology.node(one)?;
        let gateway_node = topology.node(two)?;
        let other_node = topology.node(two)?;
        topology.gateway(gateway_node);
        let client = topology.pod(client_node, "default/client")?;
        let outsider = topology.plain_pod(client_node, "default/outsider", "outsider")?;
        let web_a = topology.pod_as(gateway_node, "default/web-a", "web")?;
        let neighbour = topology.pod(gateway_node, "default/client2")?;
        let web_b = topology.pod_as(other_node, "default/web-b", "web")?;
        let web = [web_a, web_b];
        topology.service(SERVICE, &[(80, 8080)], &[&web[0], &web[1]]);
        topology.set_hostname(SERVICE, NAME);
        // iperf3 opens two connections that must reach the same server.
        topology.service(IPERF, &[(5201, 5201)], &[&web[1]]);
        let mut servers = Vec::new();
        for pod in &web {
            servers.push(apps::nginx(pod, 8080)?);
        }
        let iperf = web[1].spawn(&["iperf3", "--server"])?;
        servers.push(apps::wait_for_port(&web[1], 5201, iperf)?);
        let namespaces = netns::with_prefix(topology.prefix()).len();
        report.fact("namespaces", namespaces);
        report.say(&format!(
            "{namespaces} namespaces. The client is {}, and so is web-a in the other cluster.",
            client.data().ip4
        ));
        let clusters = [one, two];
        let stage = Self {
            topology,
            clusters,
            client_node,
            gateway_node,
            other_node,
            client,
            neighbour,
            outsider,
            web,
            servers,
        };
        stage.start(report)
    }

    fn start(mut self, report: &mut Report) -> Result<Self> {
        report.step("daemons", "Starting one Causeway daemon per node");
        let begin = Instant::now();
        self.topology.start()?;
        let millis = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.fact("ready_after_ms", millis);
        report.say(&format!(
            "Three daemons are ready and four pods are enrolled after {millis} ms: certificates made, eBPF programs attached."
        ));
        report.say("The fifth pod, outsider, stays outside the mesh.");
        Ok(self)
    }

    /// How to look around while everything keeps running.
    pub fn explain(&self, report: &mut Report) {
        report.step("keep", "Everything keeps running");
        let vip = self.topology.vip(self.clusters[0], SERVICE);
        report.say("A program belongs to a pod if it is in its namespace and in its cgroup. To call as the client:");
        report.say(&format!(
            "  sh -c 'echo $$ > {}/cgroup.procs; exec nsenter --net=/run/netns/{} curl http://{vip}/'",
            self.client.cgroup.display(),
            self.client.netns
        ));
        report.say(&format!(
            "To watch the link between the clusters:\n  nsenter --net=/run/netns/{} tcpdump -ni {}",
            self.topology.wan_place().netns,
            self.topology.link_of(self.clusters[1])
        ));
        for node in self.topology.nodes() {
            let daemon = self.topology.daemon(node);
            report.say(&format!(
                "Daemon {}: log {}, commands with --socket {}, HTTP ports by nsenter --net=/run/netns/{} curl localhost:15000",
                daemon.pid(),
                daemon.log_file().display(),
                daemon.socket().display(),
                self.topology.node_place(node).netns
            ));
        }
        report.say(&format!(
            "Models and configuration: {} (daemons reload a model file when it changes).",
            self.topology.scratch().display()
        ));
        report.say("`cargo xtask demo --down` takes all of it down; so does the next demo or test.");
        report.fact("scratch", self.topology.scratch().display().to_string());
    }

    /// Leaves everything running.
    pub fn keep(self) {
        self.servers.into_iter().for_each(Proc::keep);
        self.topology.keep();
    }

    /// Takes everything down.
    ///
    /// # Errors
    /// With what is left.
    pub fn close(self) -> Result<()> {
        let Self { topology, servers, .. } = self;
        drop(servers);
        topology.close()
    }

    /// The address of the gateway.
    pub fn gateway_ip(&self) -> std::net::Ipv4Addr {
        self.topology.node_ip(self.gateway_node)
    }

    /// The range that both clusters use for pods.
    pub fn pod_range(&self) -> &'static str {
        address::PODS4
    }
}
