//! One worker: a core, a runtime, its listeners, its tunnel pools.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{AbortHandle, LocalSet, spawn_local},
};
use tracing::warn;

use super::{
    command::Command, dns, entry, entry_points::EntryPoints, gateways::Health, inbound, look, node_ports, outbound,
    plaintext, proof::Proofs, reach,
};
use crate::{
    dns::Reserved,
    gateway::{Gateway, Load},
    identity::CertificateStore,
    istio::xds_client::Handle as ControlPlane,
    observe::{access_log::AccessLog, connections::Connections, counters::Counters},
    redirect::{DnsServers, OriginalDst, PodId, SocketChannel, SocketSource, pin_thread_to_cpu},
    state::{Model, ModelStore, Workload},
    tunnel::{
        inner::InnerPool,
        pool::{OuterKey, Pool},
        random::Random,
    },
};

/// How often pools forget tunnels that are gone.
const SWEEP: Duration = Duration::from_secs(5);
/// How long a connection of a pod whose workload the model does not know yet is kept waiting.
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// What all workers share.
pub struct Shared {
    /// The mesh model.
    pub model: Arc<ModelStore>,
    /// The control planes it comes from, besides the file.
    pub control_planes: Vec<ControlPlane>,
    /// Certificates of this node's workloads.
    pub credentials: Arc<CertificateStore>,
    /// Original destinations of accepted sockets.
    pub original: OriginalDst,
    /// Name servers behind pods' DNS sockets.
    pub dns_servers: DnsServers,
    /// Addresses that stand for pods of other networks.
    pub reserved: Reserved,
    /// What the ports of this node stand for.
    pub node_ports: arc_swap::ArcSwap<node_ports::Table>,
    /// The access log.
    pub log: AccessLog,
    /// Counters.
    pub counters: Arc<Counters>,
    /// Connections open now.
    pub connections: Arc<Connections>,
    /// Connections by which the capture of a pod is tried.
    pub proofs: Proofs,
    /// What was found at the entry points of other networks.
    pub entry_points: EntryPoints,
}

/// A pod as a worker knows it.
pub struct Pod {
    /// Number of the pod at this node.
    pub id: PodId,
    /// Its workload uid.
    pub uid: Arc<str>,
    /// Its addresses.
    ips: Arc<[IpAddr]>,
    /// What it is as a client, until the control plane knows it.
    client: Option<Arc<Workload>>,
    /// Its open connections, all workers together.
    pub open: Arc<AtomicUsize>,
    /// An opaque name for the pod towards peers of our own kind.
    pub endpoint: String,
    /// Whether the model has known its workload: one that is gone is not waited for.
    known: Cell<bool>,
    /// Whether its DNS is captured.
    pub dns: bool,
    /// Its DNS questions in work at this worker.
    pub questions: Cell<usize>,
}

/// A pod whose connections are accepted, and the tasks that do it.
struct Accepting {
    pod: Rc<Pod>,
    tasks: Vec<AbortHandle>,
}

/// One worker's own state; lives and dies on its thread.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Sockets inside pods' namespaces.
    pub sockets: SocketSource,
    /// Tunnels to next hops.
    pub outer: Pool<OuterKey>,
    /// Tunnels to destinations behind gateways.
    pub inner: InnerPool,
    /// Which next hops answer.
    pub health: Health,
    /// How many connections of this worker each endpoint has.
    pub load: Load,
    /// Random numbers.
    pub random: Random,
    /// Turns true when the daemon stops.
    pub drain: watch::Receiver<bool>,
    gateway: Rc<Gateway>,
    pods: RefCell<HashMap<PodId, Accepting>>,
    node_ports: RefCell<HashMap<u16, AbortHandle>>,
}

impl Pod {
    /// Its addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.ips
    }

    /// The address from which the pod dials `to`. A connection that waited for the enrolment comes from loopback, as does one
    /// that the application bound there.
    pub fn dials_from(&self, client: SocketAddr, to: SocketAddr) -> SocketAddr {
        let own = |ip: &&IpAddr| ip.to_canonical().is_ipv4() == to.ip().to_canonical().is_ipv4();
        match self.ips.iter().find(own) {
            Some(ip) if client.ip().is_loopback() => SocketAddr::new(*ip, client.port()),
            _ => client,
        }
    }
}

impl Worker {
    /// The model now.
    pub fn model(&self) -> Arc<Model> {
        self.shared.model.load()
    }

    /// This worker's part of the gateway role.
    pub fn gateway(&self) -> Rc<Gateway> {
        self.gateway.clone()
    }

    /// The pod of workload `uid`, if it is enrolled here.
    pub fn pod(&self, uid: &str) -> Option<Rc<Pod>> {
        self.pods.borrow().values().map(|accepting| &accepting.pod).find(|pod| *pod.uid == *uid).cloned()
    }

    /// The pod of this number.
    pub fn numbered(&self, id: PodId) -> Option<Rc<Pod>> {
        self.pods.borrow().get(&id).map(|accepting| accepting.pod.clone())
    }

    /// The workload of `pod` for connections that it opens. A pod that has just started is known by where it runs before the
    /// control plane knows it; nothing of that says who may call it.
    pub async fn client(&self, pod: &Pod) -> Option<(Arc<Model>, Arc<Workload>)> {
        let model = self.model();
        match &pod.client {
            Some(client) if model.synced && !pod.known.get() && model.workload(&pod.uid).is_none() => {
                Some((model, client.clone()))
            }
            _ => self.workload(pod).await,
        }
    }

    /// The workload of `pod`, waiting a moment for a model that is not complete or does not know it yet.
    pub async fn workload(&self, pod: &Pod) -> Option<(Arc<Model>, Arc<Workload>)> {
        let deadline = tokio::time::Instant::now() + WORKLOAD_WAIT;
        let mut changes = self.shared.model.subscribe();
        loop {
            let model = self.model();
            if let Some(workload) = model.workload(&pod.uid).filter(|_| model.synced).cloned() {
                pod.known.set(true);
                return Some((model, workload));
            }
            if pod.known.get() && model.synced {
                return None;
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                _ => return None,
            }
        }
    }
}

/// A started worker thread.
pub struct Handle {
    /// Where its orders go.
    pub commands: mpsc::UnboundedSender<Command>,
    /// The thread.
    pub thread: JoinHandle<()>,
}

/// Starts worker `number`, tied to `cpu` if one is given.
///
/// # Errors
/// No thread can be started.
pub fn start(
    number: usize,
    cpu: Option<usize>,
    shared: Arc<Shared>,
    channel: SocketChannel,
    drain: watch::Receiver<bool>,
) -> io::Result<Handle> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let thread = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        if let Some(cpu) = cpu
            && let Err(error) = pin_thread_to_cpu(cpu)
        {
            warn!("worker {number} is not tied to CPU {cpu}: {error}");
        }
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                warn!("worker {number} has no runtime: {error}");
                return;
            }
        };
        LocalSet::new().block_on(&runtime, run(shared, channel, drain, receiver));
    })?;
    Ok(Handle { commands, thread })
}

async fn run(
    shared: Arc<Shared>,
    channel: SocketChannel,
    drain: watch::Receiver<bool>,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let sockets = match SocketSource::new(channel) {
        Ok(sockets) => sockets,
        Err(error) => {
            warn!("a worker cannot talk to the namespace helper: {error}");
            return;
        }
    };
    let random = Random::default();
    let gateway = Rc::new(Gateway::new(
        shared.model.clone(),
        shared.credentials.clone(),
        shared.log.clone(),
        shared.connections.clone(),
        drain.clone(),
        Box::new(move || random.next()),
    ));
    let worker = Rc::new(Worker {
        shared,
        gateway,
        sockets,
        outer: Pool::default(),
        inner: InnerPool::default(),
        health: Health::default(),
        load: Load::default(),
        random: Random::default(),
        drain,
        pods: RefCell::default(),
        node_ports: RefCell::default(),
    });
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => obey(&worker, command),
                // The control thread lets go of its end once the time to drain is over.
                None => return,
            },
            _ = sweep.tick() => {
                worker.outer.sweep();
                worker.inner.sweep();
            }
        }
    }
}

fn obey(worker: &Rc<Worker>, command: Command) {
    match command {
        Command::AddPod { pod, uid, ips, client, open, listeners, dns, capture } => {
            let mut hasher = DefaultHasher::new();
            uid.hash(&mut hasher);
            let endpoint = format!("{:016x}", hasher.finish());
            let known = Cell::new(false);
            let pod = Rc::new(Pod { id: pod, uid, ips, client, open, endpoint, known, dns, questions: Cell::new(0) });
            let accept = [
                listen(worker, &pod, listeners.outbound, outbound::serve),
                listen(worker, &pod, listeners.plaintext, plaintext::serve),
                listen(worker, &pod, listeners.hbone, inbound::serve),
            ];
            let mut tasks: Vec<AbortHandle> = accept.into_iter().flatten().collect();
            if let Some(capture) = capture {
                tasks.extend(dns::listen_udp(worker, &pod, capture));
            }
            worker.pods.borrow_mut().insert(pod.id, Accepting { pod, tasks });
        }
        Command::RemovePod { pod } => {
            let removed = worker.pods.borrow_mut().remove(&pod);
            for task in removed.into_iter().flat_map(|accepting| accepting.tasks) {
                task.abort();
            }
            worker.sockets.release(pod);
        }
        Command::AskDns { pod, at, name, done } => {
            let worker = worker.clone();
            spawn_local(async move {
                // Nobody waits any more where the daemon ends.
                let _ = done.send(look::ask(&worker, pod, at, &name).await);
            });
        }
        Command::Reach { pods, done } => {
            let worker = worker.clone();
            spawn_local(async move {
                let _ = done.send(reach::all(&worker, &pods).await);
            });
        }
        Command::AddNodePort { port, open, listener } => {
            let (of, drain) = (worker.clone(), worker.drain.clone());
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    let task = spawn_local(accept(listener, drain, move |socket, from| {
                        let (worker, open) = (of.clone(), open.clone());
                        spawn_local(async move {
                            open.fetch_add(1, Relaxed);
                            entry::serve(worker, port, socket, from).await;
                            open.fetch_sub(1, Relaxed);
                        });
                    }));
                    worker.node_ports.borrow_mut().insert(port, task.abort_handle());
                }
                Err(error) => warn!("a listener of node port {port} cannot be used: {error}"),
            }
        }
        Command::RemoveNodePort { port } => {
            if let Some(task) = worker.node_ports.borrow_mut().remove(&port) {
                task.abort();
            }
        }
        Command::AddGateway { listener } => {
            let worker = worker.clone();
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    spawn_local(accept(listener, worker.drain.clone(), move |socket, from| {
                        spawn_local(worker.gateway.clone().serve(socket, from));
                    }));
                }
                Err(error) => warn!("the gateway's listener cannot be used: {error}"),
            }
        }
    }
}

/// Accepts on `listener` and starts `serve` for every connection.
fn listen<F>(
    worker: &Rc<Worker>,
    pod: &Rc<Pod>,
    listener: StdListener,
    serve: fn(Rc<Worker>, Rc<Pod>, TcpStream, SocketAddr) -> F,
) -> Option<AbortHandle>
where
    F: Future<Output = ()> + 'static,
{
    let (worker, pod) = (worker.clone(), pod.clone());
    match TcpListener::from_std(listener) {
        Ok(listener) => {
            let drain = worker.drain.clone();
            let task = spawn_local(accept(listener, drain, move |socket, from| {
                if worker.shared.proofs.is_one(from) {
                    return;
                }
                let (worker, pod) = (worker.clone(), pod.clone());
                spawn_local(async move {
                    pod.open.fetch_add(1, Relaxed);
                    serve(worker, pod.clone(), socket, from).await;
                    pod.open.fetch_sub(1, Relaxed);
                });
            }));
            Some(task.abort_handle())
        }
        Err(error) => {
            warn!("a listener of {} cannot be used: {error}", pod.uid);
            None
        }
    }
}

/// Accepts until the daemon drains.
async fn accept(listener: TcpListener, mut drain: watch::Receiver<bool>, mut start: impl FnMut(TcpStream, SocketAddr)) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, from)) => {
                    // Small answers must not wait for an acknowledgement; a socket that refuses the option still works.
                    let _ = socket.set_nodelay(true);
                    start(socket, canonical(from));
                }
                // Out of descriptors, or a connection that died in the queue: pause so that this cannot spin.
                Err(error) => {
                    warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            },
            _ = drain.wait_for(|draining| *draining) => return,
        }
    }
}

/// An IPv4 peer of a dual-stack socket as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
