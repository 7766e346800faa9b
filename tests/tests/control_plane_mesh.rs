//! Two linked istiods say what the mesh is and sign its certificates; connections run while everything changes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use testkit::certificates::issue;
use testkit::fixture::TwoClusters;
use testkit::istiod::ControlPlane;
use testkit::{Pod, Proc, apps, envoy, process, resolver};

struct Stage {
    // Ended before the topology's namespaces go.
    planes: [ControlPlane; 2],
    clusters: TwoClusters,
    _echo: Proc,
}

const DAY: u64 = 86_400_000_000;

/// Microseconds since midnight, as the daemons' logs have them.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap() % DAY
}

/// From one such moment to another.
fn between(from: u64, to: u64) -> u64 {
    (to + DAY - from) % DAY
}

/// When a push that changed something reached a node, if this line of its log tells of one.
fn push(line: &str) -> Option<u64> {
    let (stamp, rest) = line.split_once('Z')?;
    if !rest.contains("xds_client") || !rest.ends_with(" changed") || rest.ends_with(" 0 changed") {
        return None;
    }
    let mut parts = stamp.split_once('T')?.1.split(':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    let seconds = part()? * 3600.0 + part()? * 60.0 + part()?;
    Some((seconds * 1e6).round() as u64)
}

/// The address of service number `n` in cluster `c`, outside the range the kit uses itself.
fn vip(c: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 100 + c, n)
}

impl Stage {
    fn start(name: &str) -> Self {
        Self::with(name, &json!({}))
    }

    /// A stage on whose client's node these keys of `causeway` and of its `controlPlane` are set.
    fn with(name: &str, client: &Value) -> Self {
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
        // So that the moment of each push is told.
        clusters.topology.set_environment(&[("RUST_LOG", "info,causeway::istio::xds_client=debug")]);
        let planes = clusters.clusters.map(|cluster| ControlPlane::start(&clusters.topology, cluster).unwrap());
        for (plane, cluster) in planes.iter().zip(clusters.clusters) {
            for node in clusters.topology.nodes_of(cluster) {
                let mut section = plane.mesh_section(&clusters.topology, node, "1h").unwrap();
                // What istiod calls global is exported; the file need not repeat it.
                section["exports"] = json!(["*"]);
                if node == clusters.client_node {
                    merge(&mut section, client);
                }
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
        self.answer_within("2", number)
    }

    /// For a service that may not be known yet: what leads nowhere must not be waited for.
    fn answer_soon(&self, number: u8) -> String {
        self.answer_within("0.25", number)
    }

    fn answer_within(&self, seconds: &str, number: u8) -> String {
        let url = format!("http://{}/", vip(1, number));
        let line = ["curl", "--silent", "--show-error", "--max-time", seconds, &url];
        self.clusters.client.run(&line).map(|done| done.stdout.trim().to_owned()).unwrap_or_default()
    }

    /// When pushes that changed something reached the nodes, since a moment.
    fn pushes(&self, since: u64) -> Vec<u64> {
        let topology = &self.clusters.topology;
        let logs: Vec<String> = topology.nodes().map(|node| topology.daemon(node).log()).collect();
        let pushes = logs.iter().flat_map(|log| log.lines()).filter_map(push);
        let mut pushes: Vec<u64> = pushes.map(|at| between(since, at)).filter(|after| *after < DAY / 2).collect();
        pushes.sort_unstable();
        pushes
    }

    /// Does something to the control plane and waits for its effect; says how long that took, from the API server's and from
    /// istiod's word.
    fn change(&self, what: &str, act: impl FnOnce(), effect: impl FnMut() -> bool) {
        let begin = now();
        act();
        let acted = now();
        let done = process::until(Duration::from_secs(30), effect);
        let logs = || {
            self.clusters
                .topology
                .nodes()
                .map(|node| self.clusters.topology.daemon(node).log_tail(3))
                .collect::<Vec<_>>()
        };
        assert!(done.is_ok(), "{what}: no effect: {:#?}", logs());
        let effect = between(begin, now());
        // The writer of a log flushes after a pause.
        std::thread::sleep(Duration::from_millis(300));
        let before: Vec<u64> = self.pushes(begin).into_iter().filter(|push| *push < effect).collect();
        let ms = |from: u64| effect.saturating_sub(from) / 1000;
        // A change of both clusters is complete with the last of several.
        let pushed = match before.as_slice() {
            [] => "without a push".to_owned(),
            [first, .., last] => format!(
                "{} ms after istiod's first push of {} reached a node, {} ms after its last",
                ms(*first),
                before.len(),
                ms(*last)
            ),
            [only] => format!("{} ms after istiod's push reached a node", ms(*only)),
        };
        println!("{what}: in effect {pushed}, {} ms after the API server had it", ms(between(begin, acted)));
    }
}

/// Sets the keys of one object in another, objects within it likewise.
fn merge(into: &mut Value, keys: &Value) {
    for (key, value) in keys.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => merge(&mut into[key], value),
            value => into[key] = value.clone(),
        }
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
    let mut stage = Stage::start("waypoint");
    // istiod gives a waypoint its address once ready endpoints are behind it.
    stage.planes[1].start_controllers().unwrap();
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
        // Short, as before the waypoint is known there is nobody at the address, and waiting for that is no delay of ours.
        let line = ["curl", "--silent", "--show-error", "--max-time", "0.25", &url];
        stage.clusters.neighbour.run(&line).map(|done| done.stdout.trim().to_owned()).unwrap_or_default()
    };
    // Pods of both names are behind the service: only through a waypoint do all calls go to one of them.
    let node = stage.clusters.topology.daemon(stage.clusters.gateway_node);
    let through = |waypoint: &str, pod: &str| {
        let dump = node.get("config-dump").unwrap();
        let mut services = dump["services"].as_array().unwrap().iter();
        let shaped = services.find(|one| one["name"] == "shaped").map(|one| one["waypoint"].to_string());
        shaped.is_some_and(|shown| shown.contains(waypoint)) && (0..6).all(|_| ask().contains(pod))
    };
    plane.api().apply(&point("wp-1")).unwrap();
    stage.change("waypoint", || plane.api().apply(&service).unwrap(), || through("wp-1", "pod=default/web-a"));
    let to = format!("{address}:2600");
    let load = ["testkit-peer", "connections", &to, "10", "10", "--rate", "100"];
    let load = stage.clusters.neighbour.spawn(&load).unwrap();
    stage.change(
        "waypoint address",
        || plane.api().apply(&point("wp-2")).unwrap(),
        || through("wp-2", "pod=default/web-b"),
    );
    let done = load.wait(Duration::from_secs(60)).unwrap();
    let counted: Value = serde_json::from_str(done.stdout.trim()).unwrap_or_else(|_| panic!("{done:?}"));
    println!("connections meanwhile: {counted}");
    assert_eq!(counted["failed"].as_u64(), Some(0), "{}", done.stderr);
    assert!(counted["completed"].as_u64().unwrap() > 500, "{counted}");
}

#[test]
fn on_demand_a_service_is_found_at_its_first_connection_and_what_istiod_does_not_know_is_refused() {
    testkit::needs_control_plane!();
    let client = json!({"outbound": "registry-only", "exports": [], "controlPlane": {"onDemand": true}});
    let stage = Stage::with("demand", &client);
    stage.service("named", 3, &[(80, 8080)]);
    let daemon = stage.clusters.topology.daemon(stage.clusters.client_node);
    let known = || {
        let status = daemon.status().unwrap();
        status.pointer("/model/services").and_then(Value::as_u64).unwrap()
    };
    assert_eq!(known(), 0, "istiod tells such a node of no service unasked");

    // By its address: the service, the record of its pods behind the gateway, and the gateway.
    stage.change("first connection on demand", || {}, || stage.answer(1).contains("pod=default/web"));
    assert_eq!(known(), 1, "and no other came with it");
    // By its name.
    let line = ["curl", "--silent", "--show-error", "--max-time", "5", "http://named.default.svc.cluster.local/"];
    // Where this asks before istiod has seen the service, that it is unknown counts for ten seconds.
    let mut done = None;
    let found = process::until(Duration::from_secs(30), || {
        let asked = done.insert(resolver::run(&stage.clusters.client, &["172.30.1.1"], &line).unwrap());
        asked.stdout.contains("pod=default/web")
    });
    assert!(found.is_ok(), "{done:?}");
    assert_eq!(known(), 2);

    // istiod says of these that it knows none, and nothing of them may leave.
    let outside = stage.clusters.topology.node_ip(stage.clusters.gateway_node);
    for (address, what) in [(vip(1, 99), "an address of a service that is none"), (outside, "a node")] {
        let url = format!("http://{address}:2600/");
        let done = stage.clusters.client.run(&["curl", "--silent", "--show-error", "--max-time", "5", &url]).unwrap();
        assert!(apps::was_reset(&done), "{what}: {}{}", done.stdout, done.stderr);
        let line = daemon.wait_for_line(&[&format!("{address}:2600"), "error="]).unwrap();
        assert!(line.contains("outside the mesh") && line.contains("leg=accept/policy"), "{what}: {line}");
    }
    assert_eq!(daemon.counter("passthrough").unwrap(), 0, "nothing went past the mesh");
    // What was asked for is followed: a pod that goes is no longer an endpoint here.
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-a", "namespace": "default"}});
    stage.change(
        "scale down on demand",
        || stage.planes[1].api().delete(&pod).unwrap(),
        || (0..12).all(|_| stage.answer(1).contains("pod=default/web-b")),
    );
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
    stage.change("new service", || stage.service("fresh", 3, &[(80, 8080)]), || stage.answer_soon(3).contains("pod="));

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
        || stage.answer_soon(4).contains("pod="),
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
        || stage.answer_soon(5).contains("pod="),
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
