//! Which node ports are open, which should be, and which are on their way out.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::{error, info};

use super::{
    command::Command,
    enrolment::Enrolments,
    steering::Steering,
    worker::{self, Shared},
};
use crate::{
    redirect::{EntryConfig, LoadError, Redirector},
    state::{Entry, IpFamilies, NodeConfig, NodePort, NodePortTarget},
};

/// Ticks between two attempts at what could not be set up.
const RETRY_TICKS: u32 = 4;

/// What a port of this node stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// A service or the gateway.
    Traffic(NodePort),
    /// The question whether this node has endpoints of the service with this key.
    Health(Arc<str>),
}

/// What the ports of this node stand for, as connections find it.
#[derive(Debug, Default)]
pub struct Table {
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
    uses: HashMap<u16, Use>,
}

impl Table {
    /// What a port stands for.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&Use> {
        self.uses.get(&port)
    }

    /// What stands at an address of this node.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Option<&Use> {
        self.uses.get(&address.port()).filter(|_| self.addresses.contains(&address.ip()))
    }
}

/// What the admin socket tells of node ports.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(super) struct Report {
    /// Addresses of the node.
    addresses: Vec<IpAddr>,
    /// Ports that are open.
    ports: Vec<u16>,
    /// Why they are not what they should be.
    pub(super) error: Option<String>,
}

/// Keeps node ports at what the model asks for.
#[derive(Debug, Default)]
pub(super) struct NodePorts {
    /// What the kernel is set up for.
    opened: Option<Entry>,
    /// What the Kubernetes API wants steered, where it is followed.
    steering: Option<Steering>,
    /// What earlier daemons left is settled.
    settled: bool,
    /// What was asked for last.
    applied: Option<(Option<Entry>, Vec<NodePort>)>,
    addresses: Vec<IpAddr>,
    open: BTreeMap<u16, Arc<AtomicUsize>>,
    /// Ports given up whose connections still run.
    closing: BTreeMap<u16, Closing>,
    error: Option<String>,
    ticks: u32,
}

/// How long connections are still accepted whose SYN was taken before their port was given up.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// A port on its way out.
#[derive(Debug)]
struct Closing {
    /// Connections that run.
    open: Arc<AtomicUsize>,
    /// When nothing is accepted any more.
    until: Instant,
    /// Nothing is.
    stopped: bool,
}

impl Closing {
    /// Whether there is something to do: to stop accepting, or to forget the port.
    fn is_due(&self) -> bool {
        if self.stopped { self.open.load(Relaxed) == 0 } else { Instant::now() >= self.until }
    }
}

/// Ports that are wanted, with what they stand for and the families that have them.
fn wanted(node: &NodeConfig) -> BTreeMap<u16, (Use, IpFamilies)> {
    let mut ports = BTreeMap::new();
    for port in &node.node_ports {
        ports.insert(port.port, (Use::Traffic(port.clone()), port.families));
        if let (Some(check), NodePortTarget::Service { key, .. }) = (port.health_check, &port.target) {
            ports.insert(check, (Use::Health(key.clone()), port.families));
        }
    }
    ports
}

impl NodePorts {
    /// Nothing is open yet.
    pub(super) fn new(steering: Option<Steering>) -> Self {
        Self { steering, ..Self::default() }
    }

    /// Opens the ports that are wanted and gives up the others. What fails is reported and tried again.
    pub(super) fn apply(
        &mut self,
        node: &NodeConfig,
        enrolments: &mut Enrolments,
        shared: &Shared,
        workers: &[worker::Handle],
    ) {
        let result = self.bring(node, &mut enrolments.redirector, shared, workers);
        let text = result.err().map(|error| error.to_string());
        if let Some(text) = text.as_ref().filter(|text| self.error.as_ref() != Some(text)) {
            error!("{text}");
        }
        self.error = text;
        enrolments.report().node_ports = Report {
            addresses: self.addresses.clone(),
            ports: self.open.keys().copied().collect(),
            error: self.error.clone(),
        };
    }

    /// Regular work: forgets ports whose last connection has ended, follows the model, tries again what failed.
    pub(super) fn tick(&mut self, enrolments: &mut Enrolments, shared: &Shared, workers: &[worker::Handle]) {
        if let Some(steering) = &mut self.steering {
            steering.follow(&shared.model);
        }
        let node = &shared.model.load().node;
        self.ticks = self.ticks.wrapping_add(1);
        let ended = self.closing.values().any(Closing::is_due);
        let retry = self.error.is_some() && self.ticks.is_multiple_of(RETRY_TICKS);
        let same =
            self.applied.as_ref().is_some_and(|(entry, ports)| *entry == node.entry && *ports == node.node_ports);
        let unsettled =
            !self.settled && self.error.is_none() && self.steering.as_ref().is_none_or(Steering::is_complete);
        if ended || retry || !same || unsettled {
            self.apply(node, enrolments, shared, workers);
        }
    }

    /// Takes no new connections to any port: from then on they pass.
    ///
    /// # Errors
    /// If the kernel's state cannot be changed.
    pub(super) fn pass(&mut self, redirector: &mut Redirector) -> Result<(), LoadError> {
        self.give_up(&BTreeMap::new(), redirector)
    }

    fn bring(
        &mut self,
        node: &NodeConfig,
        redirector: &mut Redirector,
        shared: &Shared,
        workers: &[worker::Handle],
    ) -> Result<(), LoadError> {
        let wanted = if node.entry.is_some() { wanted(node) } else { BTreeMap::new() };
        self.end(redirector, workers)?;
        if let Some(entry) = node.entry.as_ref().filter(|_| !wanted.is_empty())
            && (self.opened.as_ref() != Some(entry) || self.error.is_some())
        {
            self.addresses = redirector.open_entry(&config(entry))?;
            self.opened = Some(entry.clone());
            info!(addresses = ?self.addresses, "node ports can be opened");
        }
        // Before anything arrives, whoever accepts must know what it stands for.
        let mut uses: HashMap<u16, Use> = wanted.iter().map(|(port, (usage, _))| (*port, usage.clone())).collect();
        // What was taken before a port is given up is still served.
        let before = shared.node_ports.load();
        for port in self.open.keys().chain(self.closing.keys()) {
            if let (false, Some(usage)) = (uses.contains_key(port), before.port(*port)) {
                uses.insert(*port, usage.clone());
            }
        }
        shared.node_ports.store(Arc::new(Table { addresses: self.addresses.clone(), uses }));
        self.give_up(&wanted, redirector)?;
        // Before it is known what is wanted, ports that an earlier daemon took stay taken: refused, and not passed.
        let complete = self.steering.as_ref().is_none_or(Steering::is_complete);
        if complete && !self.settled {
            redirector.keep_node_ports(|port| wanted.contains_key(&port))?;
        }
        for (port, (_, families)) in &wanted {
            self.open(*port, *families, redirector, workers)?;
        }
        let unused = wanted.is_empty() && self.closing.is_empty();
        if complete && unused && (self.opened.is_some() || !self.settled) {
            redirector.close_entry()?;
            self.opened = None;
            self.addresses.clear();
        }
        self.settled |= complete;
        self.applied = Some((node.entry.clone(), node.node_ports.clone()));
        Ok(())
    }

    fn open(
        &mut self,
        port: u16,
        families: IpFamilies,
        redirector: &mut Redirector,
        workers: &[worker::Handle],
    ) -> Result<(), LoadError> {
        if !self.open.contains_key(&port) {
            // Those that still run count as well.
            let open = self.closing.get(&port).map(|closing| closing.open.clone()).unwrap_or_default();
            if self.closing.get(&port).is_none_or(|closing| closing.stopped) {
                let listeners = redirector.node_port_listeners(port)?;
                for (worker, listener) in workers.iter().zip(listeners) {
                    let _ = worker.commands.send(Command::AddNodePort { port, open: open.clone(), listener });
                }
            }
            self.closing.remove(&port);
            self.open.insert(port, open);
            info!("node port {port} is open");
        }
        redirector.take_node_port(port, |address| families.accepts(address))
    }

    /// Takes no new connections to ports that are not wanted any more.
    fn give_up(
        &mut self,
        wanted: &BTreeMap<u16, (Use, IpFamilies)>,
        redirector: &mut Redirector,
    ) -> Result<(), LoadError> {
        let stale: Vec<u16> = self.open.keys().filter(|port| !wanted.contains_key(port)).copied().collect();
        for port in stale {
            redirector.stop_node_port(port)?;
            if let Some(open) = self.open.remove(&port) {
                self.closing.insert(port, Closing { open, until: Instant::now() + HANDSHAKE, stopped: false });
            }
            info!("node port {port} is given up");
        }
        Ok(())
    }

    /// Stops accepting at ports that were given up a while ago, and forgets those whose last connection has ended.
    fn end(&mut self, redirector: &mut Redirector, workers: &[worker::Handle]) -> Result<(), LoadError> {
        let due: Vec<u16> =
            self.closing.iter().filter(|(_, closing)| closing.is_due()).map(|(port, _)| *port).collect();
        for port in due {
            if let Some(closing) = self.closing.get_mut(&port).filter(|closing| !closing.stopped) {
                closing.stopped = true;
                for worker in workers {
                    let _ = worker.commands.send(Command::RemoveNodePort { port });
                }
            } else {
                redirector.forget_node_port(port)?;
                self.closing.remove(&port);
            }
        }
        Ok(())
    }
}

fn config(entry: &Entry) -> EntryConfig {
    EntryConfig {
        netns: entry.netns.clone(),
        uplinks: entry.uplinks.clone(),
        addresses: entry.addresses.clone(),
        internal: entry.internal.clone(),
    }
}
