//! The node agent and the Kubernetes API: its rights, its chart, what it tells, and what it does without.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod kubernetes_common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kubernetes_common::{Namespace, OUTSIDERS, address, figure, get, pod, shop};
use testkit::clusters::Clusters;
use testkit::clusters::deployed::{Deployed, MESH, SHOP};

#[test]
fn the_agent_has_the_listed_rights_alone_and_writes_to_pods_of_its_node_alone() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    let account = format!("system:serviceaccount:{MESH}:causeway");
    let can = |words: &[&str]| {
        let words = [&["auth", "can-i"], words, &["--as", account.as_str()]].concat();
        // The answer is also the exit code, which is not an error here.
        clusters.kubectl(1, &words).is_ok_and(|text| text.trim() == "yes")
    };
    for (words, expected) in [
        (&["list", "pods", "-A"][..], true),
        (&["watch", "pods", "-A"], true),
        (&["list", "namespaces"], true),
        (&["watch", "namespaces"], true),
        (&["patch", "pods", "--subresource=status", "-A"], true),
        (&["create", "events.events.k8s.io", "-A"], true),
        (&["patch", "events.events.k8s.io", "-A"], true),
        (&["get", "daemonsets.apps/causeway", "-n", MESH], true),
        (&["get", "daemonsets.apps/other", "-n", MESH], false),
        (&["get", "pods", "-A"], false),
        (&["patch", "pods", "-A"], false),
        (&["update", "pods", "-A"], false),
        (&["delete", "pods", "-A"], false),
        (&["create", "pods", "-A"], false),
        (&["create", "pods", "--subresource=exec", "-A"], false),
        (&["update", "pods", "--subresource=status", "-A"], false),
        (&["get", "secrets", "-A"], false),
        (&["list", "secrets", "-A"], false),
        (&["get", "configmaps", "-A"], false),
        (&["list", "nodes"], false),
        (&["patch", "nodes"], false),
        (&["patch", "namespaces"], false),
        (&["create", "serviceaccounts", "--subresource=token", "-A"], false),
        (&["delete", "events.events.k8s.io", "-A"], false),
        (&["patch", "daemonsets.apps", "-A"], false),
        (&["impersonate", "users"], false),
        (&["list", "services", "-A"], true),
        (&["watch", "services", "-A"], true),
        (&["get", "services", "-A"], false),
        (&["patch", "services", "-A"], false),
        (&["list", "endpointslices.discovery.k8s.io", "-A"], false),
    ] {
        assert_eq!(can(words), expected, "{words:?}");
    }
    // What it may beyond any account without rights of its own is what the chart lists, in its own namespace and elsewhere.
    let list = |account: &str, namespace: &str| -> BTreeSet<String> {
        let account = format!("system:serviceaccount:{MESH}:{account}");
        let words = ["auth", "can-i", "--list", "--no-headers", "-n", namespace, "--as", &account];
        let text = clusters.kubectl(1, &words).unwrap();
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    let everywhere = [
        "pods [] [] [list watch]",
        "namespaces [] [] [list watch]",
        "services [] [] [list watch]",
        "pods/status [] [] [patch]",
        "events.events.k8s.io [] [] [create patch]",
    ];
    for (namespace, further) in [(MESH, &["daemonsets.apps [] [causeway] [get]"][..]), (SHOP, &[])] {
        let listed: BTreeSet<String> = everywhere.iter().chain(further).map(ToString::to_string).collect();
        let own: BTreeSet<String> =
            list("causeway", namespace).difference(&list("nobody", namespace)).cloned().collect();
        assert_eq!(own, listed, "in {namespace}");
    }
    // With the token of the agent of one node, pods of that node alone, and one annotation alone.
    let agent = causeway.agents().unwrap().remove("c1n1").unwrap();
    let bound =
        ["-n", MESH, "create", "token", "causeway", "--bound-object-kind", "Pod", "--bound-object-name", &agent];
    let bearer = format!("Authorization: Bearer {}", clusters.kubectl(1, &bound).unwrap().trim());
    // kubectl would read before it writes, which the agent may not.
    let patch = |pod: &str, patch: &str| {
        let name = pod.split_once('/').unwrap().1;
        let url = format!("https://10.96.0.1/api/v1/namespaces/{SHOP}/pods/{name}/status");
        let kind = "Content-Type: application/merge-patch+json";
        let words = ["curl", "-sk", "-X", "PATCH", "-H", &bearer, "-H", kind, "-d", patch, &url];
        let answer: serde_json::Value = serde_json::from_str(&clusters.exec("c1n1", &words).unwrap()).unwrap();
        if answer["kind"] == "Pod" { Ok(()) } else { Err(answer["message"].to_string()) }
    };
    let mark = r#"{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}"#;
    let own = pod(&clusters, "web", "c1n1");
    patch(&own, mark).unwrap();
    for (pod, text, why) in [
        (pod(&clusters, "web", "c1n2"), mark, "its own node alone"),
        (own.clone(), r#"{"metadata":{"annotations":{"other":"x"}}}"#, "redirection alone"),
        (own.clone(), r#"{"metadata":{"labels":{"app":"x"}}}"#, "no labels"),
        (own, r#"{"status":{"podIP":"10.9.9.9"}}"#, "no status"),
    ] {
        let error = patch(&pod, text).unwrap_err();
        assert!(error.contains(why), "{pod} {text}: {error}");
    }
}

/// The objects of a list by kind and name, without what tells one request from another, and without marks of Helm.
fn objects(list: &str) -> BTreeMap<String, serde_json::Value> {
    let mut list: serde_json::Value = serde_json::from_str(list).unwrap();
    let items = list["items"].as_array_mut().unwrap();
    assert!(items.len() > 5, "{items:?}");
    let name = |object: &serde_json::Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    let objects = items.iter_mut().map(|object| {
        unmark(object);
        (name(object), object.clone())
    });
    objects.collect()
}

fn unmark(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            for field in ["uid", "creationTimestamp", "managedFields", "helm.sh/chart", "app.kubernetes.io/managed-by"]
            {
                fields.remove(field);
            }
            fields.values_mut().for_each(unmark);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(unmark),
        _ => {}
    }
}

#[test]
fn the_chart_renders_with_every_profile_refuses_mistakes_and_passes_the_api_server() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let chart = testkit::clusters::deployed::chart().display().to_string();
    let helm = |words: &[&str]| clusters.helm(1, words);
    // The API server itself, which changes nothing.
    let dry_run = |text: &str, name: &str| {
        let file = std::env::temp_dir().join(format!("causeway-{name}-{}.yaml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let words = ["apply", "--server-side", "--dry-run=server", "-o", "json", "-f", file.to_str().unwrap()];
        let applied = clusters.kubectl(1, &words);
        std::fs::remove_file(&file).unwrap();
        applied.unwrap()
    };
    let profiles = ["", "kind", "minikube", "k3s", "k3d", "microk8s", "gke", "eks", "aks", "openshift", "namespaces"];
    for profile in profiles {
        let set = format!("profile={profile}");
        helm(&["lint", &chart, "--strict", "--set", &set]).unwrap();
        let text =
            helm(&["template", "causeway", &chart, "--kube-version", "1.35.0", "--namespace", MESH, "--set", &set])
                .unwrap();
        assert!(!text.contains("privileged: true") && text.contains("readOnlyRootFilesystem: true"), "{profile}");
        assert!(dry_run(&text, "chart").contains("\"DaemonSet\""), "{profile}");
    }
    helm(&["install", "causeway", &chart, "--namespace", MESH, "--dry-run=server"]).unwrap();
    // The plain manifest is the chart with the same names, as the API server understands both.
    let program = std::env::current_exe().unwrap();
    let program = program.ancestors().map(|folder| folder.join("causeway")).find(|path| path.is_file()).unwrap();
    let mut install = std::process::Command::new(program);
    install.args(["install", "--generate", "--cluster", "cluster1", "--network", "network1", "--image", "a.test/b:1"]);
    let plain = testkit::clusters::output(install).unwrap();
    let template = ["template", "causeway", &chart, "--kube-version", "1.35.0", "--namespace", MESH, "--no-hooks"];
    let sets = ["--set", "network=network1", "--set", "multiCluster.clusterName=cluster1", "--set", "image=a.test/b:1"];
    let rendered = helm(&[&template[..], &sets[..]].concat()).unwrap();
    assert_eq!(objects(&dry_run(&plain, "plain")), objects(&dry_run(&rendered, "rendered")));
    // What Istio's charts are told carries over.
    let istio = [
        "cniBinDir=/opt/cni/bin",
        "cniConfDir=/etc/cni/net.d",
        "chained=true",
        "repair.enabled=true",
        "ambient.enabled=true",
        "logLevel=info",
        "global.platform=k3s",
        "resources.requests.cpu=100m",
        "excludeNamespaces={kube-system}",
    ];
    let sets: Vec<&str> = istio.iter().flat_map(|set| ["--set", set]).collect();
    helm(&[&["template", "causeway", chart.as_str(), "--kube-version", "1.35.0"], &sets[..]].concat()).unwrap();
    for (set, expected) in [
        ("network=a,global.network=b", "one cluster is in one network"),
        ("profile=nowhere", "profile"),
        ("netwrok=a", "netwrok"),
        ("logAsJson=maybe", "logAsJson"),
        ("capabilities={NET_RAW}", "capabilities"),
        ("nodePort.services=some", "nodePort"),
        ("nodePort.uplinks={a name that is too long}", "nodePort"),
        ("nodePort.podRanges={10.244.0.0}", "nodePort"),
        ("xdsAddress=istiod", "xdsAddress"),
        ("ambient.enabled=false", "ambient"),
        ("network=elsewhere", "is labelled topology.istio.io/network"),
    ] {
        let error = helm(&["install", "causeway", &chart, "--namespace", MESH, "--dry-run=server", "--set", set]);
        let error = error.expect_err(set).to_string();
        assert!(error.contains(expected), "{set}: {error}");
    }
    testkit::clusters::output(testkit::clusters::xtask(&["manifests", "--check"]).unwrap()).unwrap();
}

/// A pod that looks like Istio's own proxy of the node.
const OTHER_DATAPLANE: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: ztunnel-x, namespace: outside, labels: {app: ztunnel}}
spec:
  nodeName: c1n2
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'causeway.test/debian:1', imagePullPolicy: Never, command: [sleep, infinity]}]
";

#[test]
fn beside_another_dataplane_no_pod_is_enrolled_and_each_is_told_why() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    let _outside = Namespace(&clusters, "outside");
    clusters.apply(1, OTHER_DATAPLANE).unwrap();
    clusters.wait_ready(1, "outside").unwrap();
    shop(&clusters);
    clusters.kubectl(1, &["label", "namespace", SHOP, "istio.io/dataplane-mode=ambient"]).unwrap();
    let events = |pod: &str| {
        let about =
            format!("--field-selector=involvedObject.name={},reason=OtherDataplane", pod.split_once('/').unwrap().1);
        clusters.kubectl(1, &["-n", SHOP, "get", "events", &about, "-o", "jsonpath={.items[*].message}"]).unwrap()
    };
    let (here, there) = (pod(&clusters, "web", "c1n1"), pod(&clusters, "web", "c1n2"));
    clusters
        .until("an event that names the other dataplane", || events(&there).contains("ztunnel runs on this node"))
        .unwrap();
    let mark = |pod: &str| {
        let object = format!("pod/{}", pod.split_once('/').unwrap().1);
        clusters.field(1, SHOP, &object, r"{.metadata.annotations.ambient\.istio\.io/redirection}").unwrap()
    };
    clusters.until("the pod of the node without one is enrolled", || mark(&here) == "enabled").unwrap();
    assert_eq!((mark(&there).as_str(), events(&here).as_str()), ("", ""));
    clusters.kubectl(1, &["-n", "outside", "delete", "pod", "ztunnel-x"]).unwrap();
    causeway.label(true).unwrap();
}

#[test]
fn pods_that_cannot_be_enrolled_get_an_event_that_says_why() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let _causeway = Deployed::install(&clusters, 1).unwrap();
    let _outside = Namespace(&clusters, "outside");
    clusters.apply(1, OUTSIDERS).unwrap();
    clusters.wait_ready(1, "outside").unwrap();
    clusters.kubectl(1, &["label", "namespace", "outside", "istio.io/dataplane-mode=ambient"]).unwrap();
    let events = || {
        let about = "--field-selector=involvedObject.name=imitator,reason=NotEligible";
        clusters.kubectl(
            1,
            &["-n", "outside", "get", "events", about, "-o", "jsonpath={.items[*].type} {.items[*].message}"],
        )
    };
    clusters.until("an event", || events().unwrap().starts_with("Warning it uses the node's network")).unwrap();
}

/// Connects as its first instruction, and says how long that took.
const EARLY: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: early, namespace: shop, labels: {app: early}}
spec:
  nodeName: c1n1
  serviceAccountName: client
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: causeway.test/debian:1
      imagePullPolicy: Never
      command:
        - python3
        - -c
        - |
          import socket, time
          began = time.time()
          socket.create_connection(('HOST', 80), 30)
          print('connected after %.3f s' % (time.time() - began), flush=True)
          time.sleep(3600)
";

/// Pods of the node that are there hear nothing of the API server any more; its kubelet does.
const DEAF: &str = "for ns in /run/netns/*; do nsenter --net=$ns nft 'table inet deaf { \
    chain input { type filter hook input priority 0; ip saddr 10.96.0.1 drop; }; \
    chain output { type filter hook output priority 0; ip daddr 10.96.0.1 drop; }; }'; done";
/// As before.
const HEARING: &str = "for ns in /run/netns/*; do nsenter --net=$ns nft delete table inet deaf || :; done";

/// A node whose pods hear nothing of the API server, and a pod that starts on it: both end with this, whatever happened.
struct Deaf<'a>(&'a Clusters);

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        let _ = self.0.exec("c1n1", &["sh", "-c", HEARING]);
        let _ = self.0.kubectl(1, &["-n", SHOP, "delete", "pod", "early", "--ignore-not-found"]);
    }
}

#[test]
fn a_pod_that_starts_before_the_api_tells_of_it_is_seen_and_waits_no_longer_than_it_should() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    let host = address(&clusters, &pod(&clusters, "web", "c1n2"));
    let _deaf = Deaf(&clusters);
    clusters.exec("c1n1", &["sh", "-c", DEAF]).unwrap();
    clusters.apply(1, &EARLY.replace("HOST", &host)).unwrap();
    let uid = clusters.field(1, SHOP, "pod/early", "{.metadata.uid}").unwrap();
    let told = || clusters.kubectl(1, &["-n", SHOP, "logs", "early"]).unwrap_or_default();
    clusters.until("the connection passes in the end", || told().contains("connected after")).unwrap();
    let warned = format!("has not told of pod {uid}");
    clusters.until("a word of the agent", || causeway.logs().unwrap().contains(&warned)).unwrap();
    clusters.exec("c1n1", &["sh", "-c", HEARING]).unwrap();
    println!("a pod of which the agent was not told has {}", told().trim());
    let mark = r"{.metadata.annotations.ambient\.istio\.io/redirection}";
    let enrolled = || clusters.field(1, SHOP, "pod/early", mark).unwrap() == "enabled";
    clusters.until("it is enrolled once the API has told of it", enrolled).unwrap();
    causeway.label(false).unwrap();
}

#[test]
fn without_the_api_server_for_a_minute_what_is_enrolled_keeps_working() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    let (client, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let url = format!("http://{}/", address(&clusters, &server));
    assert_eq!(get(&clusters, &client, &url).unwrap().trim(), "c1n2");
    let field = "{.status.containerStatuses[0].containerID}";
    let container = clusters.field(1, SHOP, &format!("pod/{}", client.split_once('/').unwrap().1), field).unwrap();
    let container = container.trim_start_matches("containerd://");
    // Past kubelet and API server, which could not pass it on now; it is a process of the pod all the same.
    let task = ["exec", "c1n1", "--", "ctr", "-n", "k8s.io", "tasks", "exec", "--exec-id", "load", container];
    let host = address(&clusters, &server);
    let load = ["python3", "/config/load.py", &host, "70", "20000"];
    let mut command = testkit::clusters::cluster(&[&task[..], &load[..]].concat()).unwrap();
    let running = command.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    testkit::clusters::output(testkit::clusters::cluster(&["stop", "c1n1", "apiserver"]).unwrap()).unwrap();
    let away = Instant::now();
    let output = running.wait_with_output();
    let away = away.elapsed();
    testkit::clusters::output(testkit::clusters::cluster(&["start", "c1n1", "apiserver"]).unwrap()).unwrap();
    let text = String::from_utf8_lossy(&output.unwrap().stdout).into_owned();
    println!("API server away for {} s: {}", away.as_secs(), text.trim());
    assert!(text.contains(" failed 0 reset 0 "), "{text}\n{}", causeway.logs().unwrap());
    assert!(figure(&text, "made") >= 1000.0, "too few to say anything: {text}");
    causeway.label(false).unwrap();
}
