//! A node that is told nothing unasked: its first connection to anything asks the control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::path::Path;
use std::time::Duration;

use causeway::state::file;
use serde_json::{Value, json};
use testkit::control_plane::{Fault, Scripted, resources};
use testkit::fixture::TwoClusters;
use testkit::{Proc, apps, process, resolver};

const NAME_SERVER: &str = "172.30.1.1";

struct Stage {
    // Before the plane: the daemon ends first.
    two: TwoClusters,
    plane: Scripted,
    _servers: Vec<Proc>,
}

impl Stage {
    /// Two clusters of which the client's node knows its mesh on demand, and echo servers outside the mesh on ports 7001
    /// and 7002 of the other cluster's gateway node.
    fn start(name: &str) -> Self {
        let mut two = TwoClusters::build(name).unwrap();
        two.topology.service("default/other", &[(80, 8080)], &[&two.web[1]]);
        two.topology.service("default/third", &[(80, 8080)], &[&two.web[0]]);
        let mut servers: Vec<Proc> = two.web.iter().map(|pod| apps::nginx(pod, 8080).unwrap()).collect();
        for port in ["7001", "7002"] {
            let outside = two.topology.node_place(two.gateway_node);
            servers.push(outside.spawn(&["testkit-peer", "serve", "echo", "--port", port]).unwrap());
        }
        two.topology.prepare().unwrap();
        let mut full = two.topology.model(two.client_node).unwrap();
        let model = file::parse(&full.to_string(), Path::new("model.yaml")).unwrap();
        let folder = two.topology.scratch().join("plane");
        let plane = Scripted::start(&folder, Some(&two.topology.node_place(two.client_node).netns)).unwrap();
        plane.set(resources(&model));
        full["causeway"]["controlPlane"] = json!({
            "address": plane.url(), "rootCert": plane.root_cert(), "token": plane.token(), "onDemand": true
        });
        two.topology.write_model(two.client_node, &json!({"causeway": full["causeway"]})).unwrap();
        for node in two.topology.nodes() {
            two.topology.launch(node).unwrap();
        }
        for node in two.topology.nodes() {
            two.topology.wait_ready(node).unwrap();
        }
        Self { two, plane, _servers: servers }
    }

    fn known(&self, what: &str) -> u64 {
        let status = self.two.topology.daemon(self.two.client_node).status().unwrap();
        status.pointer(&format!("/model/{what}")).and_then(Value::as_u64).unwrap()
    }

    fn passthrough(&self) -> u64 {
        self.two.topology.daemon(self.two.client_node).counter("passthrough").unwrap()
    }

    /// Whether an echo server outside the mesh answers.
    fn outside(&self, port: u16) -> bool {
        apps::echoes(&self.two.client, &self.two.topology.node_ip(self.two.gateway_node).to_string(), port)
    }

    fn by_name(&self, name: &str) -> process::Finished {
        let url = format!("http://{name}/");
        let line = ["curl", "--silent", "--show-error", "--max-time", "10", &url];
        resolver::run(&self.two.client, &[NAME_SERVER], &line).unwrap()
    }

    fn asked(&self, name: &str) -> usize {
        let seen = self.plane.seen();
        seen.iter().filter(|seen| seen.request.resource_names_subscribe.iter().any(|known| known == name)).count()
    }
}

#[test]
fn what_was_not_told_is_asked_for_at_the_first_connection_and_nothing_leaks_meanwhile() {
    testkit::needs_root!();
    let stage = Stage::start("on-demand");
    assert_eq!(stage.known("services"), 0, "nothing was told unasked but what runs on the node");
    let before = stage.known("workloads");

    // A service by its address: the service, its endpoint behind a gateway, and that gateway are found on the first connect.
    let answer = stage.two.curl(&stage.two.client, stage.two.vip("default/web")).unwrap();
    assert!(answer.contains("pod=default/web-"), "{answer}");
    assert!(stage.known("services") == 1 && stage.known("workloads") > before);
    // And one by its name.
    let done = stage.by_name("other.default.svc.cluster.local");
    assert!(done.stdout.contains("pod=default/web-b"), "{}{}", done.stdout, done.stderr);
    assert_eq!(stage.asked("default/other.default.svc.cluster.local"), 1);
    assert_eq!(stage.passthrough(), 0, "nothing of this went past the mesh");

    // What nobody knows is answered at once, and remembered for a moment.
    process::until(Duration::from_secs(5), || stage.outside(7001)).expect("a destination outside the mesh is reached");
    assert!(stage.passthrough() >= 1);
    let outside = format!("network1/{}", stage.two.topology.node_ip(stage.two.gateway_node));
    assert!(stage.asked(&outside) >= 1);

    // A control plane that does not answer: what is known works, what is not is refused rather than guessed.
    stage.plane.misbehave(Fault::Silent);
    std::thread::sleep(Duration::from_millis(1_500));
    let passed = stage.passthrough();
    assert!(!stage.outside(7002), "nobody knows whether that is outside the mesh");
    let daemon = stage.two.topology.daemon(stage.two.client_node);
    let line = daemon.wait_for_line(&["7002", "error="]).unwrap();
    assert!(line.contains("leg=resolve") && line.contains("has not said within 1000 ms"), "{line}");
    let url = format!("http://{}/", stage.two.vip("default/third"));
    let done = stage.two.client.run(&["curl", "--silent", "--max-time", "5", &url]).unwrap();
    assert!(apps::was_reset(&done), "a reset: {}{}", done.stdout, done.stderr);
    assert_eq!(stage.passthrough(), passed, "nothing went past the mesh");
    stage.two.curl(&stage.two.client, stage.two.vip("default/web")).unwrap();
    stage.plane.misbehave(Fault::None);
    stage.plane.reset_streams();
    process::until(Duration::from_secs(10), || {
        stage.two.curl(&stage.two.client, stage.two.vip("default/third")).is_ok()
    })
    .expect("asked again once it answers");
}
