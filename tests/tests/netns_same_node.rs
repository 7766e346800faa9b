//! What happens inside one node: pods that are neighbours, and applications that want to be told who calls.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::json;
use testkit::fixture::TwoClusters;

#[test]
fn neighbours_talk_without_a_tunnel_and_the_application_sees_its_client() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("near").unwrap();
    stage.topology.service("default/near", &[(80, 8080)], &[&stage.web[0]]);
    let stage = stage.started().unwrap();
    let vip = stage.topology.vip(stage.clusters[1], "default/near");
    let answer = stage.curl(&stage.neighbour, vip).unwrap();
    let own = stage.neighbour.data().ip4.to_string();
    assert!(answer.contains(&own), "the application saw another client than {own}: {answer}");
    let daemon = stage.topology.daemon(stage.gateway_node);
    assert_eq!(daemon.counter("local").unwrap(), 1, "{}", daemon.log_tail(5));
    assert_eq!(daemon.counter("inbound").unwrap(), 0, "no CONNECT is needed inside a node");
    let line = daemon.wait_for_line(&["direction=outbound", "sa/neighbour", "near.default"]).unwrap();
    assert!(line.contains("dst.identity=spiffe://cluster.local/ns/default/sa/web"), "{line}");
}

#[test]
fn application_tunnel_gets_a_proxy_header_with_the_identity_of_the_caller() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("proxy").unwrap();
    stage.peer_service("default/tunnel", "echo", 9000).unwrap();
    let mut stage = stage.started().unwrap();
    let mut model = stage.topology.model(stage.server_node).unwrap();
    let uid = stage.web[1].data().uid.clone();
    for workload in model["workloads"].as_array_mut().unwrap() {
        if workload["uid"] == json!(uid) {
            workload["applicationTunnel"] = json!({"protocol": "PROXY", "port": 9000});
        }
    }
    stage.topology.write_model(stage.server_node, &model).unwrap();
    stage.topology.daemon(stage.server_node).wait_for_log("model reloaded").unwrap();
    let vip = stage.vip("default/tunnel");
    let script = format!("exec 3<>/dev/tcp/{vip}/9000; printf hello >&3; timeout 2 cat <&3 | tr -cd '[:print:]'");
    let echoed = stage.client.run(&["bash", "-c", &script]).unwrap().stdout;
    for part in ["QUIT", "spiffe://cluster.local/ns/default/sa/client", "hello"] {
        assert!(echoed.contains(part), "{part:?} is missing in {echoed:?}");
    }
    stage.topology.terminate_daemon(stage.server_node).unwrap();
}

#[test]
fn daemon_and_helper_keep_only_the_privileges_of_their_roles() {
    testkit::needs_root!();
    use causeway::redirect::privileges::Role;
    let stage = TwoClusters::start("caps").unwrap();
    let daemon = stage.topology.daemon(stage.client_node).pid();
    let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let helper: u32 = children.trim().parse().expect("the helper is the daemon's only child");
    let own = tasks.map(|task| (task.unwrap().path(), Role::Engine));
    let helpers = std::fs::read_dir(format!("/proc/{helper}/task")).unwrap();
    let all: Vec<_> = own.chain(helpers.map(|task| (task.unwrap().path(), Role::NetnsHelper))).collect();
    assert!(all.len() >= 6, "workers and channels have threads of their own: {all:?}");
    for (task, role) in all {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let set = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
        assert_eq!(u64::from_str_radix(set, 16).unwrap(), role.capabilities(), "{} as {role:?}", task.display());
    }
    stage.curl(&stage.client, stage.vip("default/web")).unwrap();
}

#[test]
fn multipath_sockets_take_the_mesh_like_others() {
    testkit::needs_root!();
    let stage = TwoClusters::start("mptcp").unwrap();
    // 262 is IPPROTO_MPTCP. The service address is nowhere routed: an answer can only come through the mesh.
    let script = format!(
        "import socket\n\
         try: s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n\
         except OSError as e: print('none', e); raise SystemExit\n\
         s.settimeout(5); s.connect(('{}', 80)); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n\
         print(s.makefile().read())",
        stage.vip("default/web")
    );
    let answer = stage.client.run_ok(&["python3", "-c", &script]).unwrap();
    if answer.starts_with("none") {
        println!("skipped: this kernel has no multipath TCP: {answer}");
        return;
    }
    assert!(answer.contains("pod=default/web-"), "{answer}");
}
