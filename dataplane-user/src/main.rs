//! The one binary of Causeway: daemon and command line.

use std::process::ExitCode;

use causeway::ctl::show::List;
use causeway::{agent, ctl, observe, redirect};
use clap::{Parser, Subcommand};

/// musl has one lock around its allocator; workers share nothing else.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    Node(Box<agent::node::Args>),
    /// Make a root and per-cluster intermediate certificate authorities.
    Ca(ctl::ca::Args),
    /// Check a model file and say what is wrong with it.
    Validate(ctl::validate::Args),
    /// Print the JSON schema of the model file.
    Schema(ctl::schema::Args),
    /// Tell what the running kernel supports, feature by feature.
    Probe(ctl::probe::Args),
    /// Ask a running daemon how it is: readiness, model, pods, counters.
    Status(ctl::status::Args),
    /// Print all a running daemon knows, as one JSON document in the form of ztunnel's `config_dump`.
    Dump(ctl::dump::Args),
    /// List the workloads a running daemon knows.
    Workloads(ctl::show::Args),
    /// List the services a running daemon knows, with their endpoints.
    Services(ctl::show::Args),
    /// List the authorization policies a running daemon knows.
    Policies(ctl::show::Args),
    /// List the certificates a running daemon holds.
    Certs(ctl::show::Args),
    /// List the connections that are open now.
    Connections(ctl::show::Args),
    /// Watch rates and open connections of a running daemon.
    Top(ctl::top::Args),
    /// Expose, link and check clusters, by the contexts of a kubeconfig.
    Multicluster(Box<ctl::multicluster::Args>),
    /// Remove every program, pin, rule and sysctl change of an instance.
    Uninstall(ctl::uninstall::Args),
    /// Print what installs Causeway in a Kubernetes cluster, for those who do not use Helm.
    Install(ctl::install::Args),
    /// Take the annotation that says a pod is redirected off every pod of a Kubernetes cluster; run before an uninstallation.
    Unmark,
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
    /// The proc file system whose sysctl values are written.
    #[arg(long, default_value = "/proc")]
    proc: std::path::PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    observe::logging::start();
    let done = match cli.command {
        Command::Node(args) => agent::node::run(*args),
        Command::Ca(args) => ctl::ca::run(args),
        Command::Validate(args) => ctl::validate::run(args),
        Command::Schema(args) => ctl::schema::run(args),
        Command::Probe(args) => ctl::probe::run(args),
        Command::Status(args) => ctl::status::run(&args),
        Command::Dump(args) => ctl::dump::run(&args),
        Command::Workloads(args) => ctl::show::run(List::Workloads, &args),
        Command::Services(args) => ctl::show::run(List::Services, &args),
        Command::Policies(args) => ctl::show::run(List::Policies, &args),
        Command::Certs(args) => ctl::show::run(List::Certificates, &args),
        Command::Connections(args) => ctl::show::run(List::Connections, &args),
        Command::Top(args) => ctl::top::run(&args),
        Command::Multicluster(args) => return ctl::multicluster::run(*args),
        Command::Uninstall(args) => ctl::uninstall::run(args),
        Command::Install(args) => ctl::install::run(&args),
        Command::Unmark => ctl::unmark::run(),
        Command::NetnsHelper(args) => redirect::helper::serve(args.fd, &args.proc).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("causeway: {error}");
            ExitCode::FAILURE
        }
    }
}
