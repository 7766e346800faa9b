//! The one binary of Causeway: daemon and command line.

use std::{io::IsTerminal, process::ExitCode};

use causeway::{agent, ctl, redirect};
use clap::{Parser, Subcommand};

/// eBPF-accelerated redirection dataplane for ambient multicluster meshes.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this node: enrol its pods, redirect, tunnel; and the gateway role where the model gives it.
    Node(agent::node::Args),
    /// Make a root and per-cluster intermediate certificate authorities.
    Ca(ctl::ca::Args),
    /// Check a model file and say what is wrong with it.
    Validate(ctl::validate::Args),
    /// Print the JSON schema of the model file.
    Schema(ctl::schema::Args),
    /// Tell what the running kernel supports, feature by feature.
    Probe(ctl::probe::Args),
    /// Ask a running daemon how it is.
    Status(ctl::status::Args),
    /// Remove every program, pin, rule and sysctl change of an instance.
    Uninstall(ctl::uninstall::Args),
    /// The part that enters pods' network namespaces; started by the daemon.
    #[command(hide = true)]
    NetnsHelper(HelperArgs),
}

/// The channel to the daemon.
#[derive(clap::Args)]
struct HelperArgs {
    /// Number of the inherited descriptor.
    #[arg(long)]
    fd: i32,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let done = match cli.command {
        Command::Node(args) => agent::node::run(args),
        Command::Ca(args) => ctl::ca::run(args),
        Command::Validate(args) => ctl::validate::run(args),
        Command::Schema(args) => ctl::schema::run(args),
        Command::Probe(args) => ctl::probe::run(args),
        Command::Status(args) => ctl::status::run(args),
        Command::Uninstall(args) => ctl::uninstall::run(args),
        Command::NetnsHelper(args) => redirect::helper::serve(args.fd).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {error}");
            ExitCode::FAILURE
        }
    }
}
