//! `causeway status`: ask a running daemon how it is.

use std::{error::Error, path::PathBuf};

use serde_json::Value;

use super::show::{self, Form, at, table};
use crate::observe::admin::Topic;

/// Which daemon, and how to show it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's admin socket.
    #[arg(long, value_name = "FILE", default_value = "/run/causeway/node.sock")]
    socket: PathBuf,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

/// Prints the answer.
///
/// # Errors
/// Nobody answers on the socket, or the daemon is not ready.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let answer = show::ask(&args.socket, Topic::Status)?;
    match args.output {
        Form::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        Form::Table => print!("{}", screen(&answer)),
    }
    match answer.get("ready").and_then(Value::as_bool) {
        Some(true) => Ok(()),
        _ => Err("the daemon is not ready".into()),
    }
}

fn screen(status: &Value) -> String {
    let number = |pointer: &str| at(status, pointer);
    let mut rows = vec![
        ["ready".to_owned(), if number("/ready") == "true" { "yes".to_owned() } else { "no".to_owned() }].to_vec(),
        vec![
            "model".to_owned(),
            format!(
                "{} workloads, {} services, {} policies, generation {}{}",
                number("/model/workloads"),
                number("/model/services"),
                number("/model/policies"),
                number("/model/generation"),
                if number("/synced") == "true" { "" } else { "; the control plane has not told all it knows" },
            ),
        ],
    ];
    for plane in array(status, "control_planes") {
        let state = if at(plane, "/connected") == "true" { "connected" } else { "away" };
        let mut text = format!("{} {state}, {} resources", at(plane, "/address"), at(plane, "/resources"));
        if let Some(error) = plane.get("error").and_then(Value::as_str) {
            text.push_str(&format!("; {error}"));
        }
        rows.push(vec!["control plane".to_owned(), text]);
        for (name, reason) in plane.get("refused").and_then(Value::as_object).into_iter().flatten() {
            rows.push(vec!["refused".to_owned(), format!("{name}: {}", reason.as_str().unwrap_or_default())]);
        }
    }
    for (name, key) in [("model file", "model_error"), ("trouble", "trouble")] {
        if let Some(error) = status.get(key).and_then(Value::as_str) {
            rows.push(vec![name.to_owned(), error.to_owned()]);
        }
    }
    let ports = status.get("node_ports");
    let ports = ports.filter(|ports| array(ports, "ports").next().is_some() || !ports["error"].is_null());
    if let Some(ports) = ports {
        let mut text = format!("{} at {}", at(ports, "/ports"), at(ports, "/addresses"));
        if let Some(error) = ports.get("error").and_then(Value::as_str) {
            text.push_str(&format!("; {error}"));
        }
        rows.push(vec!["node ports".to_owned(), text]);
    }
    for uid in array(status, "waiting_for_workloads") {
        rows.push(vec!["not in the model".to_owned(), uid.as_str().unwrap_or_default().to_owned()]);
    }
    let open = ["open", "outbound", "inbound", "plaintext", "gateway", "node_ports"];
    let counted = open.map(|name| format!("{name} {}", number(&format!("/counters/{name}")))).join(", ");
    rows.push(vec!["connections".to_owned(), counted]);
    let failed = status.pointer("/counters/failed").and_then(Value::as_object);
    let failed: Vec<String> = failed
        .into_iter()
        .flatten()
        .filter(|(_, count)| count.as_u64() != Some(0))
        .map(|(leg, count)| format!("{leg} {count}"))
        .collect();
    rows.push(vec!["failed".to_owned(), if failed.is_empty() { "none".to_owned() } else { failed.join(", ") }]);
    let mut text = table(&rows);
    let mut pods = vec![["POD", "STATE", "ADDRESSES", "REASON"].map(str::to_owned).to_vec()];
    pods.extend(array(status, "pods").map(|pod| ["/uid", "/state", "/ips", "/error"].map(|key| at(pod, key)).to_vec()));
    text.push('\n');
    text.push_str(&table(&pods));
    text
}

fn array<'a>(status: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    status.get(key).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_screen_says_what_is_wrong() {
        let status = json!({
            "ready": false, "synced": true, "model_error": "line 3: no",
            "model": {"workloads": 2, "services": 1, "policies": 0, "generation": 7},
            "control_planes": [{"address": "https://istiod:15012", "connected": false, "resources": 9, "error": "refused",
                "refused": {"ns/p": "no such action"}}],
            "counters": {"open": 1, "failed": {"resolve": 0, "outer-tls": 4}},
            "node_ports": {"ports": [30080], "addresses": ["192.0.2.1"], "error": "eth9: no such device"},
            "pods": [{"uid": "c//Pod/a/b", "state": "Failed", "error": "no namespace"}],
        });
        let text = screen(&status);
        for part in [
            "ready          no",
            "2 workloads, 1 services, 0 policies, generation 7",
            "https://istiod:15012 away, 9 resources; refused",
            "ns/p: no such action",
            "30080 at 192.0.2.1; eth9: no such device",
            "line 3: no",
            "outer-tls 4",
            "c//Pod/a/b  Failed  -          no namespace",
        ] {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert!(!text.contains("resolve"), "a leg without failures is left out:\n{text}");
    }
}
