//! `causeway top`: what a daemon does now, again and again.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::show::{self, Form};
use crate::observe::admin::Topic;

/// Which daemon, and how often.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's admin socket.
    #[arg(long, value_name = "FILE", default_value = "/run/causeway/node.sock")]
    socket: PathBuf,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    /// Looks until it ends by itself; without end if absent.
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    /// How each look is written.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds between 0.1 and 3600".to_owned()),
    }
}

/// Counters whose rate is shown, by their name in the daemon's answer.
const RATES: [(&str, &str); 6] = [
    ("outbound", "outbound/s"),
    ("inbound", "inbound/s"),
    ("gateway", "gateway/s"),
    ("plaintext", "plaintext/s"),
    ("bytes_sent", "sent B/s"),
    ("bytes_received", "received B/s"),
];
/// Pairs of workloads shown.
const ROWS: usize = 15;

/// Prints until it is interrupted or has looked often enough.
///
/// # Errors
/// Nobody answers on the socket, or the output is closed.
pub fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let mut before: Option<(Instant, Value)> = None;
    let mut looks = 0;
    loop {
        let now = Instant::now();
        let status = show::ask(&args.socket, Topic::Status)?;
        let connections = show::ask(&args.socket, Topic::Connections)?;
        if let Some((then, earlier)) = &before {
            let seconds = now.duration_since(*then).as_secs_f64();
            let rates = rates(earlier, &status, seconds);
            let text = match args.output {
                Form::Json => {
                    format!("{}\n", json!({"rates": rates, "open": open(&status), "pairs": pairs(&connections)}))
                }
                Form::Table => screen(&status, &rates, &connections),
            };
            let mut out = io::stdout().lock();
            if args.output == Form::Table && out.is_terminal() {
                // Clears the screen and begins at its top.
                out.write_all(b"\x1b[2J\x1b[H")?;
            }
            out.write_all(text.as_bytes())?;
            out.flush()?;
            looks += 1;
            if args.count.is_some_and(|count| looks >= count) {
                return Ok(());
            }
        }
        before = Some((now, status));
        thread::sleep(Duration::from_secs_f64(args.interval));
    }
}

fn number(status: &Value, name: &str) -> u64 {
    status.pointer(&format!("/counters/{name}")).and_then(Value::as_u64).unwrap_or(0)
}

fn open(status: &Value) -> u64 {
    number(status, "open")
}

fn failures(status: &Value) -> u64 {
    let failed = status.pointer("/counters/failed").and_then(Value::as_object);
    failed.into_iter().flat_map(serde_json::Map::values).filter_map(Value::as_u64).sum()
}

fn rates(before: &Value, now: &Value, seconds: f64) -> BTreeMap<&'static str, f64> {
    let per_second = |earlier: u64, later: u64| later.saturating_sub(earlier) as f64 / seconds.max(0.001);
    let mut rates: BTreeMap<_, _> =
        RATES.iter().map(|(name, title)| (*title, per_second(number(before, name), number(now, name)))).collect();
    rates.insert("failed/s", per_second(failures(before), failures(now)));
    rates
}

/// Open connections by source and destination workload: how many, and their bytes.
fn pairs(connections: &Value) -> Vec<Value> {
    let mut pairs: BTreeMap<(String, String, String), (u64, u64)> = BTreeMap::new();
    for one in connections.as_array().into_iter().flatten() {
        let name = |side: &str| {
            let text = |key: &str| one.pointer(&format!("/{side}/{key}")).and_then(Value::as_str);
            match (text("namespace"), text("workload"), text("addr")) {
                (Some(namespace), Some(workload), _) => format!("{namespace}/{workload}"),
                (_, _, Some(address)) => address.rsplit_once(':').map_or(address, |(ip, _)| ip).to_owned(),
                _ => "-".to_owned(),
            }
        };
        let text = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
        let to = if text("service") == "-" { name("dst") } else { text("service") };
        let bytes = ["bytesSent", "bytesReceived"].iter().filter_map(|key| one.get(*key)?.as_u64()).sum::<u64>();
        let entry = pairs.entry((text("direction"), name("src"), to)).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    }
    let mut rows: Vec<_> = pairs.into_iter().collect();
    rows.sort_by_key(|(_, (count, bytes))| std::cmp::Reverse((*count, *bytes)));
    rows.into_iter()
        .map(|((direction, from, to), (open, bytes))| {
            json!({"direction": direction, "source": from, "destination": to, "open": open, "bytes": bytes})
        })
        .collect()
}

fn screen(status: &Value, rates: &BTreeMap<&'static str, f64>, connections: &Value) -> String {
    let pods = status.get("pods").and_then(Value::as_array).map_or(0, Vec::len);
    let mut text = format!("pods {pods}   open {}", open(status));
    for (title, rate) in rates {
        text.push_str(&format!("   {title} {rate:.0}"));
    }
    text.push_str("\n\n");
    let mut rows = vec![["DIRECTION", "SOURCE", "DESTINATION", "OPEN", "BYTES"].map(str::to_owned).to_vec()];
    for pair in pairs(connections).iter().take(ROWS) {
        let cell = |key: &str| match pair.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        rows.push(["direction", "source", "destination", "open", "bytes"].map(cell).to_vec());
    }
    text.push_str(&show::table(&rows));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_per_second() {
        let before = json!({"counters": {"outbound": 10, "failed": {"connect": 1}}});
        let now = json!({"counters": {"outbound": 30, "failed": {"connect": 3, "backend": 2}}});
        let rates = rates(&before, &now, 2.0);
        assert_eq!(rates.get("outbound/s"), Some(&10.0));
        assert_eq!(rates.get("failed/s"), Some(&2.0));
    }

    #[test]
    fn connections_of_one_pair_are_added_up() {
        let one = json!({"direction": "outbound", "service": "web", "bytesSent": 3, "bytesReceived": 4,
            "src": {"namespace": "shop", "workload": "client"}, "dst": {"addr": "10.0.0.1:80"}});
        let pairs = pairs(&json!([one, one]));
        assert_eq!(pairs.len(), 1);
        assert_eq!(pairs.first().and_then(|pair| pair.get("open")).and_then(Value::as_u64), Some(2));
        assert_eq!(pairs.first().and_then(|pair| pair.get("bytes")).and_then(Value::as_u64), Some(14));
    }
}
