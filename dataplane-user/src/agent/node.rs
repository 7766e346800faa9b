//! The control side of a node: model, enrolment, certificates, signals, admin socket.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};
use tracing::{error, info, warn};

use super::{
    answers::Answers,
    certificates, cgroups, control_plane,
    enrolment::Enrolments,
    environment::Settings,
    kubernetes,
    node_ports::NodePorts,
    proof::{Proofs, Proving},
    worker::{self, Command, Shared},
};
use crate::{
    dns::Reserved,
    identity::{IdentityError, TrustBundle},
    istio::xds_settings::Environment,
    observe::{access_log::AccessLog, admin, connections::Connections, counters::Counters, http, traffic::Traffic},
    redirect::{
        Exclusions, RedirectConfig, Redirector,
        helper::{Helper, Spawn},
        keep_buffers, online_cpus,
        privileges::{Role, keep_only},
        raise_nofile_limit,
    },
    state::{Enrolment, Model, ModelStore, file},
};

/// How often the model file and the kernel's counters are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Length of the accept queue of a gateway's listener.
const BACKLOG: i32 = 8192;

/// What the daemon is started with.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The mesh model of this node, a YAML file (see `causeway schema`); it is watched. Not needed with --kubernetes.
    #[arg(long, value_name = "FILE", required_unless_present = "kubernetes")]
    pub model: Option<PathBuf>,
    /// Pods of the Kubernetes API.
    #[command(flatten)]
    pub pods: kubernetes::Args,
    /// Name of this node's kernel state; two daemons on one kernel need two names.
    #[arg(long, default_value = "node")]
    pub instance: String,
    /// The node's cgroup-2 root.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
    /// The cgroup all pods are below, absolute or below the root; found there if absent.
    #[arg(long, value_name = "DIR")]
    pub pods_cgroup: Option<PathBuf>,
    /// Where the BPF file system is, or shall be mounted.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Folder of the admin socket `<instance>.sock`.
    #[arg(long, value_name = "DIR", default_value = "/run/causeway")]
    pub run_dir: PathBuf,
    /// Worker threads; one per CPU if absent.
    #[arg(long)]
    pub workers: Option<usize>,
    /// Tie each worker to its CPU: lower latency on a node with idle cores, less throughput on a busy one.
    #[arg(long)]
    pub pin_workers: bool,
    /// How long open connections may go on after SIGTERM, in seconds; without it what the environment says
    /// (CONNECTION_TERMINATION_DEADLINE, else TERMINATION_GRACE_PERIOD_SECONDS less 5), else 5.
    #[arg(long, value_name = "SECONDS")]
    pub drain: Option<u64>,
    /// File for the access log; standard output if absent.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Where state is shown and the log level set: loopback only. Port 0 turns it off.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000", value_parser = loopback)]
    pub admin_address: SocketAddr,
    /// Where metrics are scraped. Port 0 turns it off.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15020")]
    pub stats_address: SocketAddr,
    /// Where readiness is asked for. Port 0 turns it off.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15021")]
    pub readiness_address: SocketAddr,
}

/// An address that only this node's own processes reach.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|error| format!("{error}"))?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("whoever reaches this port can end the daemon: it must be a loopback address".to_owned())
    }
}

impl Args {
    /// The HTTP servers wanted.
    fn ports(&self) -> impl Iterator<Item = (http::Port, SocketAddr)> {
        [
            (http::Port::Admin, self.admin_address),
            (http::Port::Stats, self.stats_address),
            (http::Port::Readiness, self.readiness_address),
        ]
        .into_iter()
        .filter(|(_, address)| address.port() != 0)
    }
}

/// Any failure that ends the daemon, in words.
pub type Failure = Box<dyn std::error::Error>;

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// What kept the daemon from starting: a model that is not valid, a certificate authority that cannot be used, a
/// privilege or kernel feature that is missing.
pub fn run(args: Args) -> Result<(), Failure> {
    let environment = Environment::of_process();
    let cpus = online_cpus()?;
    let settings = Settings::read(&environment, cpus.len())?;
    let workers = args.workers.or(settings.workers).unwrap_or(cpus.len()).max(1);
    // Started before any thread exists, so that it inherits nothing but its channel.
    let helper = Spawn::new(workers).proc(&args.pods.proc).start()?;
    raise_nofile_limit()?;
    keep_buffers();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Node::serve(args, (&environment, settings), &cpus, workers, helper))
}

struct Node {
    enrolments: Enrolments,
    node_ports: NodePorts,
    /// Pods that the Kubernetes API wants enrolled, where it is followed.
    pods: Option<kubernetes::Pods>,
    /// Workloads that the model file wants enrolled.
    filed: Vec<Enrolment>,
    file: Option<(PathBuf, file::Watch)>,
    shared: Arc<Shared>,
    workers: Vec<worker::Handle>,
    gateway: Vec<SocketAddr>,
    /// What the environment says for what the file leaves out.
    defaults: file::Defaults,
    /// Notified when the admin interface is asked to end the daemon.
    quit: Arc<Notify>,
}

impl Node {
    async fn serve(
        args: Args,
        (environment, settings): (&Environment, Settings),
        cpus: &[usize],
        workers: usize,
        mut helper: Helper,
    ) -> Result<(), Failure> {
        let defaults = args.pods.entry(settings.defaults, environment)?;
        let drain_time = args.drain.map_or(settings.drain, Duration::from_secs);
        let (model, file) = match args.model.clone() {
            Some(path) => {
                let text = file::read(&path)?;
                let model = file::parse_with(&text, &path, &defaults)?;
                let watch = file::Watch::new(&path, text);
                (model, Some((path, watch)))
            }
            None => (file::parse_with(kubernetes::MODEL, Path::new("(environment)"), &defaults)?, None),
        };
        let credentials = certificates::open(&model.node, environment)?;
        credentials.set_trust(trust(&model)?)?;
        let counters = Arc::new(Counters::default());
        let exclusions = exclusions(&model);
        let channels = helper.take_channels();
        let cgroup_root = cgroups::root(&args.cgroup_root);
        let pods_cgroup = cgroups::pods(&cgroup_root, args.pods_cgroup.as_deref())?;
        let mut redirector = Redirector::start(
            RedirectConfig {
                bpffs: args.bpffs.clone(),
                exclusions,
                workers,
                proc: args.pods.proc.clone(),
                node_netns: args.pods.kubernetes.then(|| args.pods.proc.join("1/ns/net")),
                ..RedirectConfig::new(args.instance.clone(), cgroup_root, pods_cgroup)
            },
            helper,
        )?;
        // Before any further thread is started: threads inherit what is left.
        keep_only(Role::Engine)?;
        let mut registry = Registry::default();
        let traffic = Arc::new(Traffic::new(&mut registry));
        let log = AccessLog::start(args.log_file.as_deref(), &model.node, counters.clone(), traffic.clone())?;
        if let Some(events) = redirector.events()? {
            tokio::spawn(events);
        }
        let node = model.node.clone();
        let model = Arc::new(ModelStore::new(model));
        let control_planes = control_plane::start(&node, &model, environment)?;
        let shared = Arc::new(Shared {
            model,
            control_planes,
            credentials,
            original: redirector.original_dst(),
            dns_servers: redirector.dns_servers()?,
            reserved: Reserved::default(),
            node_ports: Default::default(),
            log,
            connections: Arc::new(Connections::new(counters.clone(), traffic)),
            counters,
            proofs: Proofs::default(),
        });
        let (drain, draining) = watch::channel(false);
        let mut handles = Vec::with_capacity(workers);
        for ((number, channel), cpu) in channels.into_iter().enumerate().zip(cpus.iter().copied().cycle()) {
            let cpu = args.pin_workers.then_some(cpu);
            handles.push(worker::start(number, cpu, shared.clone(), channel, draining.clone())?);
        }
        let filed = node.enrol.clone();
        let pods = if args.pods.kubernetes {
            Some(kubernetes::Pods::start(&args.pods, &node, defaults.dns, redirector.adopted())?)
        } else {
            None
        };
        let mut enrolments = Enrolments::new(redirector);
        enrolments.report().from_api = pods.is_some();
        enrolments.proving = pods.as_ref().map(|pods| Proving::new(shared.clone(), pods.outcomes()));
        let mut node = Node {
            enrolments,
            node_ports: NodePorts::new(pods.as_ref().map(kubernetes::Pods::steering)),
            pods,
            filed,
            file,
            shared,
            workers: handles,
            gateway: Vec::new(),
            defaults,
            quit: Arc::default(),
        };
        node.take_pods();
        node.apply()?;
        tokio::spawn(node.shared.credentials.clone().run());
        tokio::spawn(certificates::follow(node.shared.clone()));
        std::fs::create_dir_all(&args.run_dir)?;
        let path = args.run_dir.join(format!("{}.sock", args.instance));
        let answers = Arc::new(Answers {
            report: node.enrolments.shared_report(),
            shared: node.shared.clone(),
            registry,
            quit: node.quit.clone(),
        });
        let about = answers.clone();
        let socket = admin::serve(&path, Arc::new(move |topic| about.about(topic))).await?;
        for (port, address) in args.ports() {
            http::serve(port, address, answers.clone()).await?;
        }
        info!(instance = args.instance, workers, "ready");
        node.watch().await?;
        let removal = match &node.pods {
            Some(pods) => pods.is_removal().await,
            None => false,
        };
        if removal {
            node.node_ports.pass(&mut node.enrolments.redirector, &node.workers)?;
        }
        info!("draining for up to {} s", drain_time.as_secs_f32());
        drop(socket);
        let _ = drain.send(true);
        node.enrolments.redirector.let_go();
        let redirector = node.drain(drain_time).await;
        if removal {
            info!("the DaemonSet is gone: everything is removed from this node");
            for left in redirector.remove()? {
                warn!("left behind: {left}");
            }
        }
        Ok(())
    }

    /// Follows the model file, the pods and the clock until a signal asks to stop.
    ///
    /// # Errors
    /// The helper has ended: whoever watches over the daemon starts both again, and the pods stay closed until then.
    async fn watch(&mut self) -> io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = self.quit.notified() => return Ok(()),
                // The file is looked at several times a second anyway; a signal only repeats what could not be applied.
                _ = hangup.recv() => {
                    if let Some(path) = self.file.as_ref().map(|(path, _)| path.clone()) {
                        self.reload(file::read(&path), &path);
                    }
                }
                () = changed(self.pods.as_mut()) => {
                    self.take_pods();
                    let model = self.shared.model.load();
                    self.enrolments.apply(&model.node.enrol, &self.workers);
                }
                _ = tick.tick() => {
                    let read = self.file.as_mut().and_then(|(path, watch)| Some((path.clone(), watch.poll()?)));
                    if let Some((path, text)) = read {
                        self.reload(text, &path);
                    }
                    let model = self.shared.model.load();
                    self.enrolments.tick(&model.node.enrol, &self.workers);
                    self.node_ports.tick(&mut self.enrolments, &self.shared, &self.workers);
                    self.enrolments.redirector.require_helper()?;
                }
            }
        }
    }

    /// Takes over what the Kubernetes API wants beside what the file says.
    fn take_pods(&mut self) {
        if let Some(pods) = &self.pods {
            self.enrolments.report().incomplete = !pods.is_complete();
            self.shared.model.enrol(self.wanted());
        }
    }

    /// Everything that shall be enrolled.
    fn wanted(&self) -> Vec<Enrolment> {
        let pods = self.pods.iter().flat_map(kubernetes::Pods::current);
        self.filed.iter().chain(pods).cloned().collect()
    }

    /// Brings enrolment and gateway listeners to what the model says.
    fn apply(&mut self) -> Result<(), Failure> {
        let model = self.shared.model.load();
        self.enrolments.apply(&model.node.enrol, &self.workers);
        self.node_ports.apply(&model.node, &mut self.enrolments, &self.shared, &self.workers);
        self.listen(&model)
    }

    /// Takes over a changed model; the last good one stays when the new one is not valid.
    fn reload(&mut self, text: Result<String, file::ModelError>, path: &Path) {
        let changed = match text.and_then(|text| file::parse_with(&text, path, &self.defaults)) {
            Ok(model) => self.change(model),
            Err(error) => Err(error.into()),
        };
        let error = changed.err().map(|error| error.to_string());
        match &error {
            None => info!("model reloaded"),
            Some(text) => error!("the last good model stays in force: {text}"),
        }
        self.enrolments.report().model_error = error;
    }

    fn change(&mut self, mut model: Model) -> Result<(), Failure> {
        if model.node.control_plane != self.shared.model.load().node.control_plane {
            warn!("controlPlane has changed; that takes effect when the daemon is started again");
        }
        self.shared.credentials.set_trust(trust(&model)?)?;
        self.enrolments.redirector.set_exclusions(&exclusions(&model))?;
        self.shared.log.configure(&model.node);
        self.filed = model.node.enrol.clone();
        if self.pods.is_some() {
            Arc::make_mut(&mut model.node).enrol = self.wanted();
        }
        self.shared.model.replace(model);
        self.apply()
    }

    /// Opens the gateway's listeners, one per worker and address.
    fn listen(&mut self, model: &Model) -> Result<(), Failure> {
        let wanted = model.node.gateway.as_ref().map(|role| role.listen.clone()).unwrap_or_default();
        for address in wanted {
            if self.gateway.contains(&address) {
                continue;
            }
            for worker in &self.workers {
                let listener = gateway_listener(address)
                    .map_err(|error| format!("the gateway cannot listen on {address}: {error}"))?;
                let _ = worker.commands.send(Command::AddGateway { listener });
            }
            info!("gateway listens on {address}");
            self.gateway.push(address);
        }
        Ok(())
    }

    /// Lets open connections end, within bounds, then stops the workers. Kernel state stays pinned: it keeps the pods
    /// closed until the next start or `causeway uninstall`.
    async fn drain(self, time: Duration) -> Redirector {
        let open = || self.shared.counters.open.load(std::sync::atomic::Ordering::Relaxed);
        let deadline = tokio::time::Instant::now() + time;
        while open() > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for worker in self.workers {
            drop(worker.commands);
            if worker.thread.join().is_err() {
                error!("a worker ended with a panic");
            }
        }
        self.enrolments.redirector
    }
}

/// The next change of what the Kubernetes API wants; never, where it is not followed.
async fn changed(pods: Option<&mut kubernetes::Pods>) {
    match pods {
        Some(pods) => pods.changed().await,
        None => std::future::pending().await,
    }
}

/// The roots of every trust domain this node accepts besides its own.
fn trust(model: &Model) -> Result<TrustBundle, IdentityError> {
    let mut bundle = TrustBundle::new();
    for domain in model.node.trust.iter().flat_map(|network| &network.domains) {
        bundle.add_file(&domain.name, &domain.roots)?;
    }
    Ok(bundle)
}

fn exclusions(model: &Model) -> Exclusions {
    let configured = &model.node.exclusions;
    Exclusions {
        ports: configured.ports.clone(),
        cidrs: configured.cidrs.iter().map(|range| (range.address(), range.prefix())).collect(),
        inbound_ports: configured.inbound_ports.clone(),
    }
}

/// A listening socket that shares its address with those of the other workers.
fn gateway_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
