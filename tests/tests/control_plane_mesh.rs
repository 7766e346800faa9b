//! Two linked istiods say what the mesh is and sign its certificates; connections run while everything changes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use testkit::certificates::issue;
use testkit::fixture::TwoClusters;
use testkit::istiod::ControlPlane;
use testkit::{Pod, Proc, apps, envoy, process};

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
        // The second entry point of the second network, for the day the first one moves.
        clusters.topology.gateway(clusters.server_node);
        clusters.peer_service("default/echo", "echo", 2600).unwrap();
        // istiod takes every pod of the account for an endpoint, so the other one listens too.
        let echo = clusters.web[0].spawn(&["testkit-peer", "serve", "echo", "--port", "2600"]).unwrap();
        let echo = apps::wait_for_port(&clusters.web[0], 2600, echo).unwrap();
        // Programs of others, for the test that wants a waypoint.
        for waypoint in ["wp-1", "wp-2"] {
            let pod = clusters.topology.pod_as(clusters.server_node, &format!("default/{waypoint}"), waypoint).unwrap();
            clusters.topology.foreign(&pod);
        }
        let planes = clusters.clusters.map(|cluster| ControlPlane::start(&clusters.topology, cluster).unwrap());
        for (plane, cluster) in planes.iter().zip(clusters.clusters) {
            for node in clusters.topology.nodes_of(cluster) {
                let mut section = plane.mesh_section(&clusters.topology, node, "1h").unwrap();
                // What istiod calls global is exported; the file need not repeat it.
                section["exports"] = json!(["*"]);
                clusters.topology.set_section(node, section);
            }
        }
        for (name, node) in [("eastwest-1", clusters.gateway_node), ("eastwest-2", clusters.server_node)] {
            let (address, node) = (clusters.topology.node_ip(node).to_string(), clusters.topology.node_name(node));
            planes[1].run_pod(&format!("istio-eastwest/{name}"), "eastwest", node, &address).unwrap();
        }
        let gateway = clusters.topology.node_ip(clusters.gateway_node).to_string();
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

/// A waypoint that is not ours: it ends the tunnel and sends what is in it to one pod.
fn waypoint(stage: &Stage, name: &str, service: Ipv4Addr, backend: &Pod) -> Proc {
    let pods = &stage.clusters.topology;
    let pod = pods.pods().iter().find(|pod| pod.data().name == format!("default/{name}")).unwrap().clone();
    let authority = pods.authority(stage.clusters.clusters[1]);
    let leaf = issue(&authority, &pod.identity("cluster.local"), &pods.scratch().join("leaves")).unwrap();
    let (web, echo) = (format!("{service}:80"), format!("{service}:2600"));
    let listener = envoy::terminate("0.0.0.0", 15008, &leaf, &[(&web, "web"), (&echo, "echo")]);
    let backend = backend.data().ip4.to_string();
    let clusters = [("web", 8080), ("echo", 2600)].map(|(name, port)| envoy::plain_cluster(name, &[(&backend, port)]));
    envoy::start(&pod, name, 15008, &[listener], &clusters).unwrap()
}

#[test]
fn a_waypoint_that_moves_is_followed_and_no_connection_fails() {
    testkit::needs_control_plane!();
    if envoy::program().is_none() {
        testkit::skip!("Envoy is not installed (cargo xtask setup)");
    }
    let stage = Stage::start("waypoint");
    let plane = &stage.planes[1];
    let address = vip(2, 7);
    let _proxies = [("wp-1", &stage.clusters.web[0]), ("wp-2", &stage.clusters.web[1])].map(|(name, backend)| {
        // A service for each, by whose name istiod tells where the waypoint is.
        plane
            .api()
            .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
                "spec": {"selector": {"app": name}, "ports": [{"name": "hbone", "port": 15008}]}}))
            .unwrap();
        waypoint(&stage, name, address, backend)
    });
    let point = |service: &str| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "wp", "namespace": "default", "labels": {"istio.io/waypoint-for": "service"}},
            "spec": {"gatewayClassName": "istio-waypoint",
                "addresses": [{"type": "Hostname", "value": format!("{service}.default.svc.cluster.local")}],
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE",
                    "allowedRoutes": {"namespaces": {"from": "Same"}}}]}})
    };
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "shaped", "namespace": "default", "labels": {"istio.io/use-waypoint": "wp"}},
        "spec": {"clusterIP": address.to_string(), "selector": {"app": "web"},
            "ports": [{"name": "tcp-web", "port": 80, "targetPort": 8080},
                {"name": "tcp-echo", "port": 2600, "targetPort": 2600}]}});
    let url = format!("http://{address}/");
    let ask = || {
        let line = ["curl", "--silent", "--show-error", "--max-time", "2", &url];
        stage.clusters.neighbour.run(&line).map(|done| done.stdout.trim().to_owned()).unwrap_or_default()
    };
    plane.api().apply(&point("wp-1")).unwrap();
    stage.change(
        "waypoint",
        || plane.api().apply(&service).unwrap(),
        || (0..6).all(|_| ask().contains("pod=default/web-a")),
    );
    let to = format!("{address}:2600");
    let load = ["testkit-peer", "connections", &to, "10", "10", "--rate", "100"];
    let load = stage.clusters.neighbour.spawn(&load).unwrap();
    stage.change(
        "waypoint address",
        || plane.api().apply(&point("wp-2")).unwrap(),
        || (0..6).all(|_| ask().contains("pod=default/web-b")),
    );
    let done = load.wait(Duration::from_secs(60)).unwrap();
    let counted: Value = serde_json::from_str(done.stdout.trim()).unwrap_or_else(|_| panic!("{done:?}"));
    println!("connections meanwhile: {counted}");
    assert_eq!(counted["failed"].as_u64(), Some(0), "{}", done.stderr);
    assert!(counted["completed"].as_u64().unwrap() > 500, "{counted}");
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

    let server_node = stage.clusters.server_node;
    let moved = stage.clusters.topology.node_ip(server_node).to_string();
    let through = format!("src.addr={}", stage.clusters.client.data().egress4);
    let passed =
        || {
            stage.answer(1).contains("pod=")
                && stage.clusters.topology.daemon(server_node).log_tail(5_000).lines().any(|line| {
                    line.contains("direction=gateway") && line.contains(&through) && !line.contains("error=")
                })
        };
    stage.change("gateway address", || stage.planes[0].gateway_at("network2", &moved).unwrap(), passed);

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
