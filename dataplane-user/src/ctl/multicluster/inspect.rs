//! `status` and `check`: nothing is changed.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::clusters::{Known, read, read_each};
use super::{Check, Contexts, Ended, Form};
use crate::ctl::show::{at, table};
use crate::multicluster::check::{self, Scene};
use crate::multicluster::facts::Cluster;
use crate::multicluster::finding::Severity;
use crate::multicluster::{gather, names, probe};

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

pub(super) async fn status(args: &Contexts) -> Result<ExitCode, Ended> {
    let known = read(&args.place, &args.contexts).await?;
    let rows: Vec<Value> = known.iter().map(|known| describe(&known.cluster)).collect();
    match args.place.output {
        Form::Json => println!("{}", json!({"clusters": rows})),
        Form::Table => {
            let columns = [
                ("CONTEXT", "/context"),
                ("CLUSTER", "/cluster"),
                ("NETWORK", "/network"),
                ("TRUST DOMAIN", "/trustDomain"),
                ("ENTRY", "/entry/kind"),
                ("ADDRESSES", "/entry/addresses"),
                ("CALLS", "/calls"),
            ];
            let mut lines = vec![columns.map(|(title, _)| title.to_owned()).to_vec()];
            lines.extend(rows.iter().map(|row| columns.map(|(_, pointer)| at(row, pointer)).to_vec()));
            print!("{}", table(&lines));
        }
    }
    let unread = known.iter().flat_map(|known| known.cluster.unread.keys().map(move |kind| (known, kind)));
    let unread: Vec<String> = unread.map(|(known, kind)| format!("{}: {kind:?}", known.cluster.context)).collect();
    if unread.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("causeway: what these would say is missing above: {}; multicluster check says why", unread.join(", "));
    Ok(ExitCode::FAILURE)
}

fn describe(cluster: &Cluster) -> Value {
    let entry = match (cluster.gateways(names::EAST_WEST).first(), cluster.entries().first()) {
        (Some(gateway), _) => {
            json!({"kind": "LoadBalancer", "addresses": gateway.addresses, "port": names::HBONE_PORT})
        }
        (None, Some(entry)) => json!({"kind": entry.kind, "port": entry.node_port,
            "addresses": cluster.node_addresses(entry, "InternalIP")}),
        (None, None) => Value::Null,
    };
    let calls: Vec<String> = cluster.remote_secrets().into_iter().map(|secret| secret.cluster).collect();
    json!({"context": cluster.context, "cluster": cluster.name(), "network": cluster.network(),
        "trustDomain": cluster.mesh().map(|_| cluster.trust_domain()), "entry": entry, "calls": calls})
}

/// Columns of what nodes found at entry points.
const WAYS: [(&str, &str); 7] = [
    ("CONTEXT", "/context"),
    ("NODE", "/node"),
    ("NETWORK", "/network"),
    ("ENTRY POINT", "/address"),
    ("TCP MS", "/tcp_ms"),
    ("TLS MS", "/tls_ms"),
    ("LAST FAILED AT", "/leg"),
];

/// What the nodes found at the entry points of other networks.
fn ways(scene: &Scene) -> Vec<Value> {
    let reports = scene.clusters.iter().flat_map(|cluster| cluster.reports.iter().map(move |report| (cluster, report)));
    let mut ways = Vec::new();
    for (cluster, report) in reports {
        let points = report.said.as_ref().ok().and_then(|said| said["entry_points"].as_array());
        for point in points.into_iter().flatten() {
            let mut way = point.as_object().cloned().unwrap_or_default();
            way.insert("context".to_owned(), json!(cluster.context));
            way.insert("node".to_owned(), json!(report.node));
            ways.push(Value::Object(way));
        }
    }
    ways
}

pub(super) async fn check(args: &Check) -> Result<ExitCode, Ended> {
    let (known, silent) = read_each(&args.which.place, &args.which.contexts).await?;
    let blind = !silent.is_empty();
    let mut clusters = Vec::new();
    for Known { api, mut cluster } in known {
        if !args.precheck {
            gather::reports(&api, &mut cluster, !args.skip_probe).await;
        }
        clusters.push(cluster);
    }
    let probes = if args.skip_probe || args.precheck { Vec::new() } else { probe::all(check::targets(&clusters)) };
    let scene = Scene { clusters, probes, now: now(), silent };
    let results = check::run(&scene, args.precheck);
    let findings = || results.iter().flat_map(|(_, findings)| findings);
    let failed = findings().any(|finding| finding.severity == Severity::Error);
    match args.which.place.output {
        Form::Json => {
            let checks: Vec<Value> = results
                .iter()
                .map(
                    |(check, findings)| json!({"name": check.name, "holds": findings.is_empty(), "findings": findings}),
                )
                .collect();
            let probes: Vec<Value> = scene
                .probes
                .iter()
                .map(|probe| {
                    json!({"context": probe.context, "address": probe.address, "port": probe.port,
                        "connected_ms": probe.connected.as_secs_f64() * 1e3, "answer": format!("{:?}", probe.answer)})
                })
                .collect();
            println!("{}", json!({"ok": !failed, "checks": checks, "probes": probes, "ways": ways(&scene)}));
        }
        Form::Table => {
            for (check, findings) in &results {
                let worst = findings.iter().map(|finding| finding.severity).max();
                let word = match worst {
                    None => "ok",
                    Some(Severity::Warning) => "warning",
                    Some(Severity::Error) => "FAILED",
                };
                if worst.is_some() || args.verbose {
                    println!("{word:<8}{:<13}{}", check.name, check.holds);
                }
            }
            for finding in findings() {
                print!("\n{finding}");
            }
            let ways = ways(&scene);
            if !ways.is_empty() {
                println!();
                let mut lines = vec![WAYS.map(|(title, _)| title.to_owned()).to_vec()];
                lines.extend(ways.iter().map(|row| WAYS.map(|(_, pointer)| at(row, pointer)).to_vec()));
                println!("{}", table(&lines));
            }
            let (errors, all) = (findings().filter(|f| f.severity == Severity::Error).count(), findings().count());
            let tried = scene.probes.len();
            println!(
                "{} checks, {errors} errors, {} warnings, {tried} entry points tried",
                results.len(),
                all - errors
            );
        }
    }
    Ok(match (blind, failed) {
        (true, _) => ExitCode::from(2),
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::SUCCESS,
    })
}
