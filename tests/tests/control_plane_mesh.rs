//! Two linked istiods say what the mesh is and sign its certificates; connections run while everything changes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use testkit::fixture::TwoClusters;
use testkit::istiod::ControlPlane;
use testkit::{Proc, apps, process};

struct Stage {
    // Ended before the topology's namespaces go.
    planes: [ControlPlane; 2],
    clusters: TwoClusters,
    _echo: Proc,
}

/// The address of service number `n` in cluster `c`, outside the range the kit uses itself.
fn vip(c: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 100 + c, n)
}

impl Stage {
    fn start(name: &str) -> Self {
        let mut clusters = TwoClusters::build(name).unwrap();
        clusters.peer_service("default/echo", "echo", 2600).unwrap();
        // istiod takes every pod of the account for an endpoint, so the other one listens too.
        let echo = clusters.web[0].spawn(&["testkit-peer", "serve", "echo", "--port", "2600"]).unwrap();
        let echo = apps::wait_for_port(&clusters.web[0], 2600, echo).unwrap();
        let planes = clusters.clusters.map(|cluster| ControlPlane::start(&clusters.topology, cluster).unwrap());
        for (plane, cluster) in planes.iter().zip(clusters.clusters) {
            for node in clusters.topology.nodes_of(cluster) {
                let mut section = plane.mesh_section(&clusters.topology, node, "1h").unwrap();
                // What istiod calls global is exported; the file need not repeat it.
                section["exports"] = json!(["*"]);
                clusters.topology.set_section(node, section);
            }
        }
        let gateway = clusters.topology.node_ip(clusters.gateway_node).to_string();
        let node = clusters.topology.node_name(clusters.gateway_node).to_owned();
        planes[1].run_pod("istio-eastwest/eastwest-1", "eastwest", &node, &gateway).unwrap();
        planes[0].link(&planes[1], "network2", &gateway).unwrap();
        let stage = Self { planes, clusters, _echo: echo };
        stage.service("web", 1, &[(80, 8080)]);
        stage.service("echo", 2, &[(2600, 2600)]);
        Self { clusters: stage.clusters.started().unwrap(), ..stage }
    }

    fn service(&self, name: &str, number: u8, ports: &[(u16, u16)]) {
        for (plane, c) in self.planes.iter().zip([1, 2]) {
            plane.global_service(&format!("default/{name}"), &vip(c, number).to_string(), ports, "web").unwrap();
        }
    }

    fn answer(&self, number: u8) -> String {
        let url = format!("http://{}/", vip(1, number));
        let line = ["curl", "--silent", "--show-error", "--max-time", "2", &url];
        self.clusters.client.run(&line).map(|done| done.stdout.trim().to_owned()).unwrap_or_default()
    }

    /// Does something to the control plane and waits for its effect; says how long that took.
    fn change(&self, what: &str, act: impl FnOnce(), effect: impl FnMut() -> bool) {
        let begin = Instant::now();
        act();
        let acted = begin.elapsed();
        let done = process::until(Duration::from_secs(30), effect);
        let logs = || {
            self.clusters
                .topology
                .nodes()
                .map(|node| self.clusters.topology.daemon(node).log_tail(3))
                .collect::<Vec<_>>()
        };
        assert!(done.is_ok(), "{what}: no effect: {:#?}", logs());
        println!("{what}: in effect {} ms after the API server had it", (begin.elapsed() - acted).as_millis());
    }
}

#[test]
fn everything_changes_under_load_and_no_connection_fails() {
    testkit::needs_control_plane!();
    let mut stage = Stage::start("mesh");
    stage.change("first answer", || {}, || stage.answer(1).contains("pod=default/web"));
    let to = format!("{}:2600", vip(1, 2));
    let load = ["testkit-peer", "connections", &to, "20", "60", "--rate", "200"];
    let load = stage.clusters.client.spawn(&load).unwrap();
    let began = Instant::now();

    let node = stage.clusters.topology.node_name(stage.clusters.gateway_node).to_owned();
    let web_a = stage.clusters.web[0].clone();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-a", "namespace": "default"}});
    let only_b = || (0..12).all(|_| stage.answer(1).contains("pod=default/web-b"));
    let removed = began.elapsed();
    stage.change("scale down", || stage.planes[1].api().delete(&pod).unwrap(), only_b);
    let again = || (0..6).any(|_| stage.answer(1).contains("pod=default/web-a"));
    stage.change("scale up", || stage.planes[1].publish_pod(&web_a, &node).unwrap(), again);
    stage.change("new service", || stage.service("fresh", 3, &[(80, 8080)]), || stage.answer(3).contains("pod="));

    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
    "metadata": {"name": "no-client", "namespace": "default"},
    "spec": {"action": "DENY", "selector": {"matchLabels": {"app": "web"}}, "rules": [{
        "from": [{"source": {"principals": ["cluster.local/ns/default/sa/client"]}}],
        "to": [{"operation": {"ports": ["8080"]}}],
    }]}});
    let denied = || (0..4).all(|_| stage.answer(1).is_empty());
    stage.change("policy denies", || stage.planes[1].api().apply(&policy).unwrap(), denied);
    let allowed = || (0..4).all(|_| stage.answer(1).contains("pod="));
    stage.change("policy removed", || stage.planes[1].api().delete(&policy).unwrap(), allowed);

    for plane in &mut stage.planes {
        plane.stop_istiod();
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(stage.answer(1).contains("pod="), "the mesh goes on without istiod");
    for plane in &mut stage.planes {
        plane.start_istiod().unwrap();
    }
    stage.change(
        "new service after istiod's restart",
        || stage.service("later", 4, &[(80, 8080)]),
        || stage.answer(4).contains("pod="),
    );
    for plane in &mut stage.planes {
        plane.stop_api();
    }
    std::thread::sleep(Duration::from_secs(3));
    assert!(stage.answer(1).contains("pod="), "the mesh goes on without API servers");
    for plane in &mut stage.planes {
        plane.start_api().unwrap();
    }
    stage.change(
        "new service after the outage of the API servers",
        || stage.service("last", 5, &[(80, 8080)]),
        || stage.answer(5).contains("pod="),
    );

    println!("all changes took {} s", began.elapsed().as_secs());
    let done = load.wait(Duration::from_secs(120)).unwrap();
    let counted: Value = serde_json::from_str(done.stdout.trim()).unwrap_or_else(|_| panic!("{done:?}"));
    println!("connections meanwhile: {counted}");
    // Removing an endpoint without notice is a cause for what it was serving at that moment, and for nothing else.
    let with_cause = done.stderr.lines().filter_map(|line| {
        let after = line.strip_prefix("after ")?.split(' ').next()?.parse::<f64>().ok()?;
        (removed.as_secs_f64() - 0.5..removed.as_secs_f64() + 1.5).contains(&after).then_some(())
    });
    let with_cause = with_cause.count() as u64;
    println!("failed because their endpoint was removed under them: {with_cause}");
    assert_eq!(counted["failed"].as_u64().unwrap(), with_cause, "{}", done.stderr);
    assert!(with_cause <= 5, "{}", done.stderr);
    assert!(counted["completed"].as_u64().unwrap() > 5_000, "{counted}");
}
