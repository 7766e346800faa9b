//! Istio's own node proxy in every position of the path, where its program is given by `CAUSEWAY_TEST_ZTUNNEL`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use testkit::fixture::TwoClusters;
use testkit::{Pod, Proc, apps, ztunnel};

const DOMAIN: &str = "cluster.local";
/// How much goes both ways at once through each position.
const BYTES: &str = "33554432";

/// Leaves the test where ztunnel or privileges are missing.
macro_rules! needs_ztunnel {
    () => {
        testkit::needs_root!();
        if ztunnel::program().is_none() {
            testkit::skip!("CAUSEWAY_TEST_ZTUNNEL=path of a ztunnel program is not given");
        }
    };
}

/// A service across clusters with a checked pattern both ways on 2900, beside nginx behind `default/web`.
fn staged(name: &str, foreign: impl Fn(&TwoClusters) -> Vec<Pod>) -> (TwoClusters, Proc) {
    let mut stage = TwoClusters::build(name).unwrap();
    let server = stage.web[1].clone();
    stage.topology.service("default/duplex", &[(2900, 2900)], &[&server]);
    // Only what runs on the second node answers, so that each position is the one that is meant.
    stage.topology.service("default/far", &[(80, 8080)], &[&server]);
    for pod in foreign(&stage) {
        stage.topology.foreign(&pod);
    }
    let process = server.spawn(&["testkit-peer", "serve", "duplex", "--port", "2900"]).unwrap();
    let process = apps::wait_for_port(&server, 2900, process).unwrap();
    (stage.started().unwrap(), process)
}

/// Everything a position must carry: answers, bulk in both directions, half-close, resets.
fn exercise(from: &Pod, http: &str, duplex: &str) {
    for _ in 0..5 {
        let url = format!("http://{http}/");
        let answer = from.run_ok(&["curl", "--silent", "--show-error", "--max-time", "10", &url]).unwrap();
        assert!(answer.starts_with("pod=default/web-b"), "{answer}");
    }
    let said = from.run_ok(&["testkit-peer", "duplex", duplex, BYTES]).unwrap();
    assert!(said.starts_with("both ways ok"), "{said}");
}

/// The addresses of the server itself, within its network.
fn direct(stage: &TwoClusters) -> (String, String) {
    let ip = stage.web[1].data().ip4;
    (format!("{ip}:8080"), format!("{ip}:2900"))
}

/// The addresses of its services in the first cluster.
fn across(stage: &TwoClusters) -> (String, String) {
    (format!("{}:80", stage.vip("default/far")), format!("{}:2900", stage.vip("default/duplex")))
}

#[test]
fn ztunnel_ends_the_tunnel_of_a_causeway_client() {
    needs_ztunnel!();
    let (stage, _duplex) = staged("zt-server", |stage| vec![stage.web[1].clone()]);
    let _proxy = ztunnel::start(&stage.topology, &stage.web[1]).unwrap();
    let (http, duplex) = direct(&stage);
    exercise(&stage.neighbour, &http, &duplex);
    let line =
        stage.topology.daemon(stage.gateway_node).wait_for_line(&["direction=outbound", "dst.identity="]).unwrap();
    assert!(line.contains(&stage.web[1].identity(DOMAIN)), "{line}");
}

#[test]
fn ztunnel_opens_a_tunnel_into_a_causeway_pod() {
    needs_ztunnel!();
    let (stage, _duplex) = staged("zt-client", |stage| vec![stage.neighbour.clone()]);
    let _proxy = ztunnel::start(&stage.topology, &stage.neighbour).unwrap();
    let (http, duplex) = direct(&stage);
    exercise(&stage.neighbour, &http, &duplex);
    let identity = stage.neighbour.identity(DOMAIN);
    let line = stage.topology.daemon(stage.server_node).wait_for_line(&["direction=inbound", &identity]).unwrap();
    assert!(!line.contains("error="), "{line}");
}

#[test]
fn ztunnel_opens_a_tunnel_within_a_tunnel_through_a_causeway_gateway() {
    needs_ztunnel!();
    let (stage, _duplex) = staged("zt-nested", |stage| vec![stage.client.clone()]);
    let _proxy = ztunnel::start(&stage.topology, &stage.client).unwrap();
    let (http, duplex) = across(&stage);
    exercise(&stage.client, &http, &duplex);
    let identity = stage.client.identity(DOMAIN);
    let line = stage.topology.daemon(stage.server_node).wait_for_line(&["direction=inbound", &identity]).unwrap();
    assert!(!line.contains("error="), "{line}");
    let line = stage.topology.daemon(stage.gateway_node).wait_for_line(&["direction=gateway", &identity]).unwrap();
    assert!(!line.contains("error="), "{line}");
}

#[test]
fn ztunnel_ends_the_inner_tunnel_of_a_causeway_client_behind_a_causeway_gateway() {
    needs_ztunnel!();
    let (stage, _duplex) = staged("zt-inner", |stage| vec![stage.web[1].clone()]);
    let _proxy = ztunnel::start(&stage.topology, &stage.web[1]).unwrap();
    let (http, duplex) = across(&stage);
    exercise(&stage.client, &http, &duplex);
    let line =
        stage.topology.daemon(stage.client_node).wait_for_line(&["direction=outbound", "dst.identity="]).unwrap();
    assert!(line.contains(&stage.web[1].identity(DOMAIN)), "{line}");
}

#[test]
fn ztunnel_on_both_sides_is_carried_by_a_causeway_gateway() {
    needs_ztunnel!();
    let (stage, _duplex) = staged("zt-both", |stage| vec![stage.client.clone(), stage.web[1].clone()]);
    let _client = ztunnel::start(&stage.topology, &stage.client).unwrap();
    let _server = ztunnel::start(&stage.topology, &stage.web[1]).unwrap();
    let (http, duplex) = across(&stage);
    exercise(&stage.client, &http, &duplex);
    let identity = stage.client.identity(DOMAIN);
    let line = stage.topology.daemon(stage.gateway_node).wait_for_line(&["direction=gateway", &identity]).unwrap();
    assert!(!line.contains("error="), "{line}");
}
