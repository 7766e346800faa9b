//! Daemons whose mesh comes from control planes, while that mesh changes without pause.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway::istio::xds_proto::Resource;
use causeway::state::{Action, Model, Policy, PolicyScope, Workload, file};
use serde_json::json;
use testkit::control_plane::{Fault, Scripted, policy_resource, resources, service_resource, workload_resource};
use testkit::fixture::TwoClusters;
use testkit::topology::NodeId;
use testkit::{Proc, apps};

const UPDATES: u32 = 10_000;
const PER_PUSH: u32 = 10;

/// Two clusters whose nodes know their mesh from a control plane of their own each; only what a node does stands in a file.
struct Stage {
    // Before the planes: daemons end first.
    two: TwoClusters,
    planes: Vec<(NodeId, Scripted, Model)>,
    _servers: Vec<Proc>,
}

impl Stage {
    fn start(name: &str, fault: Fault) -> Self {
        let mut two = TwoClusters::build(name).unwrap();
        let mut servers: Vec<Proc> = two.web.iter().map(|pod| apps::nginx(pod, 8080).unwrap()).collect();
        two.topology.service("default/echo", &[(9000, 9000)], &[&two.web[1]]);
        let echo = two.web[1].spawn(&["testkit-peer", "serve", "echo", "--port", "9000"]).unwrap();
        servers.push(apps::wait_for_port(&two.web[1], 9000, echo).unwrap());
        two.topology.prepare().unwrap();
        let mut planes = Vec::new();
        for node in two.topology.nodes() {
            let mut full = two.topology.model(node).unwrap();
            let model = file::parse(&full.to_string(), Path::new("model.yaml")).unwrap();
            let folder = two.topology.scratch().join(format!("plane-{}", planes.len()));
            let plane = Scripted::start(&folder, Some(&two.topology.node_place(node).netns)).unwrap();
            plane.misbehave(fault);
            plane.set(resources(&model));
            full["causeway"]["controlPlane"] =
                json!({"address": plane.url(), "rootCert": plane.root_cert(), "token": plane.token()});
            two.topology.write_model(node, &json!({"causeway": full["causeway"]})).unwrap();
            planes.push((node, plane, model));
        }
        for node in two.topology.nodes() {
            two.topology.launch(node).unwrap();
        }
        Self { two, planes, _servers: servers }
    }

    fn ready(&mut self) {
        for node in self.two.topology.nodes() {
            self.two.topology.wait_ready(node).unwrap();
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % u64::from(limit)).unwrap()
    }
}

/// One change of something that the running connections must not notice.
fn update(
    model: &Model,
    number: u32,
    random: &mut Random,
    present: &mut BTreeSet<String>,
) -> (Option<Resource>, Option<String>) {
    let pick = random.below(300);
    let any: &Arc<Workload> =
        model.workloads().find(|workload| workload.is_split_horizon() || !workload.ips.is_empty()).unwrap();
    let (name, resource) = match random.below(8) {
        0..4 => {
            let mut other = (**any).clone();
            other.uid = format!("{}//Pod/churn/pod-{pick}", other.cluster).into();
            other.name = format!("pod-{pick}").into();
            other.node = "elsewhere".into();
            // Not a member of anything: what runs must have no reason to go there.
            other.services = Default::default();
            other.ips = vec![format!("10.99.{}.{}", number % 200, pick % 250 + 1).parse().unwrap()];
            (other.uid.to_string(), workload_resource(&other))
        }
        4..6 => {
            let service = model.services().next().unwrap();
            let mut other = (**service).clone();
            other.name = format!("service-{pick}").into();
            other.namespace = "churn".into();
            other.hostname = format!("service-{pick}.churn.svc.cluster.local").into();
            other.key = format!("churn/{}", other.hostname).into();
            for vip in &mut other.vips {
                vip.ip = format!("10.98.{}.{}", number % 200, pick % 250 + 1).parse().unwrap();
            }
            (other.key.to_string(), service_resource(&other))
        }
        6 => {
            let name = format!("allow-{}", pick % 20);
            let policy = Policy {
                key: format!("default/{name}").into(),
                name: name.into(),
                namespace: "default".into(),
                scope: PolicyScope::Namespace,
                action: Action::Allow,
                dry_run: false,
                // Matches everything: whoever was allowed still is.
                rules: vec![Vec::new()],
                extensions: Box::default(),
                unreadable: None,
            };
            (policy.key.to_string(), policy_resource(&policy))
        }
        _ => {
            let mut same = (**any).clone();
            same.capacity = 1 + pick % 5;
            return (Some(workload_resource(&same)), None);
        }
    };
    if present.remove(&name) {
        return (None, Some(name));
    }
    present.insert(name);
    (Some(resource), None)
}

#[test]
fn ten_thousand_random_updates_drop_and_misroute_no_connection() {
    testkit::needs_root!();
    let mut stage = Stage::start("churn", Fault::None);
    stage.ready();
    let echo = format!("{}:9000", stage.two.vip("default/echo"));
    let web = stage.two.vip("default/web");
    let memory = |stage: &Stage| -> Vec<u64> {
        stage.two.topology.nodes().map(|node| stage.two.topology.daemon(node).own_rss_kib()).collect()
    };
    let mut idle = stage.two.client.spawn_with_input(&["testkit-peer", "idle", &echo, "50"]).unwrap();
    idle.wait_for("open 50", Duration::from_secs(20)).unwrap();
    stage.two.peer(&["connections", &echo, "4", "2"]).unwrap();
    let before = memory(&stage);
    let begin = Instant::now();
    let planes = &stage.planes;
    let two = &stage.two;
    let (mut asked, mut counts) = (0_u32, String::new());
    std::thread::scope(|scope| {
        let churn: Vec<_> = planes
            .iter()
            .enumerate()
            .map(|(index, (_, plane, model))| {
                scope.spawn(move || {
                    let mut random = Random(u64::from(std::process::id()) << 8 | (index as u64 + 1));
                    let mut present = BTreeSet::new();
                    for push in 0..UPDATES / PER_PUSH {
                        let (mut set, mut remove) = (BTreeMap::new(), BTreeSet::new());
                        for number in 0..PER_PUSH {
                            let (new, gone) = update(model, push * PER_PUSH + number, &mut random, &mut present);
                            // Of two changes of one name in one push the later counts.
                            if let Some(new) = new {
                                remove.remove(&new.name);
                                set.insert(new.name.clone(), new);
                            }
                            if let Some(gone) = gone {
                                set.remove(&gone);
                                remove.insert(gone);
                            }
                        }
                        let remove: Vec<&str> = remove.iter().map(String::as_str).collect();
                        plane.change(set.into_values(), &remove);
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    let remove: Vec<&str> = present.iter().map(String::as_str).collect();
                    plane.change([], &remove);
                })
            })
            .collect();
        while churn.iter().any(|thread| !thread.is_finished()) {
            counts = two.peer(&["connections", &echo, "4", "2"]).unwrap();
            let counted: serde_json::Value = serde_json::from_str(counts.lines().last().unwrap()).unwrap();
            assert_eq!(counted["failed"], json!(0), "{counts}");
            let answer = two.curl(&two.client, web).unwrap();
            assert!(answer.starts_with("pod=default/web-"), "misrouted: {answer}");
            asked += u32::try_from(counted["completed"].as_u64().unwrap()).unwrap();
        }
    });
    assert!(asked > 100, "{counts}");
    idle.close_input();
    idle.wait_for("alive 50", Duration::from_secs(60)).unwrap();
    println!(
        "{UPDATES} updates at each of {} nodes in {:.0?}: {asked} new connections and 50 open ones, none failed",
        stage.planes.len(),
        begin.elapsed()
    );
    for ((node, _, model), before) in stage.planes.iter().zip(before) {
        let daemon = stage.two.topology.daemon(*node);
        let settled = testkit::process::until(Duration::from_secs(20), || {
            let status = daemon.status().unwrap();
            status["model"]["workloads"] == json!(model.workload_count())
                && status["model"]["services"] == json!(model.service_count())
        });
        settled.expect("the model must come back to what it was");
        let after = daemon.own_rss_kib();
        println!("memory of the daemon: {before} KiB before, {after} KiB after");
        assert!(after < before + 16 * 1024, "{before} KiB before, {after} KiB after");
        let status = daemon.status().unwrap();
        assert_eq!(status["control_planes"][0]["refused"], json!({}));
    }
    stage.two.topology.close().unwrap();
}

#[test]
fn before_the_first_sync_nothing_passes_and_a_daemon_is_not_ready() {
    testkit::needs_root!();
    let mut stage = Stage::start("unsynced", Fault::Silent);
    let node = stage.two.client_node;
    let enrolled = testkit::process::until(Duration::from_secs(20), || {
        let status = stage.two.topology.daemon(node).status();
        let uid = &stage.two.client.data().uid;
        status.is_ok_and(|status| testkit::daemon::state_of(&status, uid) == Some("Enrolled"))
    });
    enrolled.expect("pods are enrolled before the mesh is known");
    let status = stage.two.topology.daemon(node).status().unwrap();
    assert_eq!((&status["ready"], &status["synced"]), (&json!(false), &json!(false)), "{status}");
    let url = format!("http://{}/", stage.two.vip("default/web"));
    let done = stage.two.client.run(&["curl", "--silent", "--max-time", "8", &url]).unwrap();
    assert!(!done.status.success(), "{}", done.stdout);
    let router = format!("http://{}:1/", stage.two.topology.node_ip(stage.two.gateway_node));
    let done = stage.two.client.run(&["curl", "--silent", "--max-time", "8", &router]).unwrap();
    assert!(!done.status.success(), "what is outside the mesh is unknown too");
    for (_, plane, _) in &stage.planes {
        plane.misbehave(Fault::None);
        plane.reset_streams();
    }
    stage.ready();
    let answer = stage.two.curl(&stage.two.client, stage.two.vip("default/web")).unwrap();
    assert!(answer.starts_with("pod=default/web-"), "{answer}");
    stage.two.topology.close().unwrap();
}
