//! `causeway workloads | services | policies | certs | connections`: tables of what a running daemon knows.

use std::{io::ErrorKind, path::PathBuf, time::SystemTime};

use serde_json::Value;

use crate::observe::{
    admin::{self, Topic},
    dump,
};

/// How a list is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For people.
    #[default]
    Table,
    /// For machines.
    Json,
}

/// Which daemon, and how to show its answer.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's admin socket.
    #[arg(long, value_name = "FILE", default_value = "/run/causeway/node.sock")]
    pub socket: PathBuf,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Form,
    /// Only rows that contain this text in one of their columns.
    #[arg(value_name = "TEXT")]
    pub filter: Option<String>,
}

/// What to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Workloads of the mesh model.
    Workloads,
    /// Services of the mesh model.
    Services,
    /// Authorization policies.
    Policies,
    /// Certificates held by this node.
    Certificates,
    /// Connections open now.
    Connections,
}

/// A column: its title, and what a row has there.
type Column = (&'static str, fn(&Value) -> String);

/// Asks the daemon behind `socket`.
///
/// # Errors
/// Nobody answers there.
pub fn ask(socket: &std::path::Path, topic: Topic) -> Result<Value, Box<dyn std::error::Error>> {
    admin::ask(socket, topic).map_err(|error| {
        let socket = socket.display();
        let text = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("what listens on {socket} does not answer within {} s", admin::PATIENCE.as_secs())
            }
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                format!("what answers on {socket} is no daemon of Causeway: {error}")
            }
            _ => format!("no daemon answers on {socket}: {error}; is it running, and is this its run directory?"),
        };
        text.into()
    })
}

/// Prints one list.
///
/// # Errors
/// Nobody answers on the socket.
pub fn run(list: List, args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let (topic, key) = match list {
        List::Workloads => (Topic::ConfigDump, Some("workloads")),
        List::Services => (Topic::ConfigDump, Some("services")),
        List::Policies => (Topic::ConfigDump, Some("policies")),
        List::Certificates => (Topic::Certificates, None),
        List::Connections => (Topic::Connections, None),
    };
    let mut answer = ask(&args.socket, topic)?;
    let rows = match key {
        Some(key) => answer.get_mut(key).map(Value::take).unwrap_or_default(),
        None => answer,
    };
    let rows = rows.as_array().cloned().unwrap_or_default();
    let columns = columns(list);
    let shown: Vec<(Vec<String>, Value)> = rows
        .into_iter()
        .map(|row| (columns.iter().map(|(_, cell)| cell(&row)).collect::<Vec<_>>(), row))
        .filter(|(cells, _)| args.filter.as_ref().is_none_or(|text| cells.iter().any(|cell| cell.contains(text))))
        .collect();
    match args.output {
        Form::Json => {
            let rows: Vec<Value> = shown.into_iter().map(|(_, row)| row).collect();
            println!("{}", serde_json::to_string_pretty(&rows)?);
        }
        Form::Table => {
            let mut cells: Vec<Vec<String>> = shown.into_iter().map(|(cells, _)| cells).collect();
            cells.sort();
            cells.insert(0, columns.iter().map(|(title, _)| (*title).to_owned()).collect());
            print!("{}", table(&cells));
        }
    }
    Ok(())
}

/// Rows as aligned columns.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Text at a JSON pointer; a dash where there is none.
pub(super) fn at(row: &Value, pointer: &str) -> String {
    match row.pointer(pointer) {
        Some(Value::String(text)) if !text.is_empty() => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Array(items)) if !items.is_empty() => {
            let texts: Vec<String> =
                items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect();
            texts.join(",")
        }
        Some(Value::Object(map)) if !map.is_empty() => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{value}")).collect();
            pairs.join(",")
        }
        _ => "-".to_owned(),
    }
}

fn count(row: &Value, pointer: &str) -> String {
    let value = row.pointer(pointer);
    let length = value.and_then(Value::as_object).map(serde_json::Map::len);
    length.or_else(|| value.and_then(Value::as_array).map(Vec::len)).unwrap_or(0).to_string()
}

fn healthy(row: &Value) -> String {
    let endpoints = row.get("endpoints").and_then(Value::as_object);
    let healthy = endpoints.map_or(0, |all| {
        all.values().filter(|one| one.get("status").and_then(Value::as_str) == Some("Healthy")).count()
    });
    format!("{healthy}/{}", endpoints.map_or(0, serde_json::Map::len))
}

fn left(row: &Value) -> String {
    let now = dump::seconds(SystemTime::now());
    let Some(end) = row.get("not_after").and_then(Value::as_u64) else {
        return "-".to_owned();
    };
    match end.checked_sub(now) {
        Some(seconds) => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        None => "expired".to_owned(),
    }
}

fn side(row: &Value, side: &str) -> String {
    match (at(row, &format!("/{side}/workload")), at(row, &format!("/{side}/addr"))) {
        (workload, address) if workload == "-" => address,
        (workload, address) => format!("{}/{workload} {address}", at(row, &format!("/{side}/namespace"))),
    }
}

/// From which cluster to which.
fn clusters(row: &Value) -> String {
    format!("{}>{}", at(row, "/src/cluster"), at(row, "/dst/cluster"))
}

fn columns(list: List) -> &'static [Column] {
    match list {
        List::Workloads => &[
            ("NAMESPACE", |row| at(row, "/namespace")),
            ("NAME", |row| at(row, "/name")),
            ("ADDRESS", |row| at(row, "/workloadIps")),
            ("NETWORK", |row| at(row, "/network")),
            ("CLUSTER", |row| at(row, "/clusterId")),
            ("NODE", |row| at(row, "/node")),
            ("WAYPOINT", |row| at(row, "/waypoint/destination")),
            ("PROTOCOL", |row| at(row, "/protocol")),
            ("STATUS", |row| at(row, "/status")),
        ],
        List::Services => &[
            ("NAMESPACE", |row| at(row, "/namespace")),
            ("HOSTNAME", |row| at(row, "/hostname")),
            ("VIPS", |row| at(row, "/vips")),
            ("PORTS", |row| at(row, "/ports")),
            ("WAYPOINT", |row| at(row, "/waypoint/destination")),
            ("ENDPOINTS", healthy),
        ],
        List::Policies => &[
            ("NAMESPACE", |row| at(row, "/namespace")),
            ("NAME", |row| at(row, "/name")),
            ("ACTION", |row| at(row, "/action")),
            ("SCOPE", |row| at(row, "/scope")),
            ("RULES", |row| count(row, "/rules")),
            ("DRY-RUN", |row| at(row, "/dryRun")),
        ],
        List::Certificates => &[
            ("IDENTITY", |row| at(row, "/identity")),
            ("STATE", |row| at(row, "/state")),
            ("GENERATION", |row| at(row, "/generation")),
            ("VALID FOR", left),
        ],
        List::Connections => &[
            ("DIRECTION", |row| at(row, "/direction")),
            ("SOURCE", |row| side(row, "src")),
            ("DESTINATION", |row| side(row, "dst")),
            ("SERVICE", |row| at(row, "/service")),
            ("CLUSTERS", clusters),
            ("SECONDS", |row| at(row, "/seconds")),
            ("SENT", |row| at(row, "/bytesSent")),
            ("RECEIVED", |row| at(row, "/bytesReceived")),
        ],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_line_up_and_absent_values_are_dashes() {
        let row = json!({"namespace": "shop", "name": "", "workloadIps": ["10.0.0.1", "fd00::1"]});
        assert_eq!(at(&row, "/name"), "-");
        assert_eq!(at(&row, "/workloadIps"), "10.0.0.1,fd00::1");
        let rows = [vec!["A".to_owned(), "LONG".to_owned()], vec!["abc".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "A    LONG\nabc  x\n");
    }

    #[test]
    fn endpoints_are_counted_by_health() {
        let row = json!({"endpoints": {"a": {"status": "Healthy"}, "b": {"status": "Unhealthy"}}});
        assert_eq!(healthy(&row), "1/2");
    }
}
