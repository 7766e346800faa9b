//! Where connections go, seen from applications.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::json;
use testkit::fixture::TwoClusters;
use testkit::{Pod, Proc, apps, process, resolver};

/// Where the pods of these tests believe their name server to be; what the mesh knows is answered before it is asked.
const NAME_SERVER: &str = "172.30.1.1";

/// Two clusters with the headless services `default/db` and, not exported, `default/inner`: `db-0` is a pod of the first,
/// `db-1` and `db-2` are pods of the second.
struct StatefulSets {
    clusters: TwoClusters,
    client: Pod,
    _servers: Vec<Proc>,
}

impl StatefulSets {
    fn start(name: &str) -> Self {
        let mut clusters = TwoClusters::build(name).unwrap();
        let topology = &mut clusters.topology;
        let local = topology.pod_as(clusters.client_node, "default/db-0", "db").unwrap();
        let near = topology.pod_as(clusters.gateway_node, "default/db-1", "db").unwrap();
        let far = topology.pod_as(clusters.server_node, "default/db-2", "db").unwrap();
        topology.service("default/db", &[(80, 8080)], &[&local, &near, &far]);
        topology.set_headless("default/db");
        topology.service("default/inner", &[(80, 8080)], &[&near, &far]);
        topology.set_headless("default/inner");
        let servers = [&local, &near, &far].map(|pod| apps::nginx(pod, 8080).unwrap()).into();
        let client = clusters.client.clone();
        Self { clusters: clusters.started().unwrap(), client, _servers: servers }
    }

    /// What curl says to a name, at a port.
    fn ask(&self, name: &str, port: u16) -> process::Finished {
        let url = format!("http://{name}:{port}/");
        let line = ["curl", "--silent", "--show-error", "--max-time", "10", &url];
        resolver::run(&self.client, &[NAME_SERVER], &line).unwrap()
    }

    fn answer(&self, name: &str, port: u16) -> String {
        let done = self.ask(name, port);
        assert!(done.status.success(), "{name}:{port}: {}{}", done.stdout, done.stderr);
        done.stdout
    }

    fn refused(&self, name: &str, port: u16) {
        let done = self.ask(name, port);
        assert!(apps::was_reset(&done), "{name}:{port} must be reset: {}{}", done.stdout, done.stderr);
    }
}

#[test]
fn pods_of_a_headless_service_are_reached_by_their_own_names_across_clusters() {
    testkit::needs_root!();
    let mut stage = StatefulSets::start("stateful");
    for _ in 0..6 {
        for (name, port) in [("db-1.db", 8080), ("db-2.db.default.svc.cluster.local", 8080), ("db-2.db", 80)] {
            let pod = name.split('.').next().unwrap();
            assert!(stage.answer(name, port).contains(&format!("pod=default/{pod} ")), "{name}");
        }
        assert!(stage.answer("db-0.db", 8080).contains("pod=default/db-0 "), "a pod of the own cluster as ever");
    }
    let topology = &stage.clusters.topology;
    let (source, gateway) = (topology.daemon(stage.clusters.client_node), topology.daemon(stage.clusters.gateway_node));
    let line = source.wait_for_line(&["hbone_addr=db-2.db.default.svc.cluster.local:8080"]).unwrap();
    assert!(line.contains("dst.identity=spiffe://cluster.local/ns/default/sa/db"), "{line}");
    gateway.wait_for_line(&["direction=gateway", "hbone_addr=db-1.db.default.svc.cluster.local:8080"]).unwrap();

    // A pod that is nowhere; its name still gets an address, because only the other cluster knows.
    stage.refused("db-9.db", 8080);
    let line = source.wait_for_line(&["direction=outbound", "db-9.db", "error="]).unwrap();
    assert!(line.contains("no such pod at network2") && line.contains("leg=connect"), "{line}");
    let line = gateway.wait_for_line(&["direction=gateway", "db-9.db", "error="]).unwrap();
    assert!(line.contains("no such pod at network2") && line.contains("status=404"), "{line}");
    stage.refused("db-1.db", 9999);
    // An address that stands for no name leads nowhere.
    stage.refused("240.254.77.77", 80);
    let line = source.wait_for_line(&["dst.addr=240.254.77.77:80", "error="]).unwrap();
    assert!(line.contains("leg=resolve") && line.contains("stands for none"), "{line}");
    assert_eq!(source.counter("passthrough").unwrap(), 0);

    // The gateway stops exporting one service while the other cluster still believes that it may call.
    assert!(stage.answer("db-1.inner", 8080).contains("pod=default/db-1 "));
    let mut model = topology.model(stage.clusters.gateway_node).unwrap();
    model["causeway"]["exports"] = json!(["default/db.default.svc.cluster.local"]);
    topology.write_model(stage.clusters.gateway_node, &model).unwrap();
    gateway.wait_for_log("model reloaded").unwrap();
    stage.refused("db-2.inner", 8080);
    let line = gateway.wait_for_line(&["direction=gateway", "db-2.inner", "error="]).unwrap();
    assert!(line.contains("no headless service of that name is exported here"), "{line}");

    // A pod of that name comes to the own cluster: it wins, also for who still has the other address.
    let reserved = resolver::run_ok(&stage.client, &[NAME_SERVER], &["getent", "ahostsv4", "db-1.db"]).unwrap();
    let reserved = reserved.split_whitespace().next().unwrap().to_owned();
    assert!(reserved.starts_with("240.254."), "{reserved}");
    let topology = &mut stage.clusters.topology;
    let mut model = topology.model(stage.clusters.client_node).unwrap();
    for workload in model["workloads"].as_array_mut().unwrap() {
        if workload["name"] == "db-0" {
            workload["name"] = json!("db-1");
        }
    }
    topology.write_model(stage.clusters.client_node, &model).unwrap();
    topology.daemon(stage.clusters.client_node).wait_for_log("model reloaded").unwrap();
    assert!(stage.answer("db-1.db", 8080).contains("pod=default/db-0 "), "the local pod has that name now");
    assert!(stage.answer(&reserved, 8080).contains("pod=default/db-0 "), "also behind the address given out before");
}

#[test]
fn destinations_outside_the_mesh_are_refused_unless_they_are_listed() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("egress").unwrap();
    let outside = stage.topology.node_ip(stage.gateway_node).to_string();
    let server = stage.topology.node_place(stage.gateway_node).clone();
    let listen = |port: &str| server.spawn(&["testkit-peer", "serve", "echo", "--port", port]).unwrap();
    let _servers = ["7001", "7002"].map(listen);
    let other = stage.topology.pod(stage.client_node, "default/other").unwrap();
    let enrol = |outbound: &str| {
        [(&stage.client, json!(null)), (&other, json!(outbound))].map(|(pod, outbound)| {
            json!({"workload": pod.data().uid, "netns": pod.netns, "cgroup": pod.cgroup, "outbound": outbound})
        })
    };
    let allowed = json!([{"cidr": outside, "ports": [7001]}]);
    stage.topology.set_section(
        stage.client_node,
        json!({"outbound": "registry-only", "outboundAllowed": allowed, "enrol": enrol("allow-any")}),
    );
    let stage = stage.started().unwrap();
    let reaches = |pod: &Pod, port: u16| {
        process::until(std::time::Duration::from_secs(5), || apps::echoes(pod, &outside, port)).is_ok()
    };
    assert!(reaches(&stage.client, 7001), "listed");
    assert!(reaches(&other, 7002), "its enrolment allows all");
    let daemon = stage.topology.daemon(stage.client_node);
    let before = daemon.counter("egress_refused").unwrap();
    let done = stage.client.run(&["curl", "--silent", "--max-time", "5", &format!("http://{outside}:7002/")]).unwrap();
    assert!(apps::was_reset(&done), "a reset: {}{}", done.stdout, done.stderr);
    assert_eq!(daemon.counter("egress_refused").unwrap(), before + 1);
    let line = daemon.wait_for_line(&[&format!("dst.addr={outside}:7002"), "error="]).unwrap();
    assert!(line.contains("leg=accept/policy") && line.contains("outbound: registry-only of this node"), "{line}");
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();
}

#[test]
fn plaintext_to_pods_of_the_mesh_is_refused_where_that_is_asked_for() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("plaintext").unwrap();
    stage.topology.set_section(stage.server_node, json!({"plaintextToMesh": "refuse"}));
    let stage = stage.started().unwrap();
    let outsider = stage.topology.node_place(stage.gateway_node);
    let ask = |pod: &Pod| {
        let url = format!("http://{}:8080/", pod.data().ip4);
        outsider.run(&["curl", "--silent", "--show-error", "--max-time", "5", &url]).unwrap()
    };
    let allowed = ask(&stage.web[0]);
    assert!(allowed.stdout.contains("pod=default/web-a"), "the default lets it in: {}", allowed.stderr);
    let refused = ask(&stage.web[1]);
    assert!(apps::was_reset(&refused), "a reset: {}{}", refused.stdout, refused.stderr);
    let daemon = stage.topology.daemon(stage.server_node);
    let line = daemon.wait_for_line(&["direction=inbound", "error="]).unwrap();
    assert!(line.contains("leg=accept/policy") && line.contains("plaintextToMesh: refuse"), "{line}");
    assert_eq!(daemon.counter("plaintext").unwrap(), 1, "counted all the same");
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();
}

#[test]
fn an_endpoint_with_a_host_name_alone_is_resolved_for_each_connection() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("named").unwrap();
    stage.topology.service("default/ext", &[(80, 7003)], &[]);
    let outside = stage.topology.node_ip(stage.gateway_node).to_string();
    let server = stage.topology.node_place(stage.gateway_node).clone();
    let _server = server.spawn(&["testkit-peer", "serve", "echo", "--port", "7003"]).unwrap();
    let stage = stage.started().unwrap();
    let endpoint = |name: &str| {
        let mut model = stage.topology.model(stage.client_node).unwrap();
        model["workloads"].as_array_mut().unwrap().push(json!({
            "uid": "ext", "name": "ext", "namespace": "default", "workloadIps": [], "hostname": name, "network": "network1",
            "protocol": "TCP", "services": {"default/ext.default.svc.cluster.local": {}},
        }));
        stage.topology.write_model(stage.client_node, &model).unwrap();
    };
    // A name that every resolver knows without asking anybody.
    endpoint(&outside);
    let reaches = || apps::echoes(&stage.client, &stage.vip("default/ext").to_string(), 80);
    process::until(std::time::Duration::from_secs(10), reaches).unwrap();
    let daemon = stage.topology.daemon(stage.client_node);
    assert!(daemon.counter("on_demand_dns").unwrap() >= 1);
    endpoint("no-such-host.invalid");
    process::until(std::time::Duration::from_secs(10), || !reaches()).unwrap();
    let line = daemon.wait_for_line(&["no-such-host.invalid", "error="]).unwrap();
    assert!(line.contains("leg=resolve") && line.contains("ask this node's DNS for it"), "{line}");
}
