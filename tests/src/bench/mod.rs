//! The benchmark: several ways from a client to a server on one topology, measured in turns, so that whatever else the
//! machine does meets all of them. Figures are ratios to plain TCP of the same round, with their range.

pub mod live;
mod machine;
pub mod node_port;
pub mod scale;
mod stage;
mod table;

use crate::{Result, context, sys};
use serde::{Deserialize, Serialize};
use stage::{Contender, Stage};
use std::path::PathBuf;
use std::process::ExitCode;

/// What the person at the terminal asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rounds of every contender.
    pub rounds: u32,
    /// Names of the contenders wanted beside plain TCP; none means all.
    pub only: Vec<String>,
    /// Where to write the results as JSON as well.
    pub json: Option<PathBuf>,
}

/// What one contender did in one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    /// One stream, Gbit/s.
    pub stream_gbit_per_s: f64,
    /// CPU time of the whole machine, kernel included, per GiB of that stream.
    pub machine_cpu_s_per_gib: f64,
    /// CPU time of the proxies alone (daemons or relays) per GiB of that stream.
    pub proxy_cpu_s_per_gib: f64,
    /// Round trips per second on 64 connections.
    pub ping_pong_per_s: f64,
    /// Their median.
    pub ping_pong_p50_us: f64,
    /// The slowest of a hundred.
    pub ping_pong_p99_us: f64,
    /// New connections per second, each used for one exchange.
    pub connections_per_s: f64,
    /// Connections that failed; more than none spoils the round.
    pub connections_failed: u64,
    /// Median time of `connect`.
    pub connect_p50_us: f64,
    /// The fastest `connect`.
    pub connect_min_us: f64,
}

/// All rounds of one contender.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Its name.
    pub name: &'static str,
    /// Its path in words.
    pub path: &'static str,
    /// Its rounds.
    pub rounds: Vec<Round>,
}

/// Runs the benchmark and prints its table.
pub fn run(options: &Options) -> ExitCode {
    sys::catch_interrupts();
    match measure(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<()> {
    let known = |name: &String| Contender::ALL.iter().any(|contender| contender.name() == name);
    if let Some(name) = options.only.iter().find(|name| !known(name)) {
        let names = Contender::ALL.map(Contender::name).join(", ");
        return Err(format!("--only {name}: there are {names}").into());
    }
    let wanted = |contender: &Contender| {
        options.only.is_empty()
            || *contender == Contender::Raw
            || options.only.iter().any(|name| name == contender.name())
    };
    eprintln!("bench: building the topology");
    let mut stage = Stage::build()?;
    let possible = |contender: &Contender| contender.is_possible() && wanted(contender);
    let contenders: Vec<Contender> = Contender::ALL.into_iter().filter(possible).collect();
    if Contender::ALL.iter().any(|contender| wanted(contender) && !contender.is_possible()) {
        eprintln!("bench: without ztunnel: CAUSEWAY_TEST_ZTUNNEL=path names no program");
    }
    let mut results: Vec<Results> = contenders
        .iter()
        .map(|contender| Results { name: contender.name(), path: contender.path(), rounds: Vec::new() })
        .collect();
    for number in 1..=options.rounds {
        for (contender, results) in contenders.iter().copied().zip(&mut results) {
            let round = stage.round(contender).map_err(context(contender.name()))?;
            eprintln!(
                "bench: round {number} of {}: {:<8} {:6.2} Gbit/s  {:7.0} round trips/s  {:6.0} connections/s",
                options.rounds,
                contender.name(),
                round.stream_gbit_per_s,
                round.ping_pong_per_s,
                round.connections_per_s
            );
            results.rounds.push(round);
        }
    }
    stage.close()?;
    let machine = machine::describe();
    println!("{}", table::markdown(&machine, &results));
    if let Some(path) = &options.json {
        let document = serde_json::json!({"machine": machine, "contenders": results});
        std::fs::write(path, format!("{document:#}\n")).map_err(context(path.display()))?;
    }
    let failed: u64 = results.iter().flat_map(|results| &results.rounds).map(|round| round.connections_failed).sum();
    if failed > 0 { Err(format!("{failed} connections failed").into()) } else { Ok(()) }
}
