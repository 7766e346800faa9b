//! `cargo xtask bench`: see [`testkit::bench`].

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Plain TCP, an iptables relay, Causeway and, with CAUSEWAY_TEST_ZTUNNEL=path, ztunnel on one topology, interleaved
#[derive(Parser)]
struct Cli {
    /// Rounds of every contender
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only these contenders: raw, relay, single, ztunnel, nested, ztunnel-nested (raw is always measured)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Also write the results to this JSON file
    #[arg(long)]
    json: Option<PathBuf>,
    /// New connections to a node port instead, with and without 10,000 rules of kube-proxy's kind
    #[arg(long)]
    node_port: bool,
}

fn main() -> ExitCode {
    let Cli { rounds, only, json, node_port } = Cli::parse();
    if node_port {
        testkit::sys::catch_interrupts();
        return match testkit::bench::node_port::run(rounds) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    testkit::bench::run(&testkit::bench::Options { rounds, only, json })
}
