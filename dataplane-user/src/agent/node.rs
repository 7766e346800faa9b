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
    certificates, control_plane,
    enrolment::Enrolments,
    environment::Settings,
    node_ports::NodePorts,
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
    state::{Model, ModelStore, file},
};

/// How often the model file and the kernel's counters are looked at.
const TICK: Duration = Duration::from_millis(250);
/// Length of the accept queue of a gateway's listener.
const BACKLOG: i32 = 8192;

/// What the daemon is started with.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The mesh model of this node, a YAML file (see `causeway schema`); it is watched.
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Name of this node's kernel state; two daemons on one kernel need two names.
    #[arg(long, default_value = "node")]
    pub instance: String,
    /// The node's cgroup-2 root.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
    /// The cgroup all pods are below; found under the root if absent.
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
    let helper = Spawn::new(workers).start()?;
    raise_nofile_limit()?;
    keep_buffers();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Node::serve(args, (&environment, settings), &cpus, workers, helper))
}

struct Node {
    enrolments: Enrolments,
    node_ports: NodePorts,
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
        let text = file::read(&args.model)?;
        let defaults = settings.defaults;
        let drain_time = args.drain.map_or(settings.drain, Duration::from_secs);
        let model = file::parse_with(&text, &args.model, &defaults)?;
        let mut file = file::Watch::new(&args.model, text);
        let credentials = certificates::open(&model.node, environment)?;
        credentials.set_trust(trust(&model)?)?;
        let counters = Arc::new(Counters::default());
        let exclusions = exclusions(&model);
        let channels = helper.take_channels();
        let pods_cgroup = match args.pods_cgroup.clone() {
            Some(folder) => folder,
            None => find_pods_cgroup(&args.cgroup_root)?,
        };
        let mut redirector = Redirector::start(
            RedirectConfig {
                bpffs: args.bpffs.clone(),
                exclusions,
                workers,
                ..RedirectConfig::new(args.instance.clone(), &args.cgroup_root, pods_cgroup)
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
        });
        let (drain, draining) = watch::channel(false);
        let mut handles = Vec::with_capacity(workers);
        for ((number, channel), cpu) in channels.into_iter().enumerate().zip(cpus.iter().copied().cycle()) {
            let cpu = args.pin_workers.then_some(cpu);
            handles.push(worker::start(number, cpu, shared.clone(), channel, draining.clone())?);
        }
        let mut node = Node {
            enrolments: Enrolments::new(redirector),
            node_ports: NodePorts::default(),
            shared,
            workers: handles,
            gateway: Vec::new(),
            defaults,
            quit: Arc::default(),
        };
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
        node.watch(&mut file, &args.model).await?;
        info!("draining for up to {} s", drain_time.as_secs_f32());
        drop(socket);
        let _ = drain.send(true);
        node.drain(drain_time).await;
        Ok(())
    }

    /// Follows the model file and the clock until a signal asks to stop.
    ///
    /// # Errors
    /// The helper has ended: whoever watches over the daemon starts both again, and the pods stay closed until then.
    async fn watch(&mut self, file: &mut file::Watch, path: &Path) -> io::Result<()> {
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
                _ = hangup.recv() => self.reload(file::read(path), path),
                _ = tick.tick() => {
                    if let Some(text) = file.poll() {
                        self.reload(text, path);
                    }
                    let model = self.shared.model.load();
                    self.enrolments.tick(&model.node.enrol, &self.workers);
                    self.node_ports.tick(&model.node, &mut self.enrolments, &self.shared, &self.workers);
                    self.enrolments.redirector.require_helper()?;
                }
            }
        }
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

    fn change(&mut self, model: Model) -> Result<(), Failure> {
        if model.node.control_plane != self.shared.model.load().node.control_plane {
            warn!("controlPlane has changed; that takes effect when the daemon is started again");
        }
        self.shared.credentials.set_trust(trust(&model)?)?;
        self.enrolments.redirector.set_exclusions(&exclusions(&model))?;
        self.shared.log.configure(&model.node);
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
    async fn drain(self, time: Duration) {
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
    }
}

/// The folder kubelet puts pods under, by the names its cgroup drivers give it.
fn find_pods_cgroup(root: &Path) -> Result<PathBuf, Failure> {
    let names = ["kubepods.slice", "kubepods"];
    let found = names.iter().map(|name| root.join(name)).find(|folder| folder.is_dir());
    found.ok_or_else(|| {
        let root = root.display();
        format!("neither {root}/kubepods.slice nor {root}/kubepods exists; name the pods' cgroup with --pods-cgroup")
            .into()
    })
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
