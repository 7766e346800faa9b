//! Node ports on real nodes, beside kube-proxy: what the Kubernetes API says of services decides which connections from outside
//! the agent takes where they enter a node.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod kubernetes_common;

use kubernetes_common::{Namespace, OUTSIDERS, get, pod};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use testkit::clusters::clients::{CLIENT, Clients};
use testkit::clusters::deployed::{Deployed, MESH, SHOP};
use testkit::clusters::{Clusters, cluster, output};
use testkit::{outside, process};

/// An application that shows its client's address, and services of every kind in front of it.
const YAML: &str = include_str!("kubernetes_common/node_port.yaml");
/// The ports that are steered, those of health checks among them.
const STEERED: [u16; 7] = [30080, 30081, 30082, 30083, 30084, 32081, 32083];
/// Asks again and again, 20 at a time, until told to stop.
fn keep_asking(clients: &Clients, to: SocketAddr, stop: Arc<AtomicBool>) -> JoinHandle<Asked> {
    let name = clients.netns().to_owned();
    std::thread::spawn(move || {
        let (clients, mut asked) = (addresses(20), Asked::default());
        while !stop.load(Ordering::Relaxed) {
            let answers = outside::ask_in(&name, &clients, to, "/").unwrap();
            for (client, answer) in clients.iter().zip(answers) {
                asked.made += 1;
                match answer {
                    Ok(text) if text.ends_with(&format!(" {client}\n")) => {}
                    Ok(text) if text.contains(" 200 ") => asked.hidden += 1,
                    other => asked.failed.push(format!("{other:?}")),
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        asked
    })
}

/// What became of connections.
#[derive(Default)]
struct Asked {
    made: usize,
    failed: Vec<String>,
    /// Answered by an application that saw another address than the client's: kube-proxy's work.
    hidden: usize,
}

impl Asked {
    fn print(&self, what: &str) {
        let Self { made, failed, hidden } = self;
        println!(
            "{what}: {} of {made} connections failed, {hidden} went by kube-proxy {:?}",
            failed.len(),
            failed.first()
        );
    }
}

fn at(node: u8, port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::new(172, 29, 1, node).into(), port)
}

/// The last line of the answer to one question.
fn ask_one(clients: &Clients, node: u8, port: u16) -> Result<String, String> {
    clients.ask_one(CLIENT, at(node, port)).unwrap()
}

fn addresses(count: u16) -> Vec<IpAddr> {
    (0..count).map(|number| Ipv4Addr::new(198, 18, (number / 250) as u8, (number % 250 + 1) as u8).into()).collect()
}

/// What the agents say of themselves, by node.
fn status(causeway: &Deployed<'_>) -> BTreeMap<String, serde_json::Value> {
    let read = |agent: &str| serde_json::from_str(&causeway.status(agent, "json").ok()?).ok();
    causeway.agents().unwrap().into_iter().filter_map(|(node, agent)| Some((node, read(&agent)?))).collect()
}

/// Waits until every node has exactly these ports open.
fn wait_ports(causeway: &Deployed<'_>, ports: &[u16]) {
    let open = || {
        let reports = status(causeway);
        let ports = reports.values().map(|report| report["node_ports"]["ports"].clone());
        ports.collect::<Vec<_>>()
    };
    let wanted = serde_json::json!(ports);
    process::until(Duration::from_secs(60), || open() == [wanted.clone(), wanted.clone()])
        .unwrap_or_else(|_| panic!("{ports:?} expected: {:?}\n{}", open(), causeway.logs().unwrap()));
}

/// A counter of the kernel programs of a node.
fn kernel(causeway: &Deployed<'_>, node: &str, name: &str) -> u64 {
    status(causeway)[node].pointer(&format!("/kernel/{name}")).and_then(serde_json::Value::as_u64).unwrap()
}

/// Installs everything, and waits until pods are enrolled and ports are taken.
fn stage(clusters: &Clusters) -> Deployed<'_> {
    let causeway = Deployed::install_with(clusters, 1, &["nodePort.podRanges={10.244.0.0/16}"]).unwrap();
    clusters.apply(1, YAML).unwrap();
    for name in ["daemonset/web", "daemonset/far", "daemonset/client"] {
        clusters.kubectl(1, &["-n", SHOP, "rollout", "status", name, "--timeout=120s"]).unwrap();
    }
    causeway.label(true).unwrap();
    wait_ports(&causeway, &STEERED);
    causeway
}

/// All that clients outside and callers on the nodes are promised, beside a kube-proxy whose rules `list` shows.
fn reached(clusters: &Clusters, causeway: &Deployed<'_>, clients: &Clients, list: &str) {
    let rules = clusters.exec("c1n1", &["sh", "-c", list]).unwrap();
    assert!(rules.contains("30080") && rules.contains("30081"), "kube-proxy has rules of its own: {rules}");
    assert!(!rules.contains("30084"), "kube-proxy was told to leave that one alone");

    // At the pod of the node itself clients have their own addresses, also where nothing but the agent serves the port.
    let taken = kernel(causeway, "c1n1", "entry_opened");
    let thousand = addresses(1000);
    let answers = clients.ask(&thousand, at(1, 30081)).unwrap();
    let failed: Vec<&String> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of 1000 failed: {:?}", failed.len(), failed.first());
    for (client, answer) in thousand.iter().zip(&answers) {
        assert!(answer.as_ref().unwrap().ends_with(&format!("\nc1n1 {client}\n")), "{client}: {answer:?}");
    }
    process::until(Duration::from_secs(10), || kernel(causeway, "c1n1", "entry_opened") >= taken + 1000).unwrap();
    println!("1000 of 1000 clients outside were seen by their own addresses");

    // Either node reaches the pods of both, and the pod of the other node alone; the entry is believed about its clients.
    for node in [1, 2] {
        for port in [30080, 30084] {
            let seen: BTreeSet<String> = (0..20).map(|_| ask_one(clients, node, port).unwrap()).collect();
            assert_eq!(seen, BTreeSet::from([1, 2].map(|n| format!("c1n{n} {CLIENT}"))), "node {node}, port {port}");
        }
        assert_eq!(ask_one(clients, node, 30082).unwrap(), format!("c1n2 {CLIENT}"), "node {node}");
    }

    // Local means local, and load balancers are told.
    assert_eq!(ask_one(clients, 2, 30083).unwrap(), format!("c1n2 {CLIENT}"));
    let refused = ask_one(clients, 1, 30083).unwrap_err();
    assert!(refused.contains("ConnectionReset"), "{refused}");
    for (node, port, code, endpoints) in
        [(1, 32081, 200, 1), (2, 32081, 200, 1), (1, 32083, 503, 0), (2, 32083, 200, 1)]
    {
        let answer = clients.ask(&[CLIENT.parse().unwrap()], at(node, port)).unwrap().pop().unwrap().unwrap();
        let wanted = [format!("HTTP/1.0 {code}"), format!("\"localEndpoints\": {endpoints}")];
        assert!(wanted.iter().all(|part| answer.contains(part)), "node {node}, port {port}: {answer}");
    }

    // Callers on the node never reach an uplink.
    let dialled = kernel(causeway, "c1n2", "entry_dialled");
    for place in [pod(clusters, "client", "c1n2"), "outside/plain".to_owned(), "outside/imitator".to_owned()] {
        let answer = get(clusters, &place, "http://172.29.1.2:30080/").unwrap();
        assert!(answer.starts_with("c1n"), "{place}: {answer}");
        // And to the other node, whose uplink it does reach.
        let answer = get(clusters, &place, "http://172.29.1.1:30082/").unwrap();
        assert!(answer.starts_with("c1n2 "), "{place}: {answer}");
    }
    let host = ["curl", "--silent", "--show-error", "--max-time", "5", "http://172.29.1.2:30081/"];
    // For callers on the node Local means nothing, as with kube-proxy.
    let answer = clusters.exec("c1n2", &host).unwrap();
    assert!(["c1n1 172.29.1.2\n", "c1n2 172.29.1.2\n"].contains(&answer.as_str()), "a process of the node: {answer}");
    process::until(Duration::from_secs(10), || kernel(causeway, "c1n2", "entry_dialled") >= dialled + 3).unwrap();

    // What nobody asks for, and what cannot be had, stays with kube-proxy; the second is told why.
    assert!(ask_one(clients, 1, 30085).unwrap().starts_with("c1n"));
    assert!(ask_one(clients, 1, 30086).unwrap().starts_with("c1n"));
    let about = "--field-selector=involvedObject.name=sticky,reason=NodePortNotSteered";
    let events = || clusters.kubectl(1, &["-n", SHOP, "get", "events", about, "-o", "jsonpath={.items[*].message}"]);
    clusters.until("an event", || events().unwrap().contains("set sessionAffinity: None")).unwrap();
}

/// The label is taken away and put back, and at last everything, while clients keep asking.
fn given_back(clusters: &Clusters, mut causeway: Deployed<'_>, clients: &Clients) {
    let under_load = |what: &str, change: &mut dyn FnMut()| {
        let stop = Arc::new(AtomicBool::new(false));
        let asking = keep_asking(clients, at(1, 30080), stop.clone());
        std::thread::sleep(Duration::from_secs(2));
        change();
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        let asked = asking.join().unwrap();
        asked.print(what);
        assert!(asked.made >= 40, "too few to say anything: {}", asked.made);
        asked
    };
    let without: Vec<u16> = STEERED.into_iter().filter(|port| *port != 30080).collect();
    let label =
        |value: &str| clusters.kubectl(1, &["-n", SHOP, "label", "--overwrite", "service", "all", value]).unwrap();
    for (what, value, ports) in [
        ("label taken away", "causeway.dev/node-port-", &without[..]),
        ("label put back", "causeway.dev/node-port=steer", &STEERED),
    ] {
        let asked = under_load(what, &mut || {
            label(value);
            wait_ports(&causeway, ports);
        });
        assert_eq!(asked.failed, [""; 0], "{what}\n{}", causeway.logs().unwrap());
        assert!(asked.hidden > 0, "{what}: kube-proxy served for a while");
    }
    label("causeway.dev/node-port-");
    wait_ports(&causeway, &without);
    let taken = kernel(&causeway, "c1n1", "entry_opened");
    assert!(ask_one(clients, 1, 30080).unwrap().starts_with("c1n"), "kube-proxy serves");
    assert_eq!(kernel(&causeway, "c1n1", "entry_opened"), taken);
    label("causeway.dev/node-port=steer");
    wait_ports(&causeway, &STEERED);

    let there = |node: &str| {
        let look = "ls /sys/fs/bpf/causeway/*/*/links 2> /dev/null | grep entry_; ip -o link | grep -o 'causeway[0-9a-f]*'; true";
        clusters.exec(node, &["sh", "-c", look]).unwrap()
    };
    for node in ["c1n1", "c1n2"] {
        assert!(
            there(node).contains("entry_uplink-") && there(node).contains("entry_return"),
            "{node}: {}",
            there(node)
        );
    }
    let asked = under_load("uninstalled", &mut || causeway.uninstall().unwrap());
    assert!(asked.hidden > 0, "kube-proxy serves in the end");
    for node in ["c1n1", "c1n2"] {
        assert_eq!(there(node).trim(), "", "{node}");
    }
    for port in [30080, 30081, 30082] {
        assert!(ask_one(clients, 2, port).unwrap().starts_with("c1n"), "kube-proxy serves port {port}");
    }
}

fn outsiders(clusters: &Clusters) -> Namespace<'_> {
    let outside = Namespace(clusters, "outside");
    clusters.apply(1, OUTSIDERS).unwrap();
    clusters.wait_ready(1, "outside").unwrap();
    outside
}

#[test]
fn node_ports_are_steered_and_given_back_beside_kube_proxy_with_iptables() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let clients = Clients::of(&clusters).unwrap();
    let causeway = stage(&clusters);
    let _outside = outsiders(&clusters);
    reached(&clusters, &causeway, &clients, "iptables-save -t nat");
    given_back(&clusters, causeway, &clients);
}

#[test]
fn node_ports_are_steered_and_given_back_beside_kube_proxy_with_nftables() {
    testkit::needs_root!();
    let clusters = Clusters::with_proxy("nftables").unwrap();
    let clients = Clients::of(&clusters).unwrap();
    let causeway = stage(&clusters);
    let _outside = outsiders(&clusters);
    reached(&clusters, &causeway, &clients, "nft list table ip kube-proxy");
    given_back(&clusters, causeway, &clients);
    output(cluster(&["down"]).unwrap()).unwrap();
}

#[test]
fn node_ports_of_an_agent_that_is_replaced_are_never_passed_and_are_back_with_the_next() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let clients = Clients::of(&clusters).unwrap();
    let causeway = stage(&clusters);
    assert_eq!(ask_one(&clients, 1, 30082).unwrap(), format!("c1n2 {CLIENT}"));
    clusters.kubectl(1, &["-n", MESH, "rollout", "restart", "daemonset/causeway"]).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let asking = keep_asking(&clients, at(1, 30080), stop.clone());
    clusters.kubectl(1, &["-n", MESH, "rollout", "status", "daemonset/causeway", "--timeout=120s"]).unwrap();
    wait_ports(&causeway, &STEERED);
    stop.store(true, Ordering::Relaxed);
    let asked = asking.join().unwrap();
    asked.print("agent replaced");
    assert_eq!(asked.hidden, 0, "a steered port is never kube-proxy's");
    assert_eq!(ask_one(&clients, 1, 30082).unwrap(), format!("c1n2 {CLIENT}"));
}
