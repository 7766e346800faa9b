//! `cargo xtask demo`: see [`testkit::demo`].

use clap::Parser;
use std::process::ExitCode;

/// Two clusters with one pod range on this machine
#[derive(Parser)]
struct Cli {
    /// On real Kubernetes clusters instead
    #[arg(long)]
    kubernetes: bool,
    /// Leave everything running at the end and say how to look around
    #[arg(long)]
    keep: bool,
    /// Take down what --keep left running, and do nothing else
    #[arg(long, conflicts_with_all = ["keep", "json", "check_clean"])]
    down: bool,
    /// Print one JSON document instead of prose
    #[arg(long)]
    json: bool,
    /// Fail if a namespace, cgroup, pin, rule or process is left at the end
    #[arg(long)]
    check_clean: bool,
}

fn main() -> ExitCode {
    let Cli { kubernetes, keep, down, json, check_clean } = Cli::parse();
    if kubernetes && down {
        return match testkit::demo::kubernetes::down() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let options = testkit::demo::Options { keep, json, check_clean };
    if kubernetes {
        return testkit::demo::kubernetes::run(options);
    }
    if down {
        testkit::topology::stale_cleanup();
        return ExitCode::SUCCESS;
    }
    testkit::demo::run(options)
}
