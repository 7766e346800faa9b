//! What is refused before it can do harm: the text says what, where and what to do, and the exit code is not zero.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};
use std::path::Path;
use testkit::fixture::TwoClusters;
use testkit::topology::NodeId;

/// Runs `causeway validate` on a text and returns what it complained about.
fn complaint(stage: &TwoClusters, name: &str, text: &str) -> String {
    let path = stage.topology.scratch().join(name);
    std::fs::write(&path, text).unwrap();
    let done = stage.topology.wan_place().run(&["causeway", "validate", &path.to_string_lossy()]).unwrap();
    assert!(!done.status.success(), "{name} must be refused: {}", done.stdout);
    let said = format!("{}{}", done.stdout, done.stderr);
    assert!(said.contains(name), "{name}: the complaint must name the file: {said}");
    said
}

fn yaml(model: &Value) -> String {
    serde_yaml_ng::to_string(model).unwrap()
}

#[test]
fn a_bad_model_file_is_refused_with_its_place_and_a_good_one_is_accepted() {
    testkit::needs_root!();
    let stage = TwoClusters::build("validate").unwrap();
    stage.topology.prepare().unwrap();
    let good = stage.topology.model(stage.gateway_node).unwrap();
    let path = stage.topology.model_path(stage.gateway_node);
    stage.topology.wan_place().run_ok(&["causeway", "validate", &path.to_string_lossy()]).unwrap();

    assert!(complaint(&stage, "broken.yaml", "workloads: [\n").contains("line"));
    let change = |edit: &dyn Fn(&mut Value)| {
        let mut model = good.clone();
        edit(&mut model);
        yaml(&model)
    };
    let unknown = change(&|model| model["workloads"][0]["colour"] = json!("blue"));
    assert!(complaint(&stage, "unknown-field.yaml", &unknown).contains("colour"));
    let overlap = change(&|model| {
        let mut twin = model["services"][0].clone();
        twin["name"] = json!("twin");
        twin["hostname"] = json!("twin.default.svc.cluster.local");
        model["services"].as_array_mut().unwrap().push(twin);
    });
    let said = complaint(&stage, "overlap.yaml", &overlap);
    assert!(said.contains("10.96.1.10") && said.contains("services[1]") && said.contains("default/web"), "{said}");
    let address = change(&|model| model["workloads"][0]["workloadIps"][0] = json!("10.244.1.300"));
    assert!(complaint(&stage, "address.yaml", &address).contains("10.244.1.300"));
    let nobody = change(&|model| model["causeway"]["enrol"][0]["workload"] = json!("cluster2//Pod/default/nobody"));
    assert!(complaint(&stage, "nobody.yaml", &nobody).contains("nobody"));
}

#[test]
fn a_daemon_does_not_start_with_a_bad_certificate_authority() {
    testkit::needs_root!();
    let stage = TwoClusters::build("certificates").unwrap();
    stage.topology.prepare().unwrap();
    let folder = stage.topology.ca_folder("cluster.local");
    let [one, two] = ["cluster1", "cluster2"].map(|name| folder.join(name));
    let bad = stage.topology.scratch().join("bad-ca");
    let copy = |from: &Path, file: &str| std::fs::copy(from.join(file), bad.join(file)).unwrap();
    std::fs::create_dir_all(&bad).unwrap();
    for file in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
        copy(&one, file);
    }
    copy(&two, "ca-key.pem");
    let said = start_with(&stage, &bad);
    assert!(said.contains("key"), "the key belongs to another certificate: {said}");
    assert!(said.contains("bad-ca"), "{said}");

    std::fs::write(bad.join("ca-cert.pem"), "not a certificate").unwrap();
    let said = start_with(&stage, &bad);
    assert!(said.contains("ca-cert.pem"), "{said}");
}

/// Starts a daemon with this authority, which must fail, and returns what it said.
fn start_with(stage: &TwoClusters, authority: &Path) -> String {
    let mut model = stage.topology.model(stage.server_node).unwrap();
    model["causeway"]["identity"]["caDirectory"] = json!(authority);
    stage.topology.write_model(stage.server_node, &model).unwrap();
    let line = node_line(stage, stage.server_node, "c2n2");
    let line: Vec<&str> = std::iter::once("causeway").chain(line.iter().map(String::as_str)).collect();
    let done = stage.topology.node_place(stage.server_node).run(&line).unwrap();
    assert!(!done.status.success(), "{}{}", done.stdout, done.stderr);
    format!("{}{}", done.stdout, done.stderr)
}

#[test]
fn without_privilege_the_daemon_names_what_is_missing() {
    testkit::needs_root!();
    let stage = TwoClusters::build("privilege").unwrap();
    stage.topology.prepare().unwrap();
    let program = testkit::process::own_program("causeway").unwrap().to_string_lossy().into_owned();
    let node = node_line(&stage, stage.client_node, "c1n1");
    let node: Vec<&str> = node.iter().map(String::as_str).collect();
    let drop_all = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--ambient-caps", "-all"];
    let line = [&drop_all[..], &[program.as_str()], &node[..]].concat();
    let done = stage.topology.node_place(stage.client_node).run(&line).unwrap();
    let said = format!("{}{}", done.stdout, done.stderr);
    assert!(!done.status.success(), "{said}");
    assert!(said.contains("CAP_"), "the missing capability must be named: {said}");
}

/// The arguments of `causeway` for a node, as the kit starts it.
fn node_line(stage: &TwoClusters, node: NodeId, name: &str) -> Vec<String> {
    let folder = stage.topology.node_place(node).cgroup.parent().unwrap().to_owned();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let instance = format!("{}{name}", stage.topology.prefix());
    let pairs = [
        ("--model", text(&stage.topology.model_path(node))),
        ("--instance", instance),
        ("--cgroup-root", text(&folder)),
        ("--pods-cgroup", text(&folder.join("kubepods"))),
        ("--run-dir", text(stage.topology.scratch())),
    ];
    let pairs = pairs.into_iter().flat_map(|(key, value)| [key.to_owned(), value]);
    std::iter::once("node".to_owned()).chain(pairs).collect()
}
