//! The node agent on real nodes: installed by its chart, pods enrolled by label, removed without a trace.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use testkit::clusters::Clusters;
use testkit::clusters::deployed::{Deployed, MESH, SHOP};
use testkit::process;

/// A server with every kind of probe and a client, each on every node.
const SHOP_YAML: &str = include_str!("kubernetes_common/shop.yaml");

/// Creates the application and waits for it.
fn shop(clusters: &Clusters) {
    clusters.apply(1, SHOP_YAML).unwrap();
    for name in ["daemonset/web", "daemonset/client"] {
        clusters.kubectl(1, &["-n", SHOP, "rollout", "status", name, "--timeout=120s"]).unwrap();
    }
}

/// The pod of an application on a node, as `namespace/name`.
fn pod(clusters: &Clusters, app: &str, node: &str) -> String {
    let selector = format!("--field-selector=spec.nodeName={node}");
    let label = format!("app={app}");
    let words = ["-n", SHOP, "get", "pods", "-l", &label, &selector, "-o", "jsonpath={.items[0].metadata.name}"];
    format!("{SHOP}/{}", clusters.kubectl(1, &words).unwrap())
}

fn address(clusters: &Clusters, pod: &str) -> String {
    let name = pod.split_once('/').unwrap().1;
    clusters.field(1, SHOP, &format!("pod/{name}"), "{.status.podIP}").unwrap()
}

/// What a client gets from a URL, or why nothing.
fn get(clusters: &Clusters, client: &str, url: &str) -> testkit::Result<String> {
    clusters.in_pod(1, client, &["curl", "--silent", "--show-error", "--fail", "--max-time", "5", url])
}

#[test]
fn pods_of_a_labelled_namespace_speak_hbone_between_nodes_and_have_no_netfilter_rule() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    let (client, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let url = format!("http://{}/", address(&clusters, &server));
    assert_eq!(get(&clusters, &client, &url).unwrap().trim(), "c1n2", "before the label");
    assert!(!causeway.logs().unwrap().contains("access\t"), "nothing goes through the engine without a label");

    causeway.label(true).unwrap();
    assert_eq!(get(&clusters, &client, &url).unwrap().trim(), "c1n2");
    for _ in 0..20 {
        get(&clusters, &client, "http://web.shop.svc.cluster.local/").unwrap();
    }
    let (from, to) = ("spiffe://cluster.local/ns/shop/sa/client", "spiffe://cluster.local/ns/shop/sa/web");
    let both =
        |line: &str| line.contains(&format!("src.identity={from}")) && line.contains(&format!("dst.identity={to}"));
    let complete = || {
        let agent = causeway.agents().unwrap().remove("c1n2").unwrap();
        let text = clusters.kubectl(1, &["-n", MESH, "logs", &agent]).unwrap();
        text.lines().any(|line| line.contains("direction=inbound") && both(line))
    };
    process::until(Duration::from_secs(20), complete)
        .unwrap_or_else(|error| panic!("no line with both identities: {error}\n{}", causeway.logs().unwrap()));
    for node in ["c1n1", "c1n2"] {
        let rules = "for ns in /run/netns/*; do nsenter --net=$ns sh -c 'iptables-save; ip6tables-save; nft list ruleset'; done 2> /dev/null";
        let found = clusters.exec(node, &["sh", "-c", &format!("{rules} | grep -E '^-A|chain' || true")]).unwrap();
        assert_eq!(found.trim(), "", "{node}");
    }
}

#[test]
fn helm_uninstall_leaves_no_pin_rule_or_annotation_and_traffic_goes_on() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    let there = |node: &str| {
        let look = "ls -A /sys/fs/bpf; for ns in /run/netns/*; do nsenter --net=$ns ip rule show; nsenter --net=$ns ip route show table 100; done 2>/dev/null | grep -E '0x111|dev lo'; true";
        clusters.exec(node, &["sh", "-c", look]).unwrap().trim().to_owned()
    };
    for node in ["c1n1", "c1n2"] {
        assert!(
            there(node).contains("causeway") && there(node).contains("0x111"),
            "{node}: something must be there first"
        );
    }
    let (client, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let url = format!("http://{}/", address(&clusters, &server));
    causeway.uninstall().unwrap();
    for node in ["c1n1", "c1n2"] {
        assert_eq!(there(node), "", "{node}");
    }
    let marks = r"jsonpath={.items[*].metadata.annotations.ambient\.istio\.io/redirection}";
    assert_eq!(clusters.kubectl(1, &["get", "pods", "-A", "-o", marks]).unwrap(), "");
    assert_eq!(get(&clusters, &client, &url).unwrap().trim(), "c1n2");
    clusters.delete_namespace(1, SHOP).unwrap();
}

/// Strict mutual TLS, and an authorization policy that allows nothing.
const STRICT: &str = r"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: shop}
spec: {}
";

/// Pods outside the mesh: one of the ordinary kind, and one that shares the node's network as a probe's sender does.
const OUTSIDERS: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: outside}
spec:
  nodeName: c1n2
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'causeway.test/debian:1', imagePullPolicy: Never, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: imitator, namespace: outside}
spec:
  nodeName: c1n2
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'causeway.test/debian:1', imagePullPolicy: Never, command: [sleep, infinity]}]
";

/// Takes a namespace away at the end, whatever the end is.
struct Namespace<'a>(&'a Clusters, &'static str);

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        let _ = self.0.delete_namespace(1, self.1);
    }
}

#[test]
fn probes_pass_strict_and_deny_all_policies_and_a_pod_that_imitates_one_is_refused() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    let _outside = Namespace(&clusters, "outside");
    clusters.apply(1, OUTSIDERS).unwrap();
    clusters.wait_ready(1, "outside").unwrap();
    causeway.label(true).unwrap();
    let server = pod(&clusters, "web", "c1n2");
    let url = format!("http://{}/", address(&clusters, &server));
    for outsider in ["outside/plain", "outside/imitator"] {
        assert_eq!(get(&clusters, outsider, &url).unwrap().trim(), "c1n2", "{outsider}, before the policies");
    }
    clusters.apply(1, STRICT).unwrap();
    let client = pod(&clusters, "client", "c1n2");
    let refused = |from: &str| get(&clusters, from, &url).is_err();
    process::until(Duration::from_secs(20), || refused(&client)).expect("the policies are in force");
    for outsider in ["outside/plain", "outside/imitator"] {
        assert!(refused(outsider), "{outsider} got through");
    }
    // Probes come every second; each kind fails its pod after at most three.
    let states = "jsonpath={range .items[*]}{.status.containerStatuses[*].restartCount} {.status.conditions[?(@.type=='Ready')].status} {.status.conditions[?(@.type=='Ready')].lastTransitionTime}{'\\n'}{end}";
    let states = || clusters.kubectl(1, &["-n", SHOP, "get", "pods", "-l", "app=web", "-o", states]).unwrap();
    let before = states();
    assert!(before.lines().count() == 2 && before.lines().all(|line| line.starts_with("0 0 True ")), "{before}");
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(states(), before, "no probe failed");
    let agent = causeway.agents().unwrap().remove("c1n2").unwrap();
    let status: serde_json::Value = serde_json::from_str(&causeway.status(&agent, "json").unwrap()).unwrap();
    let count = |name: &str| status.pointer(&format!("/kernel/{name}")).and_then(serde_json::Value::as_u64).unwrap();
    assert!(count("inbound_node") >= 16, "probes were recognised in the kernel: {status}");
    assert!(refused("outside/imitator"), "still refused");
}

#[test]
fn a_label_taken_off_and_put_on_fails_no_connection_and_ends_none() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let causeway = Deployed::install(&clusters, 1).unwrap();
    shop(&clusters);
    causeway.label(true).unwrap();
    let (client, server) = (pod(&clusters, "client", "c1n1"), pod(&clusters, "web", "c1n2"));
    let host = address(&clusters, &server);
    let load = |seconds: &str| {
        let client = client.split_once('/').unwrap().1;
        let words = [
            "kubectl",
            "1",
            "--",
            "-n",
            SHOP,
            "exec",
            client,
            "--",
            "python3",
            "/config/load.py",
            &host,
            seconds,
            "4000",
        ];
        let mut command = testkit::clusters::cluster(&words).unwrap();
        command.stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let running = load("45");
    std::thread::sleep(Duration::from_secs(4));
    for wanted in [false, true, false, true] {
        causeway.label(wanted).unwrap();
        std::thread::sleep(Duration::from_secs(3));
    }
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("label off, on, off, on: {}", text.trim());
    assert!(text.contains(" failed 0 reset 0 "), "{text}\n{}", causeway.logs().unwrap());
    let made =
        text.split_whitespace().skip_while(|word| *word != "made").nth(1).and_then(|word| word.parse::<u32>().ok());
    assert!(made.is_some_and(|made| made >= 1000), "too few to say anything: {text}");
}

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
        (&["list", "services", "-A"], false),
    ] {
        assert_eq!(can(words), expected, "{words:?}");
    }
    // With the token of the agent of one node, pods of that node alone, and one annotation alone.
    let agent = causeway.agents().unwrap().remove("c1n1").unwrap();
    let bound =
        ["-n", MESH, "create", "token", "causeway", "--bound-object-kind", "Pod", "--bound-object-name", &agent];
    let token = format!("--token={}", clusters.kubectl(1, &bound).unwrap().trim());
    let patch = |pod: &str, patch: &str| {
        let name = pod.split_once('/').unwrap().1;
        let words = ["-n", SHOP, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch, &token];
        clusters.kubectl(1, &words).map(drop).map_err(|error| error.to_string())
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

#[test]
fn the_chart_renders_with_every_profile_refuses_mistakes_and_passes_the_api_server() {
    testkit::needs_root!();
    let clusters = Clusters::any().unwrap();
    let chart = testkit::clusters::deployed::chart().display().to_string();
    let helm = |words: &[&str]| clusters.helm(1, words);
    let profiles = ["", "kind", "minikube", "k3s", "k3d", "microk8s", "gke", "eks", "aks", "openshift", "namespaces"];
    for profile in profiles {
        let set = format!("profile={profile}");
        helm(&["lint", &chart, "--strict", "--set", &set]).unwrap();
        let text = helm(&["template", "causeway", &chart, "--namespace", MESH, "--set", &set]).unwrap();
        assert!(!text.contains("privileged: true") && text.contains("readOnlyRootFilesystem: true"), "{profile}");
    }
    // The API server itself, which changes nothing.
    helm(&["install", "causeway", &chart, "--namespace", MESH, "--dry-run=server"]).unwrap();
    let text = helm(&["template", "causeway", &chart, "--namespace", MESH]).unwrap();
    let file = std::env::temp_dir().join(format!("causeway-chart-{}.yaml", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let applied = clusters.kubectl(1, &["apply", "--server-side", "--dry-run=server", "-f", file.to_str().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    applied.unwrap();
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
    helm(&[&["template", "causeway", chart.as_str()], &sets[..]].concat()).unwrap();
    for (set, expected) in [
        ("network=a,global.network=b", "one cluster is in one network"),
        ("profile=nowhere", "profile"),
        ("netwrok=a", "netwrok"),
        ("logAsJson=maybe", "logAsJson"),
        ("capabilities={NET_RAW}", "capabilities"),
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
