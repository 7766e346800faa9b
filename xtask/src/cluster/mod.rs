//! `cargo xtask cluster`: real Kubernetes clusters on this machine, for development, the demo and the tests. A node is a set of
//! namespaces with its own containerd and kubelet; no container engine is needed, and nothing outside the clusters is changed.

mod addons;
mod cgroups;
mod clean;
pub mod interrupt;
mod layout;
mod node;
mod parts;
mod pki;
mod plane;
mod providers;
mod runtime;
mod shell;
mod status;
mod store;
mod template;

use crate::{Result, packages, sh};
use clap::Subcommand;
use layout::{Cluster, MOST, Node, Proxy, Shape};
use node::Daemon;
use providers::Provider;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::Instant;

pub use parts::{install, missing};

/// What can be done with clusters.
#[derive(Subcommand)]
pub enum Action {
    /// Make clusters whose pods and services share their ranges, and wait until they are ready
    Up {
        /// How many
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST)))]
        clusters: u8,
        /// Nodes of each
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST)))]
        nodes: u8,
        /// How kube-proxy translates service addresses
        #[arg(long, value_enum, default_value = "iptables")]
        proxy_mode: Proxy,
        /// Who makes the nodes
        #[arg(long, value_enum, default_value_t)]
        provider: Provider,
        /// Print the commands of kind, minikube or k3d instead of running them
        #[arg(long)]
        dry_run: bool,
    },
    /// End the clusters; fails if anything is left of them
    Down,
    /// What runs, and how to get there
    Status,
    /// What names of these clusters begin with in the kernel
    #[command(hide = true)]
    Tag,
    /// kubectl as a cluster's administrator
    Kubectl {
        /// The cluster's number
        cluster: u8,
        /// What kubectl is told
        #[arg(last = true)]
        words: Vec<OsString>,
    },
    /// Helm as a cluster's administrator
    Helm {
        /// The cluster's number
        cluster: u8,
        /// What Helm is told
        #[arg(last = true)]
        words: Vec<OsString>,
    },
    /// A program in the namespaces of a node, or outside of all nodes
    Exec {
        /// A node such as c1n2, or `wan`
        place: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        words: Vec<OsString>,
    },
    /// A shell outside of all nodes with kubectl, helm, causeway and a context for each cluster
    Shell {
        /// A line for it; without one it is yours
        #[arg(last = true)]
        words: Vec<OsString>,
    },
    /// Import an image archive on every node of a cluster
    Load {
        /// The cluster's number
        cluster: u8,
        /// A Docker or OCI archive
        archive: PathBuf,
    },
    /// End a daemon of a node
    Stop {
        /// A node such as c1n2
        node: String,
        /// One that `status` names
        daemon: String,
    },
    /// Start a daemon again that was ended
    Start {
        /// A node such as c1n2
        node: String,
        /// One that `status` names
        daemon: String,
    },
}

/// Does it.
///
/// # Errors
/// What failed, and what to do about it.
pub fn run(action: Action) -> Result<()> {
    if let Action::Up { clusters, nodes, proxy_mode: proxy, provider, dry_run } = action {
        let shape = Shape { clusters, nodes, proxy };
        if provider != Provider::Namespaces {
            return provider.up(shape, dry_run);
        }
        if dry_run {
            return Err("the provider `namespaces` has no commands to print; ask for kind, minikube or k3s".to_owned());
        }
        root()?;
        return up(shape);
    }
    root()?;
    match action {
        Action::Up { .. } => Ok(()),
        Action::Tag => {
            println!("{}", layout::tag());
            Ok(())
        }
        Action::Down => clean::down(false),
        Action::Status => match running()? {
            Some(shape) => status::print(shape),
            None => Err("no clusters are up: cargo xtask cluster up".to_owned()),
        },
        Action::Kubectl { cluster, words } => become_program(plane::kubectl(known(cluster)?).args(words)),
        Action::Helm { cluster, words } => become_program(plane::helm_command(known(cluster)?).args(words)),
        Action::Exec { place, words } => exec(&place, &words),
        Action::Shell { words } => {
            running()?.ok_or("no clusters are up: cargo xtask cluster up")?;
            become_program(&mut shell::command(&words)?)
        }
        Action::Load { cluster, archive } => load(known(cluster)?, &archive),
        Action::Stop { node, daemon } => stop(find(&node, &daemon)?, &daemon),
        Action::Start { node, daemon } => start(find(&node, &daemon)?, &daemon),
    }
}

fn root() -> Result<()> {
    if packages::is_root() {
        return Ok(());
    }
    Err("nodes are namespaces and cgroups, which need root: sudo -E env \"PATH=$PATH\" cargo xtask cluster …"
        .to_owned())
}

/// The clusters that `up` has finished, unless something of them is missing.
fn running() -> Result<Option<Shape>> {
    let line = fs::read_to_string(layout::state().join("shape")).unwrap_or_default();
    match (Shape::parse(&line), clean::leftovers().is_empty()) {
        (Some(shape), false) => Ok(Some(shape)),
        (_, true) => Ok(None),
        (None, false) => Err("parts of clusters are there that never got ready: cargo xtask cluster down".to_owned()),
    }
}

/// The program Helm.
///
/// # Errors
/// If it was not built.
pub fn helm() -> Result<PathBuf> {
    let path = parts::program("helm");
    if path.is_file() { Ok(path) } else { Err("helm is missing: cargo xtask setup --with kubernetes".to_owned()) }
}

/// Whether clusters are up, in whatever shape.
pub fn are_up() -> bool {
    !clean::leftovers().is_empty()
}

fn known(number: u8) -> Result<Cluster> {
    let shape = running()?.ok_or("no clusters are up: cargo xtask cluster up")?;
    let found = shape.clusters().find(|cluster| cluster.0 == number);
    found.ok_or_else(|| format!("there is no cluster {number}: 1 to {}", shape.clusters))
}

fn up(shape: Shape) -> Result<()> {
    match running()? {
        Some(there) if there == shape => return status::print(shape),
        Some(there) => {
            return Err(format!(
                "{} clusters of {} nodes are up, with kube-proxy in {} mode: cargo xtask cluster down",
                there.clusters,
                there.nodes,
                there.proxy.name()
            ));
        }
        None => {}
    }
    install()?;
    interrupt::watch()?;
    let begin = Instant::now();
    let made = clean::down(false).and_then(|()| build(shape, begin));
    if let Err(error) = made {
        sh::step("cleaning up");
        clean::down(true).map_err(|left| format!("{error}\n{left}"))?;
        return Err(format!("{error}\n(everything was taken down; logs are in {})", layout::state().display()));
    }
    sh::step(&format!("{} clusters are ready after {} s", shape.clusters, begin.elapsed().as_secs()));
    println!("{}", status::how());
    Ok(())
}

fn build(shape: Shape, begin: Instant) -> Result<()> {
    let state = layout::state();
    fs::create_dir_all(&state).map_err(|error| format!("cannot create {}: {error}", state.display()))?;
    sh::step(&format!("making {} clusters of {} nodes", shape.clusters, shape.nodes));
    node::create_outside()?;
    pki::root()?;
    let (done, progress) = mpsc::channel();
    std::thread::scope(|scope| {
        let threads: Vec<_> = shape
            .clusters()
            .map(|cluster| {
                let done = done.clone();
                scope.spawn(move || build_cluster(cluster, shape, &done))
            })
            .collect();
        drop(done);
        for line in progress {
            sh::step(&format!("{:3} s  {line}", begin.elapsed().as_secs()));
        }
        let results =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())));
        results.collect::<Vec<_>>().into_iter().collect::<Result<Vec<()>>>()
    })?;
    let all: Vec<Cluster> = shape.clusters().collect();
    node::write(&state.join("kubeconfig"), &pki::kubeconfig(&all)?)?;
    node::write(&state.join("shape"), &shape.line())
}

fn build_cluster(cluster: Cluster, shape: Shape, done: &mpsc::Sender<String>) -> Result<()> {
    let say = |what: &str| drop(done.send(format!("{}: {what}", cluster.name())));
    pki::api(cluster)?;
    pki::authority(cluster)?;
    let nodes = shape.nodes_of(cluster);
    for node in &nodes {
        runtime::configure(*node, shape.proxy)?;
        store::lend(*node)?;
        node::create(*node, shape)?;
        runtime::containerd(*node)?;
    }
    say("nodes");
    plane::start(cluster)?;
    say("API server");
    let mut daemons = Vec::new();
    for node in &nodes {
        daemons.extend(<[Daemon; 2]>::from(runtime::kubelet_and_proxy(*node)?));
    }
    addons::publish(cluster)?;
    say("CoreDNS and istiod are installed");
    addons::wait(cluster, shape, &mut daemons.iter_mut().collect::<Vec<_>>())?;
    say("ready");
    Ok(())
}

fn load(cluster: Cluster, archive: &std::path::Path) -> Result<()> {
    let shape = running()?.ok_or("no clusters are up: cargo xtask cluster up")?;
    shape.nodes_of(cluster).into_iter().try_for_each(|node| runtime::load(node, archive))
}

fn find(name: &str, daemon: &str) -> Result<Node> {
    let shape = running()?.ok_or("no clusters are up: cargo xtask cluster up")?;
    let node = Node::parse(name).filter(|node| shape.all_nodes().contains(node));
    let node = node.ok_or_else(|| format!("there is no node {name}: cargo xtask cluster status"))?;
    if daemon == "init" || !status::daemons(node).any(|name| name == daemon) {
        return Err(format!("node {name} has no daemon {daemon}: cargo xtask cluster status"));
    }
    Ok(node)
}

fn stop(node: Node, daemon: &str) -> Result<()> {
    let file = cgroups::of(node, daemon)?.join("cgroup.kill");
    fs::write(&file, "1").map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let what = format!("{}: end of {daemon}", node.name());
    node::until(&what, std::time::Duration::from_secs(20), &mut [], || !cgroups::is_alive(node, daemon))
}

fn start(node: Node, daemon: &str) -> Result<()> {
    if cgroups::is_alive(node, daemon) {
        return Err(format!("{daemon} of {} runs", node.name()));
    }
    let mut started = node::start_again(node, daemon)?;
    if daemon == "apiserver" {
        return plane::wait_api(node.cluster(), &mut [&mut started]);
    }
    let what = format!("{}: {daemon}", node.name());
    node::until(&what, std::time::Duration::from_secs(20), &mut [&mut started], || cgroups::is_alive(node, daemon))
}

fn exec(place: &str, words: &[OsString]) -> Result<()> {
    if place == "wan" {
        let program = words.first().ok_or("a program is needed")?;
        return become_program(plane::outside(program.as_ref()).args(words.iter().skip(1)));
    }
    let node = Node::parse(place).ok_or_else(|| format!("{place} is no node: cargo xtask cluster status"))?;
    let enter = node::enter(node)?;
    // A program of a node is in the node's cgroup, as one that was started there would be.
    for path in cgroups::joins(node, "init")? {
        fs::write(&path, std::process::id().to_string()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    become_program(Command::new("nsenter").args(enter.iter().skip(1)).args(words))
}

fn become_program(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    Err(format!("cannot start {name}: {}", command.exec()))
}
