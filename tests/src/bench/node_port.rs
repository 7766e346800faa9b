//! New connections to a node port, with and without the rules that kube-proxy writes for ten thousand services.
//!
//! A node's netfilter looks through its rules for every new connection. Connections to node ports of Causeway never get there;
//! those to a port that stays with the rules do, and are measured beside them.

use super::{machine, table};
use crate::outside::Outside;
use crate::peer::measure::Connections;
use crate::topology::NodeId;
use crate::{Place, Result, Topology, apps, context, netns};
use std::fmt::Write;
use std::path::Path;

const ECHO: u16 = 7001;
/// The port that goes to the engine.
const OURS: u16 = 30080;
/// The port that stays with the rules.
const THEIRS: u16 = 30090;
/// Rules of other services before the one that counts.
const RULES: u32 = 10_000;

/// Rates of one round.
#[derive(Debug, Default, Clone, Copy)]
struct Round {
    ours: f64,
    ours_behind_rules: f64,
    theirs: f64,
    theirs_behind_rules: f64,
}

/// Measures and prints a table.
///
/// # Errors
/// The first step that failed, or how many connections failed.
pub fn run(rounds: u32) -> Result<()> {
    eprintln!("bench: building the topology");
    let mut topology = Topology::new("nodeport")?;
    let one = topology.cluster("cluster1", "network1");
    let node = topology.node(one)?;
    let ours = topology.pod(node, "default/ours")?;
    let theirs = topology.plain_pod(node, "default/theirs", "theirs")?;
    topology.service("default/ours", &[(ECHO, ECHO)], &[&ours]);
    topology.set_section(
        node,
        serde_json::json!({
            "entry": {"identity": "spiffe://cluster.local/ns/istio-system/sa/causeway"},
            "nodePorts": [{"service": "default/ours.default.svc.cluster.local", "port": ECHO, "nodePort": OURS}],
        }),
    );
    let mut servers = Vec::new();
    for pod in [&ours, &theirs] {
        let server = pod.spawn(&["testkit-peer", "serve", "echo", "--port", &ECHO.to_string()])?;
        servers.push(apps::wait_for_port(pod, ECHO, server)?);
    }
    let outside = Outside::new(&topology)?;
    // One client makes thousands of connections to one port: remembering those that have ended would be what is measured.
    for netns in [&outside.place().netns, &ours.netns, &theirs.netns] {
        netns::sysctl(netns, "net/ipv4/tcp_max_tw_buckets", "64")?;
    }
    topology.start()?;
    let place = topology.node_place(node).clone();
    let target = format!("{}:{ECHO}", theirs.data().ip4);
    let mut all = Vec::new();
    for number in 1..=rounds {
        let mut round = Round::default();
        for rules in [0, RULES] {
            load(&place, topology.scratch(), rules, &target)?;
            let (ours, theirs) = (rate(&topology, node, &outside, OURS)?, rate(&topology, node, &outside, THEIRS)?);
            if rules == 0 {
                (round.ours, round.theirs) = (ours, theirs);
            } else {
                (round.ours_behind_rules, round.theirs_behind_rules) = (ours, theirs);
            }
        }
        eprintln!(
            "bench: round {number} of {rounds}: causeway {:.0} and {:.0} connections/s, DNAT {:.0} and {:.0}",
            round.ours, round.ours_behind_rules, round.theirs, round.theirs_behind_rules
        );
        all.push(round);
    }
    load(&place, topology.scratch(), 0, &target)?;
    drop(servers);
    topology.close()?;
    println!("{}", markdown(&all));
    Ok(())
}

/// Replaces the node's translation rules: so many of other services, then the one of `target`.
fn load(place: &Place, scratch: &Path, rules: u32, target: &str) -> Result<()> {
    let mut text = String::from("*nat\n");
    for number in 0..rules {
        let [_, high, middle, low] = number.to_be_bytes();
        // Writing into a String cannot fail.
        let _ = writeln!(
            text,
            "-A PREROUTING -d 10.{high}.{middle}.{low}/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.244.9.9:80"
        );
    }
    let _ = write!(
        text,
        "-A PREROUTING -p tcp -m tcp --dport {THEIRS} -j DNAT --to-destination {target}\n\
         -A POSTROUTING -p tcp -m conntrack --ctstate DNAT -j MASQUERADE\nCOMMIT\n"
    );
    let file = scratch.join("rules");
    std::fs::write(&file, text).map_err(context(file.display()))?;
    place.run_ok(&["iptables-restore", &file.to_string_lossy()]).map(drop)
}

/// New connections per second from outside, each used for one exchange.
fn rate(topology: &Topology, node: NodeId, outside: &Outside, port: u16) -> Result<f64> {
    let to = format!("{}:{port}", topology.node_ip(node));
    let line = ["testkit-peer", "connections", &to, "16", "2", "--count", "4000"];
    let line = outside.place().run_ok(&line)?;
    let measured: Connections = serde_json::from_str(&line).map_err(context(format!("testkit-peer: {line}")))?;
    if measured.failed > 0 {
        return Err(format!("{} of the connections to {to} failed", measured.failed).into());
    }
    Ok(measured.completed as f64 / measured.seconds)
}

fn markdown(rounds: &[Round]) -> String {
    let machine = machine::describe();
    let column = |read: fn(&Round) -> f64| rounds.iter().map(read).collect::<Vec<f64>>();
    let mut text = format!(
        "Median of {} interleaved rounds (smallest–largest). Linux {}, {} × {}. New connections/s to a port of the node.\n\n\
         | | no rules | {RULES} rules | ratio |\n|---|---|---|---|\n",
        rounds.len(),
        machine.kernel,
        machine.processors,
        machine.processor
    );
    for (name, without, with, ratio) in [
        (
            "Causeway",
            column(|round| round.ours),
            column(|round| round.ours_behind_rules),
            column(|round| round.ours_behind_rules / round.ours),
        ),
        (
            "iptables DNAT",
            column(|round| round.theirs),
            column(|round| round.theirs_behind_rules),
            column(|round| round.theirs_behind_rules / round.theirs),
        ),
    ] {
        let (without, with) = (table::spread(without, 0), table::spread(with, 0));
        let _ = writeln!(text, "| {name} | {without} | {with} | {} |", table::spread(ratio, 3));
    }
    text.push_str("\nBoth end at an echo server in a pod of the node; Causeway's relays it, DNAT does not.");
    text
}
