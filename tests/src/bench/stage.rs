//! One client for each contender, and their servers, on three nodes.

use super::{Round, machine};
use crate::peer::measure::{ConnectCost, Connections, PingPong, Stream};
use crate::topology::NodeId;
use crate::ztunnel::{self, Ztunnel};
use crate::{Pod, Proc, Result, Topology, apps, cgroup, context, netns};
use serde::de::DeserializeOwned;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

/// The mark of the relay's own connections, which its rules let pass.
const RELAY_MARK: &str = "77";
const RELAY_PORT: u16 = 15101;
const ECHO: u16 = 7001;
const SINK: u16 = 7002;
const GIB: f64 = 1_073_741_824.0;

/// The ways that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// Plain TCP.
    Raw,
    /// Redirected by iptables on both sides into a plain relay: two user-space hops, no encryption.
    Relay,
    /// Causeway on both sides, one tunnel.
    Single,
    /// Causeway on both sides and as gateway between: a tunnel within a tunnel.
    Nested,
    /// Istio's node proxy on both sides, one tunnel.
    Ztunnel,
    /// Istio's node proxy on both sides, Causeway as gateway between: a tunnel within a tunnel.
    ZtunnelNested,
}

impl Contender {
    /// All of them in the order of a round; the last two need a program that is not ours.
    pub const ALL: [Self; 6] = [Self::Raw, Self::Relay, Self::Single, Self::Ztunnel, Self::Nested, Self::ZtunnelNested];

    /// Whether this machine has what it takes.
    pub fn is_possible(self) -> bool {
        !matches!(self, Self::Ztunnel | Self::ZtunnelNested) || ztunnel::program().is_some()
    }

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Relay => "relay",
            Self::Single => "single",
            Self::Nested => "nested",
            Self::Ztunnel => "ztunnel",
            Self::ZtunnelNested => "ztunnel-nested",
        }
    }

    /// For captions.
    pub fn path(self) -> &'static str {
        match self {
            Self::Raw => "plain TCP between pods on two nodes",
            Self::Relay => "the same nodes, iptables REDIRECT into a plain relay at both pods",
            Self::Single => "the same nodes, Causeway, HBONE",
            Self::Nested => {
                "from another cluster, Causeway, nested HBONE through a gateway on the node of the other clients"
            }
            Self::Ztunnel => "the same nodes, ztunnel at both pods, HBONE",
            Self::ZtunnelNested => "from another cluster, ztunnel at both pods, nested HBONE through the same gateway",
        }
    }
}

/// The topology with its servers running.
#[derive(Debug)]
pub struct Stage {
    topology: Topology,
    nodes: [NodeId; 3],
    lanes: Vec<Lane>,
    proxies: Vec<Ztunnel>,
    processes: Vec<Proc>,
}

/// Where one contender begins and what it calls.
#[derive(Debug)]
struct Lane {
    contender: Contender,
    client: Pod,
    target: String,
    /// Folders with the proxies that are not daemons.
    cgroups: Vec<PathBuf>,
}

impl Stage {
    /// Builds it all and waits until it serves.
    ///
    /// # Errors
    /// The first step that failed.
    pub fn build() -> Result<Self> {
        let mut topology = Topology::new("bench")?;
        let one = topology.cluster("cluster1", "network1");
        let two = topology.cluster("cluster2", "network2");
        let (far, near, served) = (topology.node(one)?, topology.node(two)?, topology.node(two)?);
        topology.gateway(near);
        let plain = topology.plain_pod(served, "default/raw-server", "raw")?;
        let relayed = topology.plain_pod(served, "default/relay-server", "relay")?;
        let server = topology.pod(served, "default/server")?;
        let foreign = topology.pod(served, "default/ztunnel-server")?;
        let servers = [&plain, &relayed, &server, &foreign];
        let ports = [(ECHO, ECHO), (SINK, SINK)];
        topology.service("default/bench", &ports, &[&server]);
        topology.service("default/foreign", &ports, &[&foreign]);
        let mut lanes = vec![
            Lane::new(Contender::Raw, topology.plain_pod(near, "default/raw-client", "raw")?, plain.data().ip4),
            Lane::new(Contender::Relay, topology.plain_pod(near, "default/relay-client", "relay")?, relayed.data().ip4),
            Lane::new(
                Contender::Single,
                topology.pod(near, "default/single-client")?,
                topology.vip(two, "default/bench"),
            ),
            Lane::new(
                Contender::Nested,
                topology.pod(far, "default/nested-client")?,
                topology.vip(one, "default/bench"),
            ),
        ];
        topology.foreign(&foreign);
        if ztunnel::program().is_some() {
            for (contender, node, cluster, name) in [
                (Contender::Ztunnel, near, two, "default/ztunnel-client"),
                (Contender::ZtunnelNested, far, one, "default/ztunnel-far-client"),
            ] {
                let client = topology.pod(node, name)?;
                topology.foreign(&client);
                lanes.push(Lane::new(contender, client, topology.vip(cluster, "default/foreign")));
            }
        }
        let mut processes = Vec::new();
        for pod in servers {
            for (kind, port) in [("echo", ECHO), ("sink", SINK)] {
                let process = pod.spawn(&["testkit-peer", "serve", kind, "--port", &port.to_string()])?;
                processes.push(apps::wait_for_port(pod, port, process)?);
            }
        }
        for pod in lanes.iter().map(|lane| &lane.client).chain(servers) {
            // Closed connections wait for a minute with their port; a benchmark makes more of them than a default allows.
            netns::sysctl(&pod.netns, "net/ipv4/ip_local_port_range", "1024 65535")?;
            netns::sysctl(&pod.netns, "net/ipv4/tcp_tw_reuse", "1")?;
        }
        let mut stage = Self { topology, nodes: [far, near, served], lanes, proxies: Vec::new(), processes };
        stage.start(&relayed, &foreign)?;
        Ok(stage)
    }

    /// Starts what stands between clients and servers.
    fn start(&mut self, relayed: &Pod, foreign: &Pod) -> Result<()> {
        self.topology.start()?;
        let server_proxy = ztunnel::program().map(|_| ztunnel::start(&self.topology, foreign)).transpose()?;
        for lane in &mut self.lanes {
            let pod = &lane.client;
            match lane.contender {
                Contender::Raw => {
                    let echo = pod.spawn(&["testkit-peer", "serve", "echo", "--port", &ECHO.to_string()])?;
                    self.processes.push(apps::wait_for_port(pod, ECHO, echo)?);
                }
                Contender::Relay => {
                    let server = relayed.data().ip4;
                    self.processes.push(relay(pod, "OUTPUT", "!", server)?);
                    self.processes.push(relay(relayed, "PREROUTING", "", server)?);
                    lane.cgroups = [pod, relayed].map(|pod| pod.cgroup.join("relay")).to_vec();
                }
                Contender::Ztunnel | Contender::ZtunnelNested => {
                    let proxy = ztunnel::start(&self.topology, pod)?;
                    lane.cgroups = server_proxy.iter().chain([&proxy]).map(|proxy| proxy.cgroup().to_owned()).collect();
                    self.proxies.push(proxy);
                }
                Contender::Single | Contender::Nested => {}
            }
        }
        self.proxies.extend(server_proxy);
        Ok(())
    }

    /// One contender, once around.
    ///
    /// # Errors
    /// If a client fails.
    pub fn round(&mut self, contender: Contender) -> Result<Round> {
        let lane = self.lanes.iter().find(|lane| lane.contender == contender).ok_or("not on the stage")?;
        let (client, target) = (&lane.client, &lane.target);
        let (echo, sink) = (format!("{target}:{ECHO}"), format!("{target}:{SINK}"));
        // Connections and certificates are there before the clock starts.
        let _: PingPong = ask(client, &["ping-pong", &echo, "4", "0.1"])?;
        let (machine_before, proxy_before) = (machine::busy()?, self.proxy_time(lane)?);
        let stream: Stream = ask(client, &["stream", &sink, "4", "--bytes", "1073741824"])?;
        let (machine_after, proxy_after) = (machine::busy()?, self.proxy_time(lane)?);
        let ping_pong: PingPong = ask(client, &["ping-pong", &echo, "64", "1.5"])?;
        let connections: Connections = ask(client, &["connections", &echo, "16", "1.5", "--count", "6000"])?;
        // Redirected connections end at a listener in the client's own pod, so the plain one is dialled there as well.
        let near = if contender == Contender::Raw { format!("{}:{ECHO}", client.data().ip4) } else { echo };
        let cost: ConnectCost = ask(client, &["connect-cost", &near, "400"])?;
        let gib = stream.bytes as f64 / GIB;
        Ok(Round {
            stream_gbit_per_s: stream.bytes as f64 * 8.0 / stream.seconds / 1e9,
            machine_cpu_s_per_gib: seconds(machine_before, machine_after) / gib,
            proxy_cpu_s_per_gib: seconds(proxy_before, proxy_after) / gib,
            ping_pong_per_s: ping_pong.round_trips as f64 / ping_pong.seconds,
            ping_pong_p50_us: ping_pong.p50_us,
            ping_pong_p99_us: ping_pong.p99_us,
            connections_per_s: connections.completed as f64 / connections.seconds,
            connections_failed: connections.failed,
            connect_p50_us: cost.p50_us,
            connect_min_us: cost.min_us,
        })
    }

    /// CPU time of whatever stands between client and server.
    fn proxy_time(&self, lane: &Lane) -> Result<Duration> {
        let [far, near, served] = self.nodes;
        let daemons: &[NodeId] = match lane.contender {
            Contender::Raw | Contender::Relay | Contender::Ztunnel => &[],
            Contender::Single => &[near, served],
            Contender::Nested => &[far, near, served],
            Contender::ZtunnelNested => &[near],
        };
        let daemons = daemons.iter().map(|node| self.topology.daemon(*node).cpu_time());
        daemons.chain(lane.cgroups.iter().map(|folder| cgroup::cpu_time(folder))).sum()
    }

    /// Takes everything down.
    ///
    /// # Errors
    /// With what is left.
    pub fn close(self) -> Result<()> {
        let Self { topology, processes, proxies, .. } = self;
        drop((processes, proxies));
        topology.close()
    }
}

impl Lane {
    fn new(contender: Contender, client: Pod, target: Ipv4Addr) -> Self {
        Self { contender, client, target: target.to_string(), cgroups: Vec::new() }
    }
}

/// A relay in the pod and the rule that sends it what goes to the server, except what the relay itself sends.
fn relay(pod: &Pod, chain: &str, not: &str, server: Ipv4Addr) -> Result<Proc> {
    let ports = format!("{ECHO},{SINK}");
    let (port, server) = (RELAY_PORT.to_string(), server.to_string());
    let mut rule = vec!["iptables", "-t", "nat", "-A", chain, "-p", "tcp", "-d", &server];
    rule.extend(["-m", "multiport", "--dports", &ports]);
    if !not.is_empty() {
        rule.extend(["-m", "mark", not, "--mark", RELAY_MARK]);
    }
    rule.extend(["-j", "REDIRECT", "--to-ports", &port]);
    pod.run_ok(&rule)?;
    // A cgroup of its own, so that its CPU time can be told from that of client and server.
    let folder = pod.cgroup.join("relay");
    cgroup::create(&folder)?;
    let place = crate::Place { cgroup: folder, ..pod.place().clone() };
    let process = place.spawn(&["testkit-peer", "relay", "--port", &port, "--mark", RELAY_MARK])?;
    apps::wait_for_port(pod, RELAY_PORT, process)
}

fn ask<T: DeserializeOwned>(client: &Pod, arguments: &[&str]) -> Result<T> {
    let line = client.run_ok(&[&["testkit-peer"], arguments].concat())?;
    serde_json::from_str(&line).map_err(context(format!("answer of testkit-peer: {line}")))
}

fn seconds(before: Duration, after: Duration) -> f64 {
    after.saturating_sub(before).as_secs_f64()
}
