//! `cargo xtask`: everything a newcomer or a CI machine needs, from installing packages to the closing line of the tests.
//! Each command does what it needs first, so any of them may be the first one ever run in a fresh clone.

// The test kit ends the demo with the same piece, and depends on nothing of this program.
#[path = "../../tests/src/bpffs.rs"]
mod bpffs;
mod cluster;
mod control_plane;
mod ebpf;
mod envoy;
mod image;
mod kernels;
mod lint;
mod manifests;
mod packages;
mod paths;
mod setup;
mod sh;
mod tiers;
mod toolchain;

use clap::{Parser, Subcommand};
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

/// What an error of a step looks like: a text for a person, already naming the remedy.
type Result<T> = std::result::Result<T, String>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, build, demo, tests and benchmarks of Causeway", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building, testing and the demo need
    Setup {
        /// Also what one tier alone needs
        #[arg(long, value_enum)]
        with: Vec<setup::Extra>,
    },
    /// Build the kernel programs and the daemon
    Build,
    /// Two clusters with one pod range on this machine: show what Causeway does, then clean up
    Demo {
        /// On two real Kubernetes clusters, installed and linked by the commands a person would use
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
    },
    /// Run the tests, by tier
    Test {
        /// Only this tier; without it every tier this machine allows
        #[arg(long, value_enum)]
        tier: Option<tiers::Tier>,
        /// Also run the netns tier inside virtual machines with these kernels, for example 6.1,6.12
        #[arg(long, value_delimiter = ',')]
        kernels: Vec<String>,
        /// Only tests whose name contains this text
        filter: Option<String>,
    },
    /// Compare raw TCP, an iptables relay and Causeway on one topology, interleaved
    Bench {
        /// Rounds of every scenario; the table shows the median and the range
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        /// Also write the results to this JSON file
        #[arg(long)]
        json: Option<std::path::PathBuf>,
        /// Instead: memory and speed of a mesh model of 100,000 workloads and 10,000 services
        #[arg(long)]
        scale: bool,
        /// Instead: new connections to a node port, with and without 10,000 rules of kube-proxy's kind
        #[arg(long, conflicts_with_all = ["scale", "json"])]
        node_port: bool,
    },
    /// Real Kubernetes clusters on this machine
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// Write the daemon as an image that every container runtime imports (amd64; there is no cross build for arm64)
    Image {
        /// Registry, name and tag; without it the tag names the commit
        #[arg(long)]
        name: Option<String>,
        /// Where to write the archive
        #[arg(long)]
        out: Option<std::path::PathBuf>,
        /// The program as tests use it, with the libraries it needs: for clusters on this machine alone
        #[arg(long)]
        quick: bool,
    },
    /// Render the plain manifests from the chart
    Manifests {
        /// Only say whether they are what the chart renders
        #[arg(long)]
        check: bool,
    },
    /// Say what the running kernel supports, feature by feature
    Probe,
    /// Check import arrows between rooms and file sizes
    Lint,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("\nerror: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    toolchain::check_rustc()?;
    match command {
        Command::Setup { with } => {
            setup::run()?;
            setup::extras(&with)?;
        }
        Command::Build => build()?,
        Command::Demo { kubernetes, keep, down, json, check_clean } => {
            let mut args = Vec::new();
            args.extend(kubernetes.then_some("--kubernetes"));
            args.extend(down.then_some("--down"));
            args.extend(keep.then_some("--keep"));
            args.extend(json.then_some("--json"));
            args.extend(check_clean.then_some("--check-clean"));
            root_for("demo")?;
            build()?;
            if kubernetes && !down {
                setup::extras(&[setup::Extra::Kubernetes])?;
            }
            return program("causeway-demo", &args);
        }
        Command::Test { tier, kernels, filter } => {
            return tiers::run(tier, &kernels, filter.as_deref());
        }
        Command::Bench { scale: true, rounds, .. } => {
            if packages::is_root() {
                build()?;
            } else {
                sh::step("building the benchmark");
                sh::cargo(&["build", "--release", "--workspace", "--bins"])?;
            }
            return program("causeway-scale", &["--rounds", &rounds.to_string()]);
        }
        Command::Bench { rounds, json, node_port, .. } => {
            let mut args = vec!["--rounds".to_owned(), rounds.to_string()];
            args.extend(node_port.then(|| "--node-port".to_owned()));
            if let Some(path) = json {
                args.extend(["--json".to_owned(), path.display().to_string()]);
            }
            root_for("bench")?;
            build()?;
            return program("causeway-bench", &args);
        }
        Command::Probe => {
            build()?;
            return program("causeway", &["probe"]);
        }
        Command::Cluster { action } => cluster::run(action)?,
        Command::Image { name, out, quick } => {
            let made = if quick { image::quick::run } else { image::run };
            made(name.as_deref(), out.as_deref())?;
        }
        Command::Manifests { check } => manifests::run(check)?,
        Command::Lint => lint::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Packages, kernel programs, then the daemon and the programs of the test kit, in the one profile everything uses.
fn build() -> Result<()> {
    setup::run()?;
    ebpf::build()?;
    sh::step("building the daemon and the test programs");
    // The whole workspace, here and in the tests: one choice of features, so that nothing is compiled twice.
    sh::cargo(&["build", "--release", "--workspace", "--bins"])
}

/// Says before the long build that the command will not work without root.
fn root_for(command: &str) -> Result<()> {
    if packages::is_root() {
        return Ok(());
    }
    Err(format!("namespaces, cgroups and eBPF need root: sudo -E env \"PATH=$PATH\" cargo xtask {command}"))
}

/// Becomes one of our own programs, so that Ctrl-C reaches it alone and the terminal waits until it has cleaned up.
fn program<S: AsRef<std::ffi::OsStr>>(name: &str, args: &[S]) -> Result<ExitCode> {
    let path = paths::release().join(name);
    let error = std::process::Command::new(&path).args(args).exec();
    Err(format!("cannot start {}: {error}", path.display()))
}
