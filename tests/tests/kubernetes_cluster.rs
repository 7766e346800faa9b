//! The clusters themselves, without Causeway in them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;
use testkit::clusters::{Clusters, cluster, output};

/// One application per node, the same in both clusters.
const APPLICATIONS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: plain}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: causeway.test/debian:1
        imagePullPolicy: Never
        command: [sh, -c, "echo $CLUSTER $NODE > /var/www/html/index.html; exec nginx -g 'daemon off;'"]
        env:
        - {name: CLUSTER, value: @CLUSTER@}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: plain}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 80}]
"#;

/// What the machine has that clusters could leave behind or change. Others may run beside us under names of their own.
fn machine() -> BTreeSet<String> {
    let tag = output(cluster(&["tag"]).unwrap()).unwrap();
    let lines = [
        "ls /run/netns | grep TAG",
        "ip -o link | cut -d: -f2 | grep TAG",
        "find /sys/fs/cgroup -maxdepth 2 -type d -name 'TAG*'",
        "grep -E 'TAG|/run/causeway|/var/lib/(containerd|kubelet)' /proc/mounts",
        // A process whose parent has not yet noticed its end shows no command line.
        "for file in $(grep -l TAG /proc/[0-9]*/cgroup); do tr '\\0' ' ' < ${file%cgroup}cmdline; done",
        "cd /proc/sys; grep . vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_max*",
        "iptables-save | grep ^-; nft list tables",
    ];
    let shown = lines.map(|line| {
        let line = line.replace("TAG", tag.trim());
        let done = Command::new("sh").args(["-c", &line]).output().unwrap();
        String::from_utf8_lossy(&done.stdout).lines().map(|text| format!("{line}: {text}")).collect::<Vec<_>>()
    });
    shown.into_iter().flatten().collect()
}

#[test]
fn clusters_interrupted_or_taken_down_leave_the_machine_as_it_was() {
    testkit::needs_root!();
    output(cluster(&["down"]).unwrap()).unwrap();
    let before = machine();

    let mut up = cluster(&["up", "--clusters", "1", "--nodes", "1"]).unwrap();
    let mut up = up.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(up.stderr.take().unwrap()));
    let running = lines.by_ref().map_while(Result::ok).find(|line| line.contains("API server"));
    assert!(running.is_some(), "the API server never started");
    assert_ne!(machine(), before, "something must be there to be cleaned up");
    Command::new("kill").args(["-INT", &up.id().to_string()]).status().unwrap();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(!up.wait().unwrap().success());
    assert!(rest.iter().any(|line| line.contains("interrupted")), "{rest:?}");
    assert_eq!(machine(), before);

    // The first of these finds what the interrupted one left of its logs, the second what the first left.
    for _ in 0..2 {
        output(cluster(&["up", "--clusters", "1", "--nodes", "1"]).unwrap()).unwrap();
        output(cluster(&["down"]).unwrap()).unwrap();
        assert_eq!(machine(), before);
    }
}

#[test]
fn pods_of_two_clusters_have_the_same_addresses_and_reach_their_own_services() {
    testkit::needs_root!();
    let clusters = Clusters::two().unwrap();
    for number in [1, 2] {
        clusters.apply(number, &APPLICATIONS.replace("@CLUSTER@", &format!("cluster{number}"))).unwrap();
    }
    let mut ranges = Vec::new();
    for number in [1, 2] {
        clusters.kubectl(number, &["-n", "plain", "rollout", "status", "daemonset/web", "--timeout=120s"]).unwrap();
        let pods = clusters.field(number, "plain", "pods", "{.items[*].metadata.name}").unwrap();
        let pods: Vec<&str> = pods.split_whitespace().collect();
        assert_eq!(pods.len(), 2, "one on each node");
        let mut answers = BTreeSet::new();
        for pod in &pods {
            // By name: the pod's resolver asks CoreDNS through kube-proxy, the service is translated by kube-proxy.
            let url = "http://web.plain.svc.cluster.local/";
            let pod = format!("plain/{pod}");
            let ask = || clusters.in_pod(number, &pod, &["curl", "--silent", "--max-time", "5", url]);
            // A pod is ready before every node's kube-proxy has heard of it.
            clusters.until("a first answer", || ask().is_ok()).unwrap();
            for _ in 0..20 {
                answers.insert(ask().unwrap().trim().to_owned());
            }
        }
        let expected = [1, 2].map(|node| format!("cluster{number} c{number}n{node}"));
        assert_eq!(answers, BTreeSet::from(expected), "both nodes answer, of this cluster alone");
        let addresses = clusters.field(number, "plain", "pods", "{.items[*].status.podIP}").unwrap();
        let ranges_here: BTreeSet<String> =
            addresses.split_whitespace().map(|ip| ip.rsplit_once('.').unwrap().0.to_owned()).collect();
        ranges.push(ranges_here);
    }
    assert_eq!(ranges.first(), ranges.last(), "clusters use the same pod ranges");
    for number in [1, 2] {
        clusters.delete_namespace(number, "plain").unwrap();
    }
}

#[test]
fn a_nodes_cgroups_and_processes_are_all_it_sees() {
    testkit::needs_root!();
    let clusters = Clusters::two().unwrap();
    let unified = "/sys/fs/cgroup/unified/cgroup.procs";
    let root = if std::path::Path::new(unified).exists() { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" };
    let seen = clusters.exec("c1n1", &["ls", root]).unwrap();
    let folders: BTreeSet<&str> = seen.lines().filter(|name| !name.contains('.')).collect();
    assert_eq!(folders, BTreeSet::from(["kubepods", "system"]));
    let commands = clusters.exec("c2n2", &["ps", "-eo", "args"]).unwrap();
    assert_eq!(commands.matches("containerd.toml").count(), 1, "{commands}");
    assert!(!commands.contains("etcd"), "the control plane is on the first node: {commands}");
}

#[test]
fn a_stopped_api_server_comes_back_with_what_it_knew() {
    testkit::needs_root!();
    let clusters = Clusters::two().unwrap();
    clusters.kubectl(2, &["create", "configmap", "remembered", "--from-literal=a=b"]).unwrap();
    output(cluster(&["stop", "c2n1", "apiserver"]).unwrap()).unwrap();
    assert!(clusters.kubectl(2, &["get", "nodes", "--request-timeout=2s"]).is_err());
    assert!(clusters.kubectl(1, &["get", "nodes"]).is_ok(), "the other cluster has its own");
    std::thread::sleep(Duration::from_millis(100));
    output(cluster(&["start", "c2n1", "apiserver"]).unwrap()).unwrap();
    assert_eq!(clusters.field(2, "default", "configmap/remembered", "{.data.a}").unwrap(), "b");
    clusters.kubectl(2, &["delete", "configmap", "remembered"]).unwrap();
}
