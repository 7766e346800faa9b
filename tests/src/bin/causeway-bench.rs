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
}

fn main() -> ExitCode {
    let Cli { rounds, only, json } = Cli::parse();
    testkit::bench::run(&testkit::bench::Options { rounds, only, json })
}
