//! What agents say of their nodes, and what follows.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};

use super::check::{self, Scene};
use super::facts::NodeReport;
use super::tests::{cluster, exposed};

#[test]
fn what_agents_say_of_themselves_is_found() {
    let report = |said: Result<Value, String>| NodeReport {
        node: "n1".to_owned(),
        pod: "istio-system/causeway-x".to_owned(),
        said,
        reached: Ok(Value::Null),
    };
    let well = json!({"trouble": null, "model_error": null, "pods": [{"uid": "a", "state": "Enrolled"}],
        "control_planes": [{"address": "https://istiod:15012", "connected": true}],
        "entry_points": [{"network": "network2", "address": "192.0.2.2:15008", "failures": 0,
            "failed_ago": 7, "leg": "outer-tcp", "error": "silence"}],
        "look": {"programs": {"outbound4": true}, "detached": {}, "dns": {"pod": "a", "name": "web", "ms": 0.3}}});
    let with = |pointer: &str, value: Value| {
        let mut said = well.clone();
        *said.pointer_mut(pointer).unwrap() = value;
        Ok(said)
    };
    for (said, expected) in [
        (Ok(well.clone()), ""),
        (Err("no answer within 5 s".to_owned()), "the agent was not asked: no answer within 5 s"),
        (Ok(json!([1])), "the agent was not asked: what it says is no status"),
        (with("/trouble", json!("no cgroup")), "no cgroup"),
        (with("/look/programs/outbound4", json!(false)), "programs are not attached: outbound4"),
        (with("/look/detached", json!({"outbound4": 2})), "somebody detached programs: outbound4 2 times"),
        (with("/pods/0", json!({"uid": "a", "state": "Failed", "error": "gone"})), "a is not redirected: gone"),
        (
            with("/look/dns", json!({"pod": "a", "name": "web", "error": "silence"})),
            "DNS in a: no answer for web: silence",
        ),
        (
            with("/entry_points/0/failures", json!(3)),
            "the entry point 192.0.2.2:15008 of network2 failed 7 s ago at outer-tcp: silence",
        ),
        (
            with(
                "/control_planes/0",
                json!({"address": "https://istiod:15012", "connected": false, "error": "refused"}),
            ),
            "no connection to the control plane at https://istiod:15012: refused",
        ),
    ] {
        let mut one = cluster(1);
        one.reports.push(report(said));
        let scene = Scene { clusters: vec![one], ..Scene::default() };
        let results = check::run(&scene, false);
        let findings = results.iter().find(|(check, _)| check.name == "nodes").map(|(_, findings)| findings).unwrap();
        let whats: Vec<&str> = findings.iter().map(|finding| finding.what.as_str()).collect();
        let expected: Vec<&str> = Some(expected).into_iter().filter(|text| !text.is_empty()).collect();
        assert_eq!(whats, expected);
        assert!(findings.iter().all(|one| one.place == "c1: node n1, pod istio-system/causeway-x"
            && one.repair.starts_with("kubectl --context c1 ")));
    }
}

#[test]
fn what_nodes_cannot_reach_is_found() {
    let said = json!({"entry_points": [{"network": "network2", "address": "192.0.2.2:15008", "failures": 3,
        "failed_ago": 7, "leg": "outer-tcp", "error": "silence"}]});
    let found_by = |reached: Result<Value, String>| {
        let mut one = cluster(1);
        let (node, pod) = ("n1".to_owned(), "istio-system/causeway-x".to_owned());
        one.reports.push(NodeReport { node, pod, said: Ok(said.clone()), reached });
        let results = check::run(&Scene { clusters: vec![one], ..Scene::default() }, false);
        let (_, findings) = results.into_iter().find(|(check, _)| check.name == "nodes").unwrap();
        findings.into_iter().map(|finding| finding.what).collect::<Vec<_>>()
    };
    let found = |reached| found_by(Ok(reached));
    let old = "the entry point 192.0.2.2:15008 of network2 failed 7 s ago at outer-tcp: silence";
    assert_eq!(found(Value::Null), [old]);
    let silent = "the ways to other networks were not tried: no answer within 30 s";
    assert_eq!(found_by(Err("no answer within 30 s".to_owned())), [old, silent]);
    let row = |leg: Value, error: Value| {
        json!({"network": "network2", "address": "192.0.2.2:15008",
        "authority": "web.shop.svc.cluster.local:80", "leg": leg, "error": error})
    };
    let reached = |row: Value| json!({"entry_points": [row], "allotted": []});
    assert_eq!(found(reached(row(Value::Null, Value::Null))), [""; 0], "it serves again");
    assert_eq!(
        found(reached(row(json!("connect"), json!("status 404")))),
        [
            "web.shop.svc.cluster.local:80 cannot be reached through the entry point 192.0.2.2:15008 of network2: connect: status 404"
        ]
    );
    // Where the other cluster is looked at too, who there knows why.
    let repair = |leg: &str| {
        let (mut one, two) = (cluster(1), exposed(2, true));
        let (node, pod) = ("n1".to_owned(), "istio-system/causeway-x".to_owned());
        let reached = Ok(reached(row(json!(leg), json!("why"))));
        one.reports.push(NodeReport { node, pod, said: Ok(json!({})), reached });
        let results = check::run(&Scene { clusters: vec![one, two], ..Scene::default() }, false);
        let (_, findings) = results.into_iter().find(|(check, _)| check.name == "nodes").unwrap();
        findings.into_iter().map(|finding| finding.repair).collect::<Vec<_>>().concat()
    };
    let gateways = "kubectl --context c2 -n istio-eastwest";
    for (leg, expected) in [
        ("outer-tcp", format!("{gateways} get service,pods -o wide # and let TCP port 15008 pass from node to node")),
        ("outer-tls", "causeway multicluster link --from c1 --to c2 --node-port".to_owned()),
        (
            "connect",
            format!(
                "{gateways} logs -l app=causeway-gateway --tail=-1 --prefix | grep 'web.shop.svc.cluster.local:80'"
            ),
        ),
        (
            "inner-tls",
            "kubectl --context c2 -n istio-system logs -l app=causeway --tail=-1 --prefix --max-log-requests=100 | grep 'leg='"
                .to_owned(),
        ),
    ] {
        assert_eq!(repair(leg), expected);
    }
    let allotted = json!({"entry_points": [], "allotted": [
        {"service": "api.example.com", "address": "240.240.0.1", "error": null},
        {"service": "db.example.com", "address": "240.240.0.2", "error": "no healthy upstream"}]});
    assert_eq!(
        found(allotted)[1..],
        ["db.example.com has the allotted address 240.240.0.2 and is not reached by it: no healthy upstream"]
    );
}
