//! Envoy, which nobody here wrote, in every position of the path: server, client, client of nested tunnels, gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use testkit::certificates::{Leaf, issue};
use testkit::envoy::{self, Target};
use testkit::fixture::TwoClusters;
use testkit::topology::gateway_identity;
use testkit::{Pod, Proc, apps};

const HBONE: u16 = 15008;
const DOMAIN: &str = "cluster.local";
/// How much goes both ways at once through each position.
const BYTES: &str = "33554432";

/// Leaves the test where Envoy or privileges are missing.
macro_rules! needs_envoy {
    () => {
        testkit::needs_root!();
        if envoy::program().is_none() {
            testkit::skip!("Envoy is not installed (cargo xtask setup)");
        }
    };
}

/// A certificate from the authority of the second cluster.
fn leaf(stage: &TwoClusters, identity: &str) -> Leaf {
    let authority = stage.topology.ca_folder(DOMAIN).join("cluster2");
    issue(&authority, identity, &stage.topology.scratch().join("leaves")).unwrap()
}

/// The servers behind every position: nginx on 8080 is there already, a checked pattern both ways on 2900.
fn duplex_server(pod: &Pod) -> Proc {
    let server = pod.spawn(&["testkit-peer", "serve", "duplex", "--port", "2900"]).unwrap();
    apps::wait_for_port(pod, 2900, server).unwrap()
}

/// Everything a position must carry: answers, bulk in both directions, half-close, many connections at once.
fn exercise(from: &Pod, http: &str, duplex: &str) {
    let url = format!("http://{http}/");
    for _ in 0..5 {
        let answer = from.run_ok(&["curl", "--silent", "--show-error", "--max-time", "10", &url]).unwrap();
        assert!(answer.starts_with("pod=default/web-"), "{answer}");
    }
    let said = from.run_ok(&["testkit-peer", "duplex", duplex, BYTES]).unwrap();
    assert!(said.starts_with("both ways ok"), "{said}");
}

#[test]
fn envoy_ends_the_tunnel_of_a_causeway_client() {
    needs_envoy!();
    let mut stage = TwoClusters::build("envoy-server").unwrap();
    let server = stage.web[1].clone();
    stage.topology.foreign(&server);
    stage.topology.service("default/duplex", &[(2900, 2900)], &[&server]);
    let _duplex = duplex_server(&server);
    let stage = stage.started().unwrap();
    let leaf = leaf(&stage, &server.identity(DOMAIN));
    let authority = |port: u16| format!("{}:{port}", server.data().ip4);
    let listener =
        envoy::terminate("0.0.0.0", HBONE, &leaf, &[(&authority(8080), "nginx"), (&authority(2900), "duplex")]);
    let clusters =
        [envoy::plain_cluster("nginx", &[("127.0.0.1", 8080)]), envoy::plain_cluster("duplex", &[("127.0.0.1", 2900)])];
    let _envoy = envoy::start(&server, "server", HBONE, &[listener], &clusters).unwrap();
    exercise(&stage.neighbour, &authority(8080), &authority(2900));
    let line =
        stage.topology.daemon(stage.gateway_node).wait_for_line(&["direction=outbound", "dst.identity="]).unwrap();
    assert!(line.contains(&server.identity(DOMAIN)), "{line}");
}

#[test]
fn envoy_opens_a_tunnel_into_a_causeway_pod() {
    needs_envoy!();
    let mut stage = TwoClusters::build("envoy-client").unwrap();
    let node = stage.gateway_node;
    let pod = stage.topology.plain_pod(node, "default/envoy", "envoy").unwrap();
    let _duplex = duplex_server(&stage.web[1]);
    let stage = stage.started().unwrap();
    let identity = pod.identity(DOMAIN);
    let leaf = leaf(&stage, &identity);
    let server = stage.web[1].data().ip4.to_string();
    let listeners = [8080, 2900].map(|port| envoy::originate("127.0.0.1", port, &format!("{server}:{port}"), "pod"));
    let peer = stage.web[1].identity(DOMAIN);
    let cluster = envoy::tunnel_cluster("pod", Target::Socket(&server, HBONE), &leaf, &peer);
    let _envoy = envoy::start(&pod, "client", 8080, &listeners, &[cluster]).unwrap();
    exercise(&pod, "127.0.0.1:8080", "127.0.0.1:2900");
    let line = stage.topology.daemon(stage.server_node).wait_for_line(&["direction=inbound", &identity]).unwrap();
    assert!(!line.contains("error="), "{line}");
}

#[test]
fn envoy_opens_a_tunnel_within_a_tunnel_through_a_causeway_gateway() {
    needs_envoy!();
    let mut stage = TwoClusters::build("envoy-nested").unwrap();
    stage.topology.service("default/duplex", &[(2900, 2900)], &[&stage.web[1]]);
    let node = stage.client_node;
    let pod = stage.topology.plain_pod(node, "default/envoy", "envoy").unwrap();
    let _duplex = duplex_server(&stage.web[1]);
    let stage = stage.started().unwrap();
    let leaf = leaf(&stage, &pod.identity(DOMAIN));
    let gateway = stage.topology.node_ip(stage.gateway_node).to_string();
    let mut listeners = Vec::new();
    let mut clusters =
        vec![envoy::tunnel_cluster("gateway", Target::Socket(&gateway, HBONE), &leaf, &gateway_identity(DOMAIN))];
    for (service, port, local) in [("web", 80, 8080), ("duplex", 2900, 2900)] {
        let authority = format!("{service}.default.svc.cluster.local:{port}");
        let (inner, outer) = (format!("inner-{service}"), format!("outer-{service}"));
        listeners.push(envoy::originate("127.0.0.1", local, &authority, &inner));
        listeners.push(envoy::originate_internal(&outer, &authority, "gateway"));
        let peer = stage.web[1].identity(DOMAIN);
        clusters.push(envoy::tunnel_cluster(&inner, Target::Internal(&outer), &leaf, &peer));
    }
    let _envoy = envoy::start(&pod, "nested", 8080, &listeners, &clusters).unwrap();
    exercise(&pod, "127.0.0.1:8080", "127.0.0.1:2900");
    let identity = pod.identity(DOMAIN);
    let line = stage.topology.daemon(stage.server_node).wait_for_line(&["direction=inbound", &identity]).unwrap();
    assert!(!line.contains("error="), "{line}");
}

#[test]
fn envoy_is_the_gateway_between_two_causeway_nodes() {
    needs_envoy!();
    let mut stage = TwoClusters::build("envoy-gateway").unwrap();
    stage.topology.service("default/duplex", &[(2900, 2900)], &[&stage.web[1]]);
    let node = stage.gateway_node;
    stage.topology.foreign_gateway(node);
    let _duplex = duplex_server(&stage.web[1]);
    let stage = stage.started().unwrap();
    let leaf = leaf(&stage, &gateway_identity(DOMAIN));
    let pods = stage.web.each_ref().map(|pod| pod.data().ip4.to_string());
    let routes = [("web.default.svc.cluster.local:80", "web"), ("duplex.default.svc.cluster.local:2900", "duplex")];
    let address = stage.topology.node_ip(stage.gateway_node).to_string();
    let listener = envoy::terminate(&address, HBONE, &leaf, &routes);
    let clusters = [
        envoy::plain_cluster("web", &[(&pods[0], HBONE), (&pods[1], HBONE)]),
        envoy::plain_cluster("duplex", &[(&pods[1], HBONE)]),
    ];
    let place = stage.topology.node_place(stage.gateway_node);
    let _envoy = envoy::start(place, "gateway", HBONE, &[listener], &clusters).unwrap();
    let http = format!("{}:80", stage.vip("default/web"));
    let duplex = format!("{}:2900", stage.vip("default/duplex"));
    exercise(&stage.client, &http, &duplex);
    let client = stage.client.identity(DOMAIN);
    let line = stage.topology.daemon(stage.server_node).wait_for_line(&["direction=inbound", &client]).unwrap();
    assert!(!line.contains("error="), "{line}");
}
