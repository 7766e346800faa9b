//! Four clients and their servers on three nodes.

use super::{Round, machine};
use crate::peer::measure::{ConnectCost, Connections, PingPong, Stream};
use crate::topology::NodeId;
use crate::{Pod, Proc, Result, Topology, apps, cgroup, context, netns};
use serde::de::DeserializeOwned;
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
}

impl Contender {
    /// All of them in the order of a round.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Relay, Self::Single, Self::Nested];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Relay => "relay",
            Self::Single => "single",
            Self::Nested => "nested",
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
        }
    }
}

/// The topology with its servers running.
#[derive(Debug)]
pub struct Stage {
    topology: Topology,
    nodes: [NodeId; 3],
    clients: Vec<Pod>,
    servers: Vec<Pod>,
    targets: Vec<String>,
    processes: Vec<Proc>,
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
        let clients = vec![
            topology.plain_pod(near, "default/raw-client", "raw")?,
            topology.plain_pod(near, "default/relay-client", "relay")?,
            topology.pod(near, "default/single-client")?,
            topology.pod(far, "default/nested-client")?,
        ];
        let servers = vec![
            topology.plain_pod(served, "default/raw-server", "raw")?,
            topology.plain_pod(served, "default/relay-server", "relay")?,
            topology.pod(served, "default/server")?,
        ];
        let server = servers.last().cloned().ok_or("no server")?;
        topology.service("default/bench", &[(ECHO, ECHO), (SINK, SINK)], &[&server]);
        let mut processes = Vec::new();
        for pod in &servers {
            for (kind, port) in [("echo", ECHO), ("sink", SINK)] {
                let process = pod.spawn(&["testkit-peer", "serve", kind, "--port", &port.to_string()])?;
                processes.push(apps::wait_for_port(pod, port, process)?);
            }
        }
        if let Some(pod) = clients.first() {
            let process = pod.spawn(&["testkit-peer", "serve", "echo", "--port", &ECHO.to_string()])?;
            processes.push(apps::wait_for_port(pod, ECHO, process)?);
        }
        for pod in clients.iter().chain(&servers) {
            // Closed connections wait for a minute with their port; a benchmark makes more of them than a default allows.
            netns::sysctl(&pod.netns, "net/ipv4/ip_local_port_range", "1024 65535")?;
            netns::sysctl(&pod.netns, "net/ipv4/tcp_tw_reuse", "1")?;
        }
        let [relay_client, relay_server] = [clients.get(1), servers.get(1)].map(|pod| pod.cloned());
        let (relay_client, relay_server) = (relay_client.ok_or("no client")?, relay_server.ok_or("no server")?);
        processes.push(relay(&relay_client, "OUTPUT", "!", relay_server.data().ip4)?);
        processes.push(relay(&relay_server, "PREROUTING", "", relay_server.data().ip4)?);
        topology.start()?;
        let targets = vec![
            servers.first().map(|pod| pod.data().ip4.to_string()).unwrap_or_default(),
            relay_server.data().ip4.to_string(),
            topology.vip(two, "default/bench").to_string(),
            topology.vip(one, "default/bench").to_string(),
        ];
        Ok(Self { topology, nodes: [far, near, served], clients, servers, targets, processes })
    }

    /// One contender, once around.
    ///
    /// # Errors
    /// If a client fails.
    pub fn round(&mut self, contender: Contender) -> Result<Round> {
        let index = contender as usize;
        let client = self.clients.get(index).ok_or("no such client")?;
        let target = self.targets.get(index).ok_or("no such target")?;
        let (echo, sink) = (format!("{target}:{ECHO}"), format!("{target}:{SINK}"));
        // Connections and certificates are there before the clock starts.
        let _: PingPong = ask(client, &["ping-pong", &echo, "4", "0.1"])?;
        let (machine_before, proxy_before) = (machine::busy()?, self.proxy_time(contender)?);
        let stream: Stream = ask(client, &["stream", &sink, "4", "--bytes", "1073741824"])?;
        let (machine_after, proxy_after) = (machine::busy()?, self.proxy_time(contender)?);
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
    fn proxy_time(&self, contender: Contender) -> Result<Duration> {
        let daemons = |nodes: &[NodeId]| {
            nodes.iter().map(|node| self.topology.daemon(*node).cpu_time()).sum::<Result<Duration>>()
        };
        let [far, near, served] = self.nodes;
        match contender {
            Contender::Raw => Ok(Duration::ZERO),
            Contender::Relay => {
                let pods = [self.clients.get(1), self.servers.get(1)];
                pods.into_iter().flatten().map(|pod| cgroup::cpu_time(&pod.cgroup.join("relay"))).sum()
            }
            Contender::Single => daemons(&[near, served]),
            Contender::Nested => daemons(&[far, near, served]),
        }
    }

    /// Takes everything down.
    ///
    /// # Errors
    /// With what is left.
    pub fn close(self) -> Result<()> {
        let Self { topology, processes, .. } = self;
        drop(processes);
        topology.close()
    }
}

/// A relay in the pod and the rule that sends it what goes to the server, except what the relay itself sends.
fn relay(pod: &Pod, chain: &str, not: &str, server: std::net::Ipv4Addr) -> Result<Proc> {
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
