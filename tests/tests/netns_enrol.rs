//! Bringing pods into the mesh and taking them out while they and the daemons run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::time::Duration;
use testkit::daemon::state_of;
use testkit::fixture::TwoClusters;
use testkit::{Topology, apps, process};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_running_pod_that_is_enrolled_keeps_its_open_connections() {
    testkit::needs_root!();
    let mut topology = Topology::new("enrol").unwrap();
    let one = topology.cluster("cluster1", "network1");
    let (left, right) = (topology.node(one).unwrap(), topology.node(one).unwrap());
    let client = topology.plain_pod(left, "default/client", "client").unwrap();
    let server = topology.plain_pod(right, "default/server", "server").unwrap();
    topology.service("default/echo", &[(2800, 2800)], &[&server]);
    let echo = server.spawn(&["testkit-peer", "serve", "echo", "--port", "2800"]).unwrap();
    let _echo = apps::wait_for_port(&server, 2800, echo).unwrap();
    topology.start().unwrap();

    let to = format!("{}:2800", server.data().ip4);
    let mut plain = client.spawn_with_input(&["testkit-peer", "idle", &to, "20"]).unwrap();
    plain.wait_for("open 20", PATIENCE).unwrap();
    topology.enrol(&client);
    topology.enrol(&server);
    topology.publish().unwrap();
    topology.wait_ready(left).unwrap();
    topology.wait_ready(right).unwrap();

    let inbound = |topology: &Topology| topology.daemon(right).counter("inbound").unwrap();
    let before = inbound(&topology);
    client.run_ok(&["testkit-peer", "connections", &to, "1", "10", "--count", "5"]).unwrap();
    assert!(inbound(&topology) >= before + 5, "new connections go through the tunnel");
    plain.close_input();
    plain.wait_for("alive 20", PATIENCE).expect("connections from before enrolment live on");

    // And out again, with connections open that were redirected.
    let mut meshed = client.spawn_with_input(&["testkit-peer", "idle", &to, "20"]).unwrap();
    meshed.wait_for("open 20", PATIENCE).unwrap();
    topology.release(&client);
    topology.publish().unwrap();
    let uid = client.data().uid.clone();
    process::until(PATIENCE, || {
        topology.daemon(left).status().is_ok_and(|status| state_of(&status, &uid) != Some("Enrolled"))
    })
    .expect("the pod must leave");
    meshed.close_input();
    meshed.wait_for("alive 20", PATIENCE).expect("redirected connections outlive the release");
}

#[test]
fn an_endpoint_added_to_the_model_is_used_and_running_connections_do_not_notice() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("reload").unwrap();
    stage.peer_service("default/echo", "echo", 2801).unwrap();
    let only = stage.web[1].clone();
    stage.topology.set_endpoints("default/web", &[&only]);
    let mut stage = stage.started().unwrap();
    let to = format!("{}:2801", stage.vip("default/echo"));
    let mut idle = stage.client.spawn_with_input(&["testkit-peer", "idle", &to, "50"]).unwrap();
    idle.wait_for("open 50", PATIENCE).unwrap();
    for _ in 0..6 {
        assert!(stage.curl(&stage.client, stage.vip("default/web")).unwrap().contains("web-b"));
    }
    let both = stage.web.clone();
    stage.topology.set_endpoints("default/web", &[&both[0], &both[1]]);
    stage.topology.publish().unwrap();
    process::until(Duration::from_secs(30), || {
        stage.curl(&stage.client, stage.vip("default/web")).unwrap().contains("web-a")
    })
    .expect("the new endpoint must be found");
    idle.close_input();
    idle.wait_for("alive 50", PATIENCE).expect("a reload drops no connection");
}

#[test]
fn a_bad_reload_is_explained_and_the_last_good_model_stays() {
    testkit::needs_root!();
    let stage = TwoClusters::start("bad-reload").unwrap();
    let node = stage.client_node;
    let good = stage.topology.model(node).unwrap();
    let broken = [("workloads: [", "yaml"), ("workloads: []\nservices: []\npolicies: []\nsurprise: 1\n", "surprise")];
    for (text, word) in broken {
        stage.topology.write_model_text(node, text).unwrap();
        stage.topology.daemon(node).wait_for_log(word).unwrap_or_else(|_| {
            stage.topology.daemon(node).wait_for_log(&stage.topology.model_path(node).display().to_string()).unwrap();
        });
        stage.curl(&stage.client, stage.vip("default/web")).expect("the last good model stays");
    }
    let mut missing = good.clone();
    let enrol = missing.pointer_mut("/causeway/enrol").and_then(Value::as_array_mut).unwrap();
    enrol.push(json!({"workload": stage.outsider.data().uid, "netns": "no-such-namespace"}));
    stage.topology.write_model(node, &missing).unwrap();
    stage.topology.daemon(node).wait_for_log("no-such-namespace").unwrap();
    stage.curl(&stage.client, stage.vip("default/web")).expect("one bad pod does not keep the others out");
    stage.topology.write_model(node, &good).unwrap();
    process::until(PATIENCE, || stage.curl(&stage.client, stage.vip("default/web")).is_ok())
        .expect("a good model mends it");
}

#[test]
fn excluded_ports_and_ranges_are_left_alone() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("exclude").unwrap();
    stage.topology.set_exclusions(json!({"ports": [2802], "cidrs": ["10.244.2.0/24"], "inboundPorts": [2802]}));
    let echo = stage.web[0].spawn(&["testkit-peer", "serve", "echo", "--port", "2802"]).unwrap();
    let _echo = apps::wait_for_port(&stage.web[0], 2802, echo).unwrap();
    let stage = stage.started().unwrap();
    let outbound = || stage.topology.daemon(stage.gateway_node).counter("outbound").unwrap();
    let to = format!("{}:2802", stage.web[0].data().ip4);
    let before = outbound();
    let line = ["testkit-peer", "connections", &to, "1", "10", "--count", "3"];
    stage.neighbour.run_ok(&line).unwrap();
    assert_eq!(outbound(), before, "an excluded port is not redirected");
    stage.curl(&stage.neighbour, format!("{}:8080", stage.web[0].data().ip4)).unwrap();
    assert!(outbound() > before, "other ports are");
}

#[test]
fn a_pod_made_anew_under_its_old_uid_is_enrolled_in_its_new_namespace() {
    testkit::needs_root!();
    let stage = TwoClusters::start("anew").unwrap();
    let (node, vip) = (stage.client_node, stage.vip("default/web"));
    stage.curl(&stage.client, vip).unwrap();
    let mut model = stage.topology.model(node).unwrap();
    let uid = &stage.client.data().uid;
    let list = model.pointer_mut("/causeway/enrol").and_then(Value::as_array_mut).unwrap();
    let entry = list.iter_mut().find(|entry| entry["workload"] == uid.as_str()).unwrap();
    entry["netns"] = json!(stage.outsider.place().netns);
    stage.topology.write_model(node, &model).unwrap();
    let place = || {
        let status = stage.topology.daemon(node).status().unwrap();
        let pods = status["pods"].as_array().unwrap();
        let pod = pods.iter().find(|pod| pod["uid"] == uid.as_str()).unwrap();
        (pod["state"].clone(), pod["netns"].as_str().unwrap_or_default().to_owned())
    };
    let there = || {
        let (state, netns) = place();
        state == "Enrolled" && netns.ends_with(&stage.outsider.place().netns)
    };
    process::until(PATIENCE, there).expect("the new namespace is enrolled");
    let old = stage.client.run(&["curl", "--silent", "--max-time", "2", &format!("http://{vip}/")]).unwrap();
    assert!(!old.status.success(), "the old namespace is still enrolled: {}", old.stdout);
}
