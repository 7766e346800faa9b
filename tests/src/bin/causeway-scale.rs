//! Memory and speed of a large mesh model.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Measures a model of 100,000 workloads in 10,000 services: memory, time to apply 10,000 changed endpoints, and what readers
/// and, as root, real connections notice of it.
#[derive(Parser)]
struct Cli {
    /// Rounds of changes.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Workloads.
    #[arg(long, default_value_t = 100_000)]
    workloads: u32,
    /// Services.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints that change in a round.
    #[arg(long, default_value_t = 10_000)]
    changes: u32,
    /// The measuring half: it reads messages that the other half has written, so that making them costs it nothing.
    #[arg(long, hide = true)]
    measure: Option<PathBuf>,
}

/// Real connections, where a node can run.
fn live(cli: &Cli) -> testkit::Result<()> {
    if !testkit::sys::is_root() {
        println!("connections through a running node: skipped: needs root (namespaces, cgroups, eBPF)");
        return Ok(());
    }
    testkit::sys::catch_interrupts();
    testkit::bench::live::run(cli.workloads, cli.services, cli.changes, cli.rounds)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.measure {
        Some(folder) => testkit::bench::scale::measure(folder, cli.rounds),
        None => {
            testkit::bench::scale::run(cli.workloads, cli.services, cli.changes, cli.rounds).and_then(|()| live(&cli))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway-scale: {error}");
            ExitCode::FAILURE
        }
    }
}
