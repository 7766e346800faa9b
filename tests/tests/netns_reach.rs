//! What a node's pods can reach of other networks, tried on request.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use serde_json::{Value, json};
use testkit::fixture::TwoClusters;
use testkit::process;
use testkit::topology::NodeId;

/// Longer than an answer is good for.
const WAIT: Duration = Duration::from_secs(20);

fn reach(stage: &TwoClusters) -> Value {
    let line = ["curl", "--silent", "--show-error", "--max-time", "20", "http://127.0.0.1:15020/reach"];
    let text = stage.topology.node_place(stage.client_node).run_ok(&line).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Waits until the one entry point of the other network fails at `leg`; nothing means that it serves.
fn until_leg(stage: &TwoClusters, leg: Value) -> Value {
    let mut last = Value::Null;
    let found = process::until(WAIT, || {
        last = reach(stage);
        last["entry_points"][0]["leg"] == leg
    });
    assert!(found.is_ok(), "{leg}: {last:#}");
    assert_eq!(last["entry_points"].as_array().map(Vec::len), Some(1), "{last:#}");
    last
}

/// Writes the model of a node anew after `edit`; the daemon follows.
fn change(stage: &TwoClusters, node: NodeId, edit: impl Fn(&mut Value)) {
    let mut model = stage.topology.model(node).unwrap();
    edit(&mut model);
    stage.topology.write_model(node, &model).unwrap();
}

#[test]
fn entry_points_and_allotted_addresses_are_tried_on_request() {
    testkit::needs_root!();
    let stage = TwoClusters::start("reach").unwrap();
    let entry = format!("{}:15008", stage.topology.node_ip(stage.gateway_node));

    // Nothing of the kind was asked for by any application.
    let first = until_leg(&stage, Value::Null);
    assert_eq!(first["entry_points"][0]["address"], entry.as_str(), "{first:#}");
    assert_eq!(first["allotted"], json!([]), "{first:#}");
    let again = (reach(&stage), reach(&stage));
    assert_eq!(again.0, again.1, "one answer serves all who ask at a time");

    change(&stage, stage.client_node, |model| {
        let api = |name: &str, ip: &str| {
            json!({"name": name, "namespace": "default", "hostname": format!("{name}.example.com"),
                "vips": [format!("network1/{ip}")], "ports": {"443": 443}})
        };
        model["services"].as_array_mut().unwrap().push(api("api", "240.240.0.1"));
    });
    let mut last = Value::Null;
    process::until(WAIT, || {
        last = reach(&stage);
        last["allotted"].as_array().is_some_and(|rows| rows.len() == 1)
    })
    .unwrap_or_else(|error| panic!("{error}: {last:#}"));
    let why = last["allotted"][0]["error"].as_str().unwrap();
    assert!(why.contains("no healthy endpoint") && last["allotted"][0]["address"] == "240.240.0.1", "{last:#}");

    // The gateway's cluster does not export the service any more, and the source has not heard of it.
    change(&stage, stage.gateway_node, |model| model["causeway"]["exports"] = json!([]));
    let refused = until_leg(&stage, json!("connect"));
    assert!(refused["entry_points"][0]["error"].as_str().unwrap().contains("503"), "{refused:#}");
    change(&stage, stage.gateway_node, |_| {});
    until_leg(&stage, Value::Null);

    let failed =
        |node| stage.topology.daemon(node).log().lines().filter(|line| line.contains("connection failed")).count();
    assert_eq!(failed(stage.server_node), 0, "to the far end a try is no failure");

    let mut stage = stage;
    stage.topology.kill_daemon(stage.gateway_node).unwrap();
    let silent = until_leg(&stage, json!("outer-tcp"));
    assert!(silent["entry_points"][0]["error"].as_str().unwrap().contains("refused"), "{silent:#}");
}
