//! Certificates from the authority of a real istiod.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::Value;
use std::time::Duration;
use testkit::fixture::TwoClusters;
use testkit::istiod::{ControlPlane, copy_folder};
use testkit::process;
use testkit::topology::NodeId;

/// Two clusters whose nodes get their certificates from their own istiod; the model still comes from files.
struct Stage {
    // Ended before the topology's namespaces go.
    planes: [ControlPlane; 2],
    clusters: TwoClusters,
}

impl Stage {
    fn start(name: &str, ttl: &str, prepare: impl FnOnce(&mut TwoClusters)) -> Self {
        let mut clusters = TwoClusters::build(name).unwrap();
        prepare(&mut clusters);
        let planes = clusters.clusters.map(|cluster| ControlPlane::start(&clusters.topology, cluster).unwrap());
        for (plane, cluster) in planes.iter().zip(clusters.clusters) {
            for node in clusters.topology.nodes_of(cluster) {
                let section = plane.section(&clusters.topology, node, ttl).unwrap();
                clusters.topology.set_section(node, section);
            }
        }
        // istiod only signs for accounts that have a pod on the asking node; the gateway role is no exception.
        let node = clusters.topology.node_name(clusters.gateway_node).to_owned();
        let ip = clusters.topology.node_ip(clusters.gateway_node).to_string();
        planes[1].run_pod("istio-eastwest/eastwest-1", "eastwest", &node, &ip).unwrap();
        Self { planes, clusters: clusters.started().unwrap() }
    }

    fn certificates(&self, node: NodeId) -> Vec<Value> {
        let answer = self.clusters.topology.daemon(node).get("certificates").unwrap();
        answer.as_array().cloned().unwrap_or_default()
    }

    fn state(&self, node: NodeId, account: &str) -> String {
        let find = |rows: Vec<Value>| {
            rows.into_iter()
                .find(|row| row["identity"].as_str().is_some_and(|id| id.ends_with(&format!("/sa/{account}"))))
        };
        find(self.certificates(node)).and_then(|row| row["state"].as_str().map(str::to_owned)).unwrap_or_default()
    }
}

#[test]
fn all_workloads_of_a_node_get_theirs_by_impersonation_and_one_of_another_node_is_refused() {
    testkit::needs_control_plane!();
    let mut imposter = None;
    let stage = Stage::start("istio-ca", "1h", |clusters| {
        imposter = Some(clusters.topology.pod(clusters.client_node, "default/imposter").unwrap());
    });
    let imposter = imposter.unwrap();
    let topology = &stage.clusters.topology;
    // To the API server that pod runs elsewhere, so this node has no right to its identity. Tokens are judged by a cache.
    let client_node = stage.clusters.client_node;
    let api = stage.planes[0].api();
    let pod = |name: &str| serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}});
    api.delete(&pod("imposter")).unwrap();
    stage.planes[0].publish_pod(&imposter, "another-node").unwrap();

    for (node, accounts) in [
        (client_node, vec!["client"]),
        (stage.clusters.gateway_node, vec!["web", "neighbour", "eastwest"]),
        (stage.clusters.server_node, vec!["web"]),
    ] {
        for account in accounts {
            process::until(Duration::from_secs(20), || stage.state(node, account) == "Available").unwrap_or_else(
                |_| panic!("{account} on {}: {:?}", topology.node_name(node), stage.certificates(node)),
            );
        }
    }
    for _ in 0..5 {
        let answer = stage.clusters.curl(&stage.clusters.client, stage.clusters.vip("default/web")).unwrap();
        assert!(answer.contains("pod=default/web"), "{answer}");
    }

    // A restart asks anew, now that the pod is elsewhere.
    let mut stage = stage;
    stage.clusters.topology.terminate_daemon(client_node).unwrap();
    stage.clusters.topology.launch(client_node).unwrap();
    process::until(Duration::from_secs(30), || {
        stage.clusters.topology.daemon(client_node).status().is_ok()
            && stage.state(client_node, "imposter").starts_with("Unavailable")
    })
    .unwrap_or_else(|_| panic!("{:?}", stage.clusters.topology.daemon(client_node).log_tail(40)));
    let state = stage.state(client_node, "imposter");
    let node = stage.clusters.topology.node_name(client_node).to_owned();
    for part in
        ["Unauthenticated", "pod with service account default/imposter runs on node", &node, "istio-system/ztunnel"]
    {
        assert!(state.contains(part), "{part:?} is not in: {state}");
    }
    println!("{state}");
    stage
        .clusters
        .topology
        .daemon(client_node)
        .wait_for_log("no certificate for spiffe://cluster.local/ns/default/sa/imposter")
        .unwrap();
    // The connection of the one without certificate fails with that reason, the others go on.
    let to = format!("{}:80", stage.clusters.vip("default/web"));
    let ended = imposter.run(&["testkit-peer", "how-it-ends", &to]).unwrap();
    assert!(!ended.stdout.contains("pod="), "{ended:?}");
    let line =
        stage.clusters.topology.daemon(client_node).wait_for_line(&["direction=outbound", "no certificate"]).unwrap();
    assert!(line.contains("default/imposter"), "{line}");
    process::until(Duration::from_secs(20), || stage.state(client_node, "client") == "Available").unwrap();
    stage.clusters.curl(&stage.clusters.client, stage.clusters.vip("default/web")).unwrap();
}

#[test]
fn leaves_and_roots_rotate_under_load_without_a_failed_connection() {
    testkit::needs_control_plane!();
    let stage = Stage::start("rotation", "20s", |clusters| {
        clusters.peer_service("default/echo", "echo", 2600).unwrap();
    });
    let topology = &stage.clusters.topology;
    let client = &stage.clusters.client;
    let to = format!("{}:2600", stage.clusters.vip("default/echo"));
    let generations = || -> Vec<u64> {
        topology
            .nodes()
            .flat_map(|node| stage.certificates(node))
            .filter_map(|row| row["generation"].as_u64())
            .collect()
    };
    let before = generations();
    let idle = |count: &str| {
        let mut idle = client.spawn_with_input(&["testkit-peer", "idle", &to, count]).unwrap();
        idle.wait_for(&format!("open {count}"), Duration::from_secs(20)).unwrap();
        idle
    };
    // Those that end before the old root does live; those that outlive it die with it; those of the new root live.
    let (short, long) = (idle("50"), idle("50"));
    let load = ["testkit-peer", "connections", &to, "20", "70", "--rate", "200"];
    let load = client.spawn(&load).unwrap();

    // A second root: first both are named, then the new one signs, then the old one is no longer named.
    let second = topology.scratch().join("second");
    let out = second.to_string_lossy().into_owned();
    let line = [
        "causeway",
        "ca",
        "--out",
        &out,
        "--trust-domain",
        "cluster.local",
        "--cluster",
        "cluster1",
        "--cluster",
        "cluster2",
    ];
    topology.wan_place().run_ok(&line).unwrap();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(&path).unwrap();
    let old_root = read(stage.planes[0].authority().join("root-cert.pem"));
    let new_root = read(second.join("root-cert.pem"));
    let both = format!("{old_root}{new_root}");
    for plane in &stage.planes {
        replace(&plane.authority().join("root-cert.pem"), &both);
        replace(&plane.roots_file(), &both);
    }
    std::thread::sleep(Duration::from_secs(20));
    for (plane, name) in stage.planes.iter().zip(["cluster1", "cluster2"]) {
        let fresh = topology.scratch().join(format!("fresh-{name}"));
        copy_folder(&second.join(name), &fresh).unwrap();
        replace(&fresh.join("root-cert.pem"), &both);
        copy_folder(&fresh, plane.authority()).unwrap();
    }
    std::thread::sleep(Duration::from_secs(20));
    for plane in &stage.planes {
        replace(&plane.authority().join("root-cert.pem"), &new_root);
        replace(&plane.roots_file(), &new_root);
    }
    std::thread::sleep(Duration::from_secs(3));
    let late = idle("50");
    let ended = |mut idle: testkit::Proc| {
        idle.close_input();
        idle.wait(Duration::from_secs(20)).unwrap()
    };
    let short = ended(short);
    assert!(short.status.success(), "no rotation may end a connection: {short:?}");
    let done = load.wait(Duration::from_secs(120)).unwrap();
    let counted: Value = serde_json::from_str(done.stdout.trim()).unwrap_or_else(|_| panic!("{done:?}"));
    assert_eq!(counted["failed"], 0, "{}", done.stderr);
    assert!(counted["completed"].as_u64().unwrap() > 5_000, "{counted}");
    let late = ended(late);
    assert!(late.status.success(), "made under the new root: {late:?}");
    let long = ended(long);
    assert!(!long.status.success(), "made under the root that is gone: {long:?}");
    let log = topology.daemon(stage.clusters.client_node).log();
    // Whichever tunnel on the way goes first, outer or inner, the application's connection is reset, once.
    let died = log.lines().filter(|line| line.contains("direction=outbound") && line.contains(" error=")).count();
    let told = topology.nodes().any(|node| topology.daemon(node).log().contains("does not hold against the roots"));
    assert!(told, "the reason is in a log");
    println!(
        "rotation under load: {counted}; of 150 open connections 50 died with their root, seen in the log: {died}"
    );
    assert_eq!(died, 50, "exactly those that should have died");
    let after = generations();
    assert!(after.iter().min() > before.iter().max(), "every certificate was renewed: {before:?} {after:?}");
    let signers = |text: &str| topology.nodes().any(|node| topology.daemon(node).log().contains(text));
    assert!(signers("names new roots"), "the second root was adopted");
}

/// Writes a file in one step.
fn replace(path: &std::path::Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}
