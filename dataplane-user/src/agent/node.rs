//! The control side of a node: model, enrolment, certificates, signals, admin socket.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
};
use tracing::{error, info, warn};

use super::{
    answers::Answers,
    certificates,
    command::Command,
    control_plane,
    enrolment::Report,
    environment::Settings,
    gateways,
    kernel::{self, Kernel},
    kubernetes,
    proof::{Proofs, Proving},
    reach::Reach,
    succession::Place,
    worker::{self, Shared},
};
use crate::{
    dns::Reserved,
    gateway::Passthroughs,
    istio::xds_settings::Environment,
    kube::exports,
    observe::{access_log::AccessLog, admin, connections::Connections, counters::Counters, http, traffic::Traffic},
    redirect::{
        Redirector, SocketChannel,
        helper::{Helper, Spawn},
        keep_buffers, online_cpus,
        privileges::{Role, keep_only},
        raise_nofile_limit,
    },
    state::{Enrolment, Model, ModelStore, file},
};

/// How often the model file and the kernel's counters are looked at.
const TICK: Duration = Duration::from_millis(250);

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
    let mut settings = Settings::read(&environment, cpus.len())?;
    settings.defaults = args.pods.entry(settings.defaults, &environment)?;
    let workers = args.workers.or(settings.workers).unwrap_or(cpus.len()).max(1);
    let (model, file) = match args.model.clone() {
        Some(path) => {
            let text = file::read(&path)?;
            let model = file::parse_with(&text, &path, &settings.defaults)?;
            let watch = file::Watch::new(&path, text);
            (model, Some((path, watch)))
        }
        None => (file::parse_with(kubernetes::MODEL, Path::new("(environment)"), &settings.defaults)?, None),
    };
    // Started before any thread exists, so that it inherits nothing but its channel.
    let helper = match kernel::is_needed(&args, &model.node) {
        true => Some(Spawn::new(workers).proc(&args.pods.proc).start()?),
        false => None,
    };
    raise_nofile_limit()?;
    keep_buffers();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Node::serve(args, (&environment, settings), (model, file), &cpus, workers, helper))
}

pub(super) struct Node {
    /// What this node has in the kernel; a gateway that does nothing else has nothing there.
    pub(super) kernel: Option<Kernel>,
    report: Arc<Mutex<Report>>,
    /// Pods that the Kubernetes API wants enrolled, where it is followed.
    pub(super) pods: Option<kubernetes::Pods>,
    /// Workloads that the model file wants enrolled.
    pub(super) filed: Vec<Enrolment>,
    file: Option<(PathBuf, file::Watch)>,
    pub(super) shared: Arc<Shared>,
    workers: Vec<worker::Handle>,
    gateway: Vec<SocketAddr>,
    /// What the gateway passes on unread.
    passthrough: Passthroughs,
    pub(super) place: Place,
    /// Since when.
    pub(super) since: Instant,
    /// What the environment says for what the file leaves out.
    defaults: file::Defaults,
    /// Services that clusters share are followed.
    follows_exports: bool,
    /// Notified when the admin interface is asked to end the daemon.
    quit: Arc<Notify>,
}

impl Node {
    async fn serve(
        args: Args,
        (environment, settings): (&Environment, Settings),
        (model, file): (Model, Option<(PathBuf, file::Watch)>),
        cpus: &[usize],
        workers: usize,
        mut helper: Option<Helper>,
    ) -> Result<(), Failure> {
        let defaults = args.pods.entry(settings.defaults, environment)?;
        let drain_time = args.drain.map_or(settings.drain, Duration::from_secs);
        let credentials = certificates::open(&model.node, environment)?;
        credentials.set_trust(certificates::trust(&model)?)?;
        let counters = Arc::new(Counters::default());
        let channels = match &mut helper {
            Some(helper) => helper.take_channels(),
            None => (0..workers).map(|_| SocketChannel::closed()).collect::<io::Result<_>>()?,
        };
        let mut redirector = helper.map(|helper| kernel::load(&args, &model, workers, helper)).transpose()?;
        // Before any further thread is started: threads inherit what is left.
        keep_only(if redirector.is_some() { Role::Engine } else { Role::Gateway })?;
        let mut registry = Registry::default();
        let traffic = Arc::new(Traffic::new(&mut registry));
        let log = AccessLog::start(args.log_file.as_deref(), &model.node, counters.clone(), traffic.clone())?;
        if let Some(events) = redirector.as_mut().map(Redirector::events).transpose()?.flatten() {
            tokio::spawn(events);
        }
        let (node, model) = (model.node.clone(), Arc::new(ModelStore::new(model)));
        let control_planes = control_plane::start(&node, &model, environment)?;
        let shared = Arc::new(Shared {
            model,
            control_planes,
            credentials,
            original: redirector.as_ref().map(Redirector::original_dst).unwrap_or_default(),
            dns_servers: redirector.as_ref().map(Redirector::dns_servers).transpose()?.unwrap_or_default(),
            reserved: Reserved::default(),
            node_ports: Default::default(),
            log,
            connections: Arc::new(Connections::new(counters.clone(), traffic)),
            counters,
            proofs: Proofs::default(),
            entry_points: Default::default(),
        });
        let (drain, draining) = watch::channel(false);
        let mut handles = Vec::with_capacity(workers);
        for ((number, channel), cpu) in channels.into_iter().enumerate().zip(cpus.iter().copied().cycle()) {
            let cpu = args.pin_workers.then_some(cpu);
            handles.push(worker::start(number, cpu, shared.clone(), channel, draining.clone())?);
        }
        let filed = node.enrol.clone();
        let pods = if args.pods.kubernetes {
            let Some(redirector) = &redirector else {
                return Err("pods are followed by a daemon with programs".into());
            };
            let pods_cgroup = redirector.pods_cgroup().to_owned();
            Some(kubernetes::Pods::start(&args.pods, &node, defaults.dns, pods_cgroup, redirector)?)
        } else {
            None
        };
        let proving = pods.as_ref().map(|pods| Proving::new(shared.clone(), pods.outcomes()));
        let steering = pods.as_ref().map(kubernetes::Pods::steering);
        let kernel = redirector.map(|redirector| Kernel::new(redirector, proving, steering));
        let mut node = Node {
            report: kernel.as_ref().map(|kernel| kernel.enrolments.shared_report()).unwrap_or_default(),
            kernel,
            follows_exports: false,
            pods,
            filed,
            file,
            shared,
            workers: handles,
            gateway: Vec::new(),
            passthrough: Passthroughs::default(),
            place: Place::default(),
            since: Instant::now(),
            defaults,
            quit: Arc::default(),
        };
        node.report().from_api = node.pods.is_some();
        node.take_place();
        node.take_pods();
        node.apply()?;
        tokio::spawn(node.shared.credentials.clone().run());
        tokio::spawn(certificates::follow(node.shared.clone()));
        std::fs::create_dir_all(&args.run_dir)?;
        let path = args.run_dir.join(format!("{}.sock", args.instance));
        let answers = Arc::new(Answers {
            report: node.report.clone(),
            shared: node.shared.clone(),
            registry,
            reach: Reach::by(node.workers.first().map(|worker| &worker.commands)),
            quit: node.quit.clone(),
        });
        let about = answers.clone();
        let socket = admin::serve(&path, Arc::new(move |topic| about.about(topic))).await?;
        for (port, address) in args.ports() {
            http::serve(port, address, answers.clone()).await?;
        }
        info!(instance = args.instance, workers, kernel = node.kernel.is_some(), "ready");
        node.watch().await?;
        let removal = match &node.pods {
            Some(pods) => pods.is_removal().await,
            None => false,
        };
        let left = node.place == Place::Left;
        if let Some(kernel) = node.kernel.as_mut().filter(|_| removal) {
            kernel.pass_node_ports()?;
        }
        info!("draining for up to {} s", drain_time.as_secs_f32());
        drop(socket);
        let _ = drain.send(true);
        if let Some(kernel) = &mut node.kernel {
            kernel.enrolments.redirector.let_go();
        }
        let redirector = node.drain(drain_time).await;
        if left {
            redirector.into_iter().for_each(Redirector::leave);
        } else if let Some(redirector) = redirector.filter(|_| removal) {
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
                _ = hangup.recv(), if self.place == Place::Held => {
                    if let Some(path) = self.file.as_ref().map(|(path, _)| path.clone()) {
                        self.reload(file::read(&path), &path);
                    }
                }
                () = kubernetes::changed(self.pods.as_mut()) => {
                    self.take_pods();
                    self.enrol();
                }
                _ = tick.tick() => {
                    if self.keep_place()? {
                        continue;
                    }
                    let read = self.file.as_mut().and_then(|(path, watch)| Some((path.clone(), watch.poll()?)));
                    if let Some((path, text)) = read {
                        self.reload(text, &path);
                    }
                    let model = self.shared.model.load();
                    if let Some(kernel) = &mut self.kernel {
                        kernel.tick(&model.node, &self.shared, &self.workers)?;
                    }
                }
            }
        }
    }

    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings enrolment to what is wanted, unless an earlier daemon still does.
    pub(super) fn enrol(&mut self) {
        if let Some(kernel) = self.kernel.as_mut().filter(|_| self.place == Place::Held) {
            kernel.enrolments.apply(&self.shared.model.load().node.enrol, &self.workers);
        }
    }

    /// Brings what is in the kernel, exports and gateway listeners to what the model says.
    fn apply(&mut self) -> Result<(), Failure> {
        let model = self.shared.model.load();
        self.enrol();
        if let Some(kernel) = &mut self.kernel {
            kernel.open_node_ports(&model.node, &self.shared, &self.workers);
        }
        if model.node.exports.is_awaited() && !self.follows_exports {
            self.follows_exports = true;
            tokio::spawn(exports::follow(model.node.cluster_domain.clone(), self.shared.model.clone()));
        }
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
        self.report().model_error = error;
    }

    fn change(&mut self, mut model: Model) -> Result<(), Failure> {
        if model.node.control_plane != self.shared.model.load().node.control_plane {
            warn!("controlPlane has changed; that takes effect when the daemon is started again");
        }
        match &mut self.kernel {
            Some(kernel) => kernel.enrolments.redirector.set_exclusions(&kernel::exclusions(&model))?,
            None => kernel::can_do_without(&model.node)?,
        }
        self.shared.credentials.set_trust(certificates::trust(&model)?)?;
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
                let listener = gateways::listener(address)
                    .map_err(|error| format!("the gateway cannot listen on {address}: {error}"))?;
                let _ = worker.commands.send(Command::AddGateway { listener });
            }
            info!("gateway listens on {address}");
            self.gateway.push(address);
        }
        let passed = model.node.gateway.as_ref().map(|role| &role.passthrough[..]).unwrap_or_default();
        Ok(self.passthrough.apply(passed, &self.shared.log)?)
    }

    /// Lets open connections end, within bounds, then stops the workers. Kernel state stays pinned: it keeps the pods
    /// closed until the next start or `causeway uninstall`.
    async fn drain(self, time: Duration) -> Option<Redirector> {
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
        self.kernel.map(|kernel| kernel.enrolments.redirector)
    }
}
