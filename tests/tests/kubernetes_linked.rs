//! Two real clusters, linked by node ports: what is shared is answered by both, and nothing else is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use testkit::clusters::Clusters;
use testkit::clusters::clients::{CLIENT as CLIENT_OUTSIDE, Clients};
use testkit::clusters::deployed::SHOP;
use testkit::clusters::linked::{
    CLIENT, CLIENT_IDENTITY, Cut, EXPOSE, GATEWAYS, Linked, Outside, STRANGER, WEB, clusters_in, db_policy,
};
use testkit::{Capture, process};

/// A pod of the second cluster, which the first one has none of.
const DB: &str = "http://db-1.db.shop.svc.cluster.local/";
#[test]
fn a_shared_service_is_answered_by_both_clusters_and_callers_are_known_by_their_identity() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let linked = Linked::make(&clusters).unwrap();
    let outside = Outside::of(&clusters).unwrap();
    let cable = format!("{}-c1n1", clusters.tag().unwrap());
    let capture = Capture::start(outside.place(), &cable).unwrap();

    for number in [1, 2] {
        let answers = linked.answers(number, CLIENT, WEB, 40).unwrap();
        println!("from cluster{number}: {answers:?}");
        assert!(!answers.contains_key(""), "{answers:?}\n{}", linked.log_tails());
        assert_eq!(clusters_in(&answers), ["cluster1", "cluster2"], "{answers:?}");
        assert_eq!(answers.len(), 4, "one pod on each of four nodes: {answers:?}");
    }
    let (client, web) = ("spiffe://cluster.local/ns/shop/sa/client", "spiffe://cluster.local/ns/shop/sa/web");
    let seen = |line: &str, direction: &str| {
        line.contains(&format!("direction={direction}")) && line.contains(&format!("src.identity={client}"))
    };
    let logs = || linked.deployed[1].logs().unwrap();
    process::until(Duration::from_secs(30), || {
        // Addresses say nothing: the gateway's pod may have the one that the client has in its own cluster.
        let from = " src.cluster=cluster1 ";
        logs()
            .lines()
            .any(|line| seen(line, "inbound") && line.contains(&format!("dst.identity={web}")) && line.contains(from))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", logs()));
    assert!(linked.gateway_logs(2).unwrap().lines().any(|line| seen(line, "gateway")), "{}", linked.log_tails());

    let seen = capture.finish(&[b"GET / HTTP", b"cluster=cluster", b"HTTP/1.1 200"]).unwrap();
    let port = seen.port(linked.node_port(2).unwrap());
    println!("on the cable of c1n1: {} packets, to the gateways of cluster2 {port:?}", seen.packets);
    assert_eq!((seen.readable.clone(), seen.dropped), (Vec::new(), 0));
    assert!(port.tls_data > 0, "{port:?}");

    // A pod of the other cluster by its own name, and who may call it.
    let answers = linked.answers(1, CLIENT, DB, 5).unwrap();
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["cluster2/db-1"], "{}", linked.log_tails());
    clusters.apply(2, &db_policy(CLIENT_IDENTITY)).unwrap();
    let refused = || linked.answers(1, STRANGER, DB, 3).unwrap().keys().eq([""]);
    process::until(Duration::from_secs(30), refused).unwrap();
    let answers = linked.answers(1, CLIENT, DB, 5).unwrap();
    assert_eq!(answers.keys().collect::<Vec<_>>(), ["cluster2/db-1"], "the policy allows this one");
    let why = |line: &str| line.contains("sa/stranger") && line.contains("leg=accept/policy");
    process::until(Duration::from_secs(10), || logs().lines().any(why)).unwrap_or_else(|_| panic!("{}", logs()));

    // The same pod's database.
    linked.sql(1, CLIENT, "create table orders (place text); insert into orders values ('cluster1')").unwrap();
    assert_eq!(
        linked.sql(1, CLIENT, "select rtrim(pg_read_file('/etc/hostname'), chr(10)), place from orders").unwrap(),
        "db-1|cluster1"
    );
    linked.sql(1, STRANGER, "select 1").unwrap_err();

    // What is not shared stays in its cluster; what is shared no longer goes back there.
    let private = linked.answers(1, CLIENT, "http://private.shop.svc.cluster.local/", 20).unwrap();
    assert_eq!(clusters_in(&private), ["cluster1"], "{private:?}");
    let label = |value: &str| {
        clusters.kubectl(2, &["-n", SHOP, "label", "service", "web", &format!("istio.io/global{value}")]).unwrap()
    };
    label("-");
    let alone = || {
        let answers = linked.answers(1, CLIENT, WEB, 20).unwrap();
        clusters_in(&answers) == ["cluster1"] && !answers.contains_key("")
    };
    process::until(Duration::from_secs(60), alone).unwrap();
    label("=true");
    linked.settle().unwrap();
    istiod_is_passed_on(&clusters);
}

/// The second cluster's istiod proves itself to whoever asks for it at the gateway, and nobody else is there.
fn istiod_is_passed_on(clusters: &Clusters) {
    clusters.shell(&format!("{EXPOSE} --istiod")).unwrap();
    let path = "{.spec.ports[?(@.port==15012)].nodePort}";
    let port = clusters.field(2, GATEWAYS, "service/causeway-gateway", path).unwrap();
    let root = clusters.field(2, GATEWAYS, "configmap/istio-ca-root-cert", r"{.data.root-cert\.pem}").unwrap();
    let line = |name: &str| {
        format!(
            "root=$(mktemp); printf '%s' '{root}' > $root; openssl s_client -connect 172.29.2.1:{port} -servername {name} \
             -verify_hostname {name} -verify_return_error -CAfile $root -brief < /dev/null 2>&1; rm $root"
        )
    };
    let asked =
        |name: &str| clusters.exec("wan", &["bash", "-c", &line(name)]).unwrap_or_else(|error| error.to_string());
    let istiod = "istiod.istio-system.svc";
    // The gateways' pods hear of their changed model within a minute or so.
    process::until(Duration::from_secs(150), || asked(istiod).contains("Verification: OK"))
        .unwrap_or_else(|error| panic!("{error}: {}", asked(istiod)));
    let other = asked("kubernetes.default.svc");
    assert!(!other.contains("CONNECTION ESTABLISHED"), "{other}");
}

#[test]
fn a_gateway_that_ends_and_a_node_that_is_cut_off_are_passed_by() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let linked = Linked::make(&clusters).unwrap();
    assert_eq!(linked.gateways(2).unwrap().keys().collect::<Vec<_>>(), ["c2n1", "c2n2"], "one on each node");

    // A pod that is deleted hands over: nothing fails.
    let gone = linked.gateways(2).unwrap().remove("c2n2").unwrap();
    let calls = std::thread::scope(|scope| {
        let load = scope.spawn(|| linked.answers(1, CLIENT, DB, 300).unwrap());
        clusters.kubectl(2, &["-n", GATEWAYS, "delete", "pod", &gone, "--wait=false"]).unwrap();
        load.join().unwrap()
    });
    println!("while a gateway pod ended: {calls:?}");
    assert_eq!(calls.get(""), None, "{}", linked.log_tails());
    linked.expose().unwrap();

    // A cable that is pulled says nothing; the pods that are called are on the other node.
    let cut = Cut::off(&clusters, "c2n2").unwrap();
    let mut during = Vec::new();
    process::until(Duration::from_secs(90), || {
        let answers = linked.answers(1, CLIENT, DB, 10).unwrap();
        let failed = answers.get("").copied().unwrap_or_default();
        during.push(failed);
        failed == 0
    })
    .unwrap_or_else(|error| panic!("{error}: {during:?}\n{}", linked.log_tails()));
    println!("failed of 10 calls each, after the cable was pulled: {during:?}");
    let answers = linked.answers(1, CLIENT, DB, 50).unwrap();
    assert_eq!(answers.get("cluster2/db-1"), Some(&50), "{answers:?}\n{}", linked.log_tails());
    drop(cut);
    let node = ["wait", "--for=condition=Ready", "node/c2n2", "--timeout=120s"];
    clusters.kubectl(2, &node).unwrap();
    linked.settle().unwrap();
}

/// A service at a port of the first cluster's nodes, whose pods are all in the second.
const REAR: &str = "
apiVersion: v1
kind: Service
metadata: {name: rear, namespace: shop, labels: {istio.io/global: 'true', causeway.dev/node-port: steer}}
spec:
  type: NodePort
  selector: {app: db}
  ports: [{name: http, port: 80, nodePort: 30091}]
";
#[test]
fn clients_at_a_node_port_of_one_cluster_are_known_by_their_addresses_in_the_other() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let linked = Linked::make(&clusters).unwrap();
    let clients = Clients::of(&clusters).unwrap();
    clusters.apply(1, REAR).unwrap();
    clusters.apply(2, &REAR.replace("30091", "30092")).unwrap();
    let at = |node: u8| SocketAddr::from(([172, 29, 1, node], 30091));
    let answered = |client: &str, node| {
        let answer = clients.ask_one(client, at(node)).unwrap();
        answer.is_ok_and(|text| {
            text.starts_with("cluster=cluster2 pod=db-") && text.ends_with(&format!(" client={client}"))
        })
    };
    for node in [1, 2] {
        process::until(Duration::from_secs(60), || answered(CLIENT_OUTSIDE, node)).unwrap_or_else(|error| {
            panic!("{error}: {:?}\n{}", clients.ask_one(CLIENT_OUTSIDE, at(node)), linked.log_tails())
        });
    }
    let hundred: Vec<IpAddr> = (1..=100).map(|number| Ipv4Addr::new(198, 18, 0, number).into()).collect();
    let answers = clients.ask(&hundred, at(1)).unwrap();
    let seen = hundred.iter().zip(&answers).filter(|(client, answer)| {
        answer
            .as_ref()
            .is_ok_and(|text| text.contains("cluster=cluster2") && text.ends_with(&format!(" client={client}\n")))
    });
    let seen = seen.count();
    println!("{seen} of 100 clients were seen by their own addresses in the other cluster");
    assert_eq!(seen, 100, "{:?}\n{}", answers.iter().find(|one| one.is_err()), linked.log_tails());
    let logs = || linked.deployed[1].logs().unwrap();
    let named = |line: &str| line.contains("direction=inbound") && line.contains(" client=198.18.0.100:");
    process::until(Duration::from_secs(10), || logs().lines().any(named)).unwrap_or_else(|_| panic!("{}", logs()));

    clusters.apply(2, &db_policy("{ipBlocks: [198.18.0.7/32]}")).unwrap();
    process::until(Duration::from_secs(30), || !answered("198.18.0.8", 1)).unwrap();
    assert!(answered("198.18.0.7", 1), "the policy lets this address in\n{}", linked.log_tails());
    let why = |line: &str| line.contains("198.18.0.8") && line.contains("leg=accept/policy");
    process::until(Duration::from_secs(30), || !answered("198.18.0.8", 1) && logs().lines().any(why))
        .unwrap_or_else(|_| panic!("{}", logs()));
}

/// Pods of the shop that do nothing but have addresses.
const FILLERS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: filler, namespace: shop}
spec:
  replicas: @COUNT@
  selector: {matchLabels: {app: filler}}
  template:
    metadata: {labels: {app: filler}}
    spec:
      nodeSelector: {kubernetes.io/hostname: @NODE@}
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'causeway.test/debian:1', imagePullPolicy: Never, command: [sleep, infinity]}]
";

/// Addresses are given in turn: the cluster that is behind gets pods until it has addresses of the other's.
fn overlap(clusters: &Clusters, linked: &Linked<'_>) {
    let last = [1, 2].map(|number| {
        let on_node = format!("--field-selector=spec.nodeName=c{number}n1");
        let words = ["-n", SHOP, "get", "pods", &on_node, "-o", "jsonpath={.items[*].status.podIP}"];
        let listed = clusters.kubectl(number, &words).unwrap();
        listed.split_whitespace().filter_map(|ip| ip.rsplit('.').next()?.parse::<u8>().ok()).max().unwrap()
    });
    let behind = if last[0] < last[1] { 1 } else { 2 };
    let count = last[0].abs_diff(last[1]).max(1);
    assert!(count < 60, "too many pods would be needed: {last:?}");
    let text = FILLERS.replace("@COUNT@", &count.to_string()).replace("@NODE@", &format!("c{behind}n1"));
    clusters.apply(behind, &text).unwrap();
    clusters.kubectl(behind, &["-n", SHOP, "rollout", "status", "deployment/filler", "--timeout=120s"]).unwrap();
    linked.deployed[usize::from(behind) - 1].label(true).unwrap();
}

#[test]
fn daemons_of_two_clusters_on_one_kernel_have_their_own_pods_alone() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let linked = Linked::make(&clusters).unwrap();
    overlap(&clusters, &linked);
    let mut addresses: Vec<BTreeSet<String>> = Vec::new();
    for (number, deployed) in [1, 2].into_iter().zip(&linked.deployed) {
        let mut here = BTreeSet::new();
        for (node, agent) in deployed.agents().unwrap() {
            let status: Value = serde_json::from_str(&deployed.status(&agent, "json").unwrap()).unwrap();
            let pods = status["pods"].as_array().unwrap();
            let uids: BTreeSet<String> = pods.iter().map(|pod| pod["uid"].as_str().unwrap().to_owned()).collect();
            let on_node = format!("--field-selector=spec.nodeName={node}");
            let path = "{range .items[*]}{.metadata.name} {.status.podIP}{\"\\n\"}{end}";
            let words = ["-n", SHOP, "get", "pods", &on_node, "-o", &format!("jsonpath={path}")];
            let listed = clusters.kubectl(number, &words).unwrap();
            let listed: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
            let expected: BTreeSet<String> =
                listed.iter().map(|(name, _)| format!("cluster{number}//Pod/{SHOP}/{name}")).collect();
            assert_eq!(uids, expected, "{node}");
            assert!(pods.iter().all(|pod| pod["state"] == "Enrolled"), "{status}");
            here.extend(listed.iter().map(|(_, ip)| (*ip).to_owned()));
        }
        addresses.push(here);
    }
    let both: Vec<&String> = addresses[0].intersection(&addresses[1]).collect();
    println!("addresses that both clusters have: {both:?}");
    assert!(!both.is_empty(), "no pods of the same address: {addresses:?}");
    // Each is reached at its own cluster's address by its own neighbours.
    for number in [1, 2] {
        let answers = linked.answers(number, CLIENT, "http://private.shop.svc.cluster.local/", 20).unwrap();
        assert_eq!(clusters_in(&answers), [format!("cluster{number}")], "{answers:?}");
        assert_eq!(answers.len(), 2, "{answers:?}");
    }
}
