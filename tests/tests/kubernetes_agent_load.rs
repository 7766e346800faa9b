//! The node agent under load: figures that are printed, and what must not fail while they are taken.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod kubernetes_common;

use std::time::Duration;

use kubernetes_common::{address, figure, jobs, load, pod, shop};
use testkit::clusters::Clusters;
use testkit::clusters::deployed::{Deployed, MESH, SHOP};

/// Resident memory of an agent's two processes, as their node shows it: the daemon's and the helper's in MiB.
fn memory(clusters: &Clusters, node: &str) -> Vec<u64> {
    let look =
        "for p in /proc/[0-9]*; do [ \"$(cat $p/comm 2> /dev/null)\" = causeway ] && grep VmRSS $p/status; done; true";
    let text = clusters.exec(node, &["sh", "-c", look]).unwrap();
    let mut sizes: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .map(|kib| kib / 1024)
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes
}

#[test]
fn twenty_pods_that_start_at_once_are_served_and_the_agents_memory_is_told() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    for round in 1..=3 {
        println!("20 pods at once, round {round}: {}", jobs(&clusters, 20, 20));
    }
    for node in ["c1n1", "c1n2"] {
        let sizes = memory(&clusters, node);
        assert_eq!(sizes.len(), 2, "{node}: a daemon and its helper");
        println!("{node}: daemon and helper hold {sizes:?} MiB");
    }
}

#[test]
fn a_rolling_update_of_the_agents_fails_no_new_connection() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    let (client, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let host = address(&clusters, &server);
    let before = causeway.agents().unwrap();
    let running = load(&client, &host, 60, 12_000);
    std::thread::sleep(Duration::from_secs(3));
    clusters.kubectl(1, &["-n", MESH, "rollout", "restart", "daemonset/causeway"]).unwrap();
    clusters.kubectl(1, &["-n", MESH, "rollout", "status", "daemonset/causeway", "--timeout=120s"]).unwrap();
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("rolling update: {}", text.trim());
    assert!(figure(&text, "made") >= 1000.0, "too few to say anything: {text}");
    assert_eq!(figure(&text, "failed"), 0.0, "{text}\n{}", causeway.logs().unwrap());
    // Each serves what it has for as long as it may.
    for agent in before.values() {
        clusters.kubectl(1, &["-n", MESH, "wait", "--for=delete", &format!("pod/{agent}"), "--timeout=60s"]).unwrap();
    }
    let after = causeway.agents().unwrap();
    assert!(before.iter().all(|(node, agent)| after.get(node).is_some_and(|other| other != agent)), "{after:?}");
    let quiet = load(&client, &host, 5, 500).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&quiet.stdout);
    assert!(text.contains(" failed 0 reset 0 "), "after the update: {text}");
}

/// Two pods that are evicted with their node, one on each.
const PAIR: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: pair, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: pair}}
  template:
    metadata: {labels: {app: pair}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 5
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: pair}}, nodeTaintsPolicy: Honor}
      containers:
      - name: main
        image: causeway.test/debian:1
        imagePullPolicy: Never
        command: [python3, /config/echo.py]
        lifecycle: {preStop: {exec: {command: [sleep, "3"]}}}
        readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /config}]
      volumes:
      - {name: config, configMap: {name: web}}
---
apiVersion: v1
kind: Service
metadata: {name: pair, namespace: shop}
spec:
  selector: {app: pair}
  ports: [{name: echo, port: 7000}]
"#;

/// Lets a node take pods again, whatever happened.
struct Cordoned<'a>(&'a Clusters, &'static str);

impl Drop for Cordoned<'_> {
    fn drop(&mut self) {
        let _ = self.0.kubectl(1, &["uncordon", self.1]);
    }
}

#[test]
fn a_drained_node_fails_no_connection_to_the_pod_that_remains() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    clusters.apply(1, PAIR).unwrap();
    clusters.kubectl(1, &["-n", SHOP, "rollout", "status", "deployment/pair", "--timeout=120s"]).unwrap();
    causeway.label(true).unwrap();
    let client = pod(&clusters, "client", "c1n1");
    let remaining = address(&clusters, &pod(&clusters, "pair", "c1n1"));
    let gone = pod(&clusters, "pair", "c1n2");
    let by_address = load(&client, &remaining, 40, 12_000);
    let by_name = load(&client, "pair.shop.svc.cluster.local", 40, 12_000);
    std::thread::sleep(Duration::from_secs(5));
    let _cordoned = Cordoned(&clusters, "c1n2");
    let drain = ["drain", "c1n2", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s"];
    clusters.kubectl(1, &drain).unwrap();
    let name = gone.split_once('/').unwrap().1;
    assert!(clusters.kubectl(1, &["-n", SHOP, "get", "pod", name]).is_err(), "{gone} was evicted");
    let told = |child: std::process::Child| {
        String::from_utf8_lossy(&child.wait_with_output().unwrap().stdout).trim().to_owned()
    };
    let (by_address, by_name) = (told(by_address), told(by_name));
    println!("node drained: to the pod that remains: {by_address}\nby the service's name: {by_name}");
    assert!(by_address.contains(" failed 0 reset 0 "), "{by_address}\n{}", causeway.logs().unwrap());
    assert!(figure(&by_address, "made") >= 1000.0, "too few to say anything: {by_address}");
    // Of those to the service the open ones end with their pod; new ones find the other.
    assert_eq!(figure(&by_name, "failed"), 0.0, "{by_name}\n{}", causeway.logs().unwrap());
}
