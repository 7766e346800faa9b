//! What redirection stands on is taken away under a running daemon: namespaces, cgroups, its helper.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use testkit::fixture::TwoClusters;
use testkit::{Daemon, Pod, apps, cgroup, process};

const PATIENCE: Duration = Duration::from_secs(20);

/// The cookie of the namespace a pod is enrolled with.
fn cookie(stage: &TwoClusters, pod: &Pod) -> Option<u64> {
    let node =
        stage.topology.nodes().find(|node| stage.topology.pods_on(*node).iter().any(|one| one.netns == pod.netns));
    let status = stage.topology.daemon(node?).status().ok()?;
    let pods = status.get("pods").and_then(Value::as_array)?;
    let entry = pods.iter().find(|entry| entry["uid"] == pod.data().uid && entry["state"] == "Enrolled")?;
    entry["netns_cookie"].as_u64()
}

#[test]
fn a_pod_made_anew_under_its_name_is_enrolled_again() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("remade").unwrap();
    stage.peer_service("default/echo", "echo", 2510).unwrap();
    let stage = stage.started().unwrap();
    let (client, server) = (stage.client.clone(), stage.web[0].clone());
    let vip = format!("{}:2510", stage.vip("default/echo"));
    let call = || {
        client
            .run(&["testkit-peer", "connections", &vip, "1", "10", "--count", "4"])
            .is_ok_and(|done| done.status.success())
    };
    assert!(call());
    // A connection that runs does not keep the new pod out of the mesh.
    let mut idle = client.spawn_with_input(&["testkit-peer", "idle", &vip, "5"]).unwrap();
    idle.wait_for("open 5", PATIENCE).unwrap();
    for pod in [&client, &server] {
        let before = cookie(&stage, pod).unwrap();
        stage.topology.remake(pod).unwrap();
        process::until(PATIENCE, || cookie(&stage, pod).is_some_and(|now| now != before))
            .expect("the new namespace must be enrolled");
    }
    let echo = server.spawn(&["testkit-peer", "serve", "echo", "--port", "2510"]).unwrap();
    let _echo = apps::wait_for_port(&server, 2510, echo).unwrap();
    process::until(PATIENCE, call).expect("both are in the mesh again");
    let inbound = stage.topology.daemon(stage.client_node).counter("outbound").unwrap();
    assert!(call());
    assert!(stage.topology.daemon(stage.client_node).counter("outbound").unwrap() >= inbound + 4);
    assert!(!stage.topology.daemon(stage.client_node).log().contains("left something behind"));
    idle.close_input();
}

#[test]
fn a_pods_cgroup_made_anew_is_attached_again() {
    testkit::needs_root!();
    let stage = TwoClusters::start("recgroup").unwrap();
    let vip = stage.vip("default/web");
    stage.curl(&stage.client, vip).unwrap();
    let pods = stage.topology.pods_on(stage.client_node);
    let kubepods = stage.client.cgroup.parent().unwrap().to_owned();
    cgroup::destroy(&kubepods).unwrap();
    let daemon = stage.topology.daemon(stage.client_node);
    daemon.wait_for_log("no pod can be redirected").unwrap();
    assert_eq!(daemon.status().unwrap()["ready"], false);
    for pod in &pods {
        cgroup::create(&pod.cgroup).unwrap();
    }
    daemon.wait_for_log("pods are redirected again").unwrap();
    assert_eq!(daemon.status().unwrap()["ready"], true);
    let before = daemon.counter("outbound").unwrap();
    stage.curl(&stage.client, vip).expect("an address that only the mesh knows");
    assert!(daemon.counter("outbound").unwrap() > before);
}

/// The folder of what a daemon has pinned.
fn pins(daemon: &Daemon) -> PathBuf {
    let folder = Path::new("/sys/fs/bpf/causeway").join(daemon.instance());
    let mut layouts = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    layouts.find(|path| path.is_dir()).unwrap_or_else(|| panic!("nothing in {}", folder.display()))
}

#[test]
fn programs_that_somebody_detached_are_attached_again_and_the_daemon_tells_of_it() {
    testkit::needs_root!();
    let stage = TwoClusters::start("detached").unwrap();
    let vip = stage.vip("default/web");
    stage.curl(&stage.client, vip).unwrap();
    let daemon = stage.topology.daemon(stage.client_node);
    let look = || daemon.status().unwrap()["look"].clone();
    process::until(PATIENCE, || look()["dns"]["ms"].is_number()).unwrap_or_else(|_| panic!("{}", look()));
    process::until(PATIENCE, || look()["programs"]["outbound4"] == true).unwrap_or_else(|_| panic!("{}", look()));
    assert_eq!(look()["detached"], serde_json::json!({}));

    // A link lives by its pin alone.
    let cookie = cookie(&stage, &stage.client).unwrap().to_string();
    for pin in [Path::new("links").join("outbound4"), Path::new("pods").join(cookie)] {
        std::fs::remove_file(pins(daemon).join(pin)).unwrap();
    }
    let uid = &stage.client.data().uid;
    let told = || look()["detached"]["outbound4"] == 1 && look()["detached"][uid] == 1;
    process::until(PATIENCE, told).unwrap_or_else(|_| panic!("{}", look()));
    process::until(PATIENCE, || look()["programs"]["outbound4"] == true).unwrap();
    daemon.wait_for_log("programs were detached by somebody else: outbound4").unwrap();
    let before = daemon.counter("outbound").unwrap();
    stage.curl(&stage.client, vip).expect("an address that only the mesh knows");
    assert!(daemon.counter("outbound").unwrap() > before);
    std::thread::sleep(Duration::from_secs(5));
    assert!(told(), "and not again: {}", look());
}

#[test]
fn a_daemon_whose_helper_dies_ends_and_says_so() {
    testkit::needs_root!();
    let mut stage = TwoClusters::start("no-helper").unwrap();
    let (node, vip) = (stage.client_node, stage.vip("default/web"));
    let pid = stage.topology.daemon(node).pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let helper = children.split_whitespace().next().expect("the helper is the daemon's child").to_owned();
    assert!(std::process::Command::new("kill").args(["-9", &helper]).status().unwrap().success());
    stage.topology.daemon(node).wait_for_log("the helper process has ended").unwrap();
    process::until(PATIENCE, || stage.topology.daemon(node).status().is_err()).expect("the daemon must end");
    assert!(stage.curl(&stage.client, vip).is_err(), "without a daemon its pods are refused");
    stage.topology.kill_daemon(node).unwrap();
    stage.topology.launch(node).unwrap();
    stage.topology.wait_ready(node).unwrap();
    stage.curl(&stage.client, vip).unwrap();
}
