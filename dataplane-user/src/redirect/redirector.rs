//! The owner of one node's programs and maps.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use causeway_ebpf::abi::{self, Config, PortKey, Record, config_flag, direction};
use causeway_ebpf::counter::COUNTERS;

use super::cgroup;
use super::config::{Exclusions, RedirectConfig};
use super::enrol::Adopted;
use super::error::LoadError;
use super::helper::Helper;
use super::maps::{Maps, Plain, in_map};
use super::object;
use super::original::{OriginalDst, words};
use super::pins::Pins;
use super::pods::Pod;
use super::record;
use super::sockets::Family;
use super::system::{netns_cookie, online_cpus, watch};

/// Loads, attaches and owns the programs of one node, and enrols its pods.
///
/// Dropping it leaves everything pinned: pods are refused, not passed, until the next start adopts or [`uninstall`] removes
/// what is there.
///
/// [`uninstall`]: super::uninstall()
#[derive(Debug)]
pub struct Redirector {
    pub(super) config: RedirectConfig,
    pub(super) pins: Pins,
    pub(super) maps: Maps,
    pub(super) helper: Helper,
    /// The socket lookup, to be attached to pods' namespaces.
    pub(super) lookup: OwnedFd,
    /// Enrolled pods by workload uid.
    pub(super) pods: BTreeMap<String, Pod>,
    /// Records of an earlier daemon by netns cookie, until they are enrolled again or swept.
    pub(super) adopted: BTreeMap<u64, Record>,
    pub(super) next_pod: u32,
    /// What there is for node ports.
    pub(super) entry: Option<super::entry::Entry>,
    pub(super) engine: u64,
    original: OriginalDst,
    pub(super) loaded: Ebpf,
    /// Ids of the node's cgroup and the pods' that the programs are attached to.
    pub(super) attached: (u64, u64),
}

impl Redirector {
    /// Loads and attaches the programs, adopting what an earlier daemon of the same instance left.
    ///
    /// # Errors
    /// Every way this can fail is a variant of [`LoadError`]; a failed first start leaves nothing attached.
    pub fn start(mut config: RedirectConfig, helper: Helper) -> Result<Self, LoadError> {
        check_range(&config)?;
        object::embedded()?;
        super::probe::require_privileges()?;
        let (root, pods, engine) = cgroups(&config)?;
        config.cgroup_root = root;
        config.pods_cgroup = pods;
        config.workers = config.workers.max(1);
        let pins = Pins::open(&config.bpffs, &config.instance, config.succeed)?;
        let first = !pins.map("CONFIG").exists();
        let mut loaded = match object::load(&pins) {
            Ok(loaded) => loaded,
            Err(error) => {
                if first {
                    // Nothing was there before, so nothing is left; the error that matters is the first.
                    let _ = pins.remove();
                }
                return Err(error);
            }
        };
        let (maps, original) = Maps::take(&mut loaded)?;
        let lookup = object::lookup_program(&loaded)?;
        let mut redirector = Self {
            config,
            pins,
            maps,
            helper,
            lookup,
            pods: BTreeMap::new(),
            adopted: BTreeMap::new(),
            next_pod: 1,
            entry: None,
            engine,
            original: OriginalDst::new(original),
            loaded,
            attached: (0, 0),
        };
        redirector.take_over()?;
        Ok(redirector)
    }

    /// Whether an earlier daemon of this instance left programs, maps or pods behind, which somebody has to take over.
    pub fn left_behind(bpffs: &std::path::Path, instance: &str) -> bool {
        Pins::are_there(bpffs, instance)
    }

    /// Fills the maps, then puts the programs in place.
    fn take_over(&mut self) -> Result<(), LoadError> {
        self.write_engine()?;
        self.write_node()?;
        let exclusions = self.config.exclusions.clone();
        self.set_exclusions(&exclusions)?;
        for (cookie, Plain(record)) in self.maps.records.iter().filter_map(Result::ok) {
            self.adopted.insert(cookie, record);
        }
        object::refresh_pods(std::os::fd::AsFd::as_fd(&self.lookup), &self.pins)?;
        self.stay_attached()?;
        let stale = |source| LoadError::Io {
            action: "removing pins of another version in",
            path: self.config.bpffs.clone(),
            source,
        };
        self.pins.remove_other_layouts().map_err(stale)
    }

    /// Makes this daemon's cgroup the only one that is not redirected, or one beside that of a daemon that has made way. Enrolled
    /// pods of a dead daemon have no listener, so the order of the two writes does not matter to them.
    fn write_engine(&mut self) -> Result<(), LoadError> {
        let failed = in_map("ENGINES");
        self.maps.engines.insert(self.engine, 1, 0).map_err(&failed)?;
        if self.pins.succeeds {
            return Ok(());
        }
        let others: Vec<u64> =
            self.maps.engines.keys().filter_map(Result::ok).filter(|id| *id != self.engine).collect();
        for other in others {
            self.maps.engines.remove(&other).map_err(&failed)?;
        }
        Ok(())
    }

    /// Makes the node's own namespace known, by a socket in it.
    fn write_node(&mut self) -> Result<(), LoadError> {
        let failed = in_map("NODE_NETNS");
        let cookie = match &self.config.node_netns {
            None => None,
            Some(path) => {
                let io = |action| {
                    let path = path.clone();
                    move |source| LoadError::Io { action, path, source }
                };
                let netns = std::fs::File::open(path).map_err(io("opening the node's network namespace"))?;
                let socket = self.helper.control.socket(Family::V4, std::os::fd::AsFd::as_fd(&netns));
                let socket = socket.map_err(|error| io("entering the node's network namespace")(error.source))?;
                let cookie = netns_cookie(std::os::fd::AsFd::as_fd(&socket));
                Some(cookie.map_err(io("reading the cookie (needs Linux 5.14) of"))?)
            }
        };
        let others: Vec<u64> =
            self.maps.node_netns.keys().filter_map(Result::ok).filter(|known| Some(*known) != cookie).collect();
        for other in others {
            self.maps.node_netns.remove(&other).map_err(&failed)?;
        }
        match cookie {
            Some(cookie) => self.maps.node_netns.insert(cookie, 1, 0).map_err(&failed),
            None => Ok(()),
        }
    }

    /// Replaces what is never redirected. Open connections are not affected.
    ///
    /// # Errors
    /// [`LoadError::Config`] for a prefix that is too long, [`LoadError::Map`] if a map is full.
    pub fn set_exclusions(&mut self, exclusions: &Exclusions) -> Result<(), LoadError> {
        let mut ports: Vec<PortKey> = Vec::new();
        ports.extend(exclusions.ports.iter().map(|port| PortKey { direction: direction::OUTBOUND, port: *port }));
        ports
            .extend(exclusions.inbound_ports.iter().map(|port| PortKey { direction: direction::INBOUND, port: *port }));
        let mut cidrs: Vec<Key<abi::Addr>> = Vec::new();
        for (address, prefix) in &exclusions.cidrs {
            let (most, shift) = if address.is_ipv4() { (32, 96) } else { (128, 0) };
            if *prefix > most {
                let problem = format!("{address}/{prefix}: the prefix has at most {most} bits");
                return Err(LoadError::Config { setting: "exclusions.cidrs", problem });
            }
            cidrs.push(Key::new(u32::from(*prefix) + shift, words(*address)));
        }
        let in_ports = in_map("EXCLUDED_PORTS");
        let in_cidrs = in_map("EXCLUDED_CIDRS");
        for port in &ports {
            self.maps.excluded_ports.insert(Plain(*port), 1, 0).map_err(&in_ports)?;
        }
        for cidr in &cidrs {
            self.maps.excluded_cidrs.insert(cidr, 1, 0).map_err(&in_cidrs)?;
        }
        self.write_config(exclusions)?;
        let stale: Vec<_> =
            self.maps.excluded_ports.keys().filter_map(Result::ok).filter(|key| !ports.contains(&key.0)).collect();
        for port in stale {
            self.maps.excluded_ports.remove(&port).map_err(&in_ports)?;
        }
        let same = |left: &Key<abi::Addr>, right: &Key<abi::Addr>| {
            left.prefix_len() == right.prefix_len() && left.data() == right.data()
        };
        let stale: Vec<_> = self
            .maps
            .excluded_cidrs
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !cidrs.iter().any(|cidr| same(cidr, key)))
            .collect();
        for cidr in stale {
            self.maps.excluded_cidrs.remove(&cidr).map_err(&in_cidrs)?;
        }
        self.config.exclusions = exclusions.clone();
        Ok(())
    }

    fn write_config(&mut self, exclusions: &Exclusions) -> Result<(), LoadError> {
        let mut flags = 0;
        for (used, flag) in [
            (!exclusions.ports.is_empty(), config_flag::PORTS),
            (!exclusions.cidrs.is_empty(), config_flag::CIDRS),
            (!exclusions.inbound_ports.is_empty(), config_flag::INBOUND_PORTS),
        ] {
            flags |= if used { flag } else { 0 };
        }
        let config = Config {
            layout: u32::from(abi::LAYOUT_VERSION),
            port_base: self.config.port_base,
            port_mask: self.config.port_count - 1,
            flags,
        };
        self.maps.config.set(0, Plain(config), 0).map_err(in_map("CONFIG"))
    }

    /// The cgroup of all pods.
    pub fn pods_cgroup(&self) -> &std::path::Path {
        &self.config.pods_cgroup
    }

    /// Tells original destinations; a clone for every worker.
    pub fn original_dst(&self) -> OriginalDst {
        self.original.clone()
    }

    /// Tells which name server a DNS socket stands for.
    ///
    /// # Errors
    /// [`LoadError::Map`] if the pinned map cannot be opened.
    pub fn dns_servers(&self) -> Result<super::DnsServers, LoadError> {
        super::DnsServers::open(&self.pins.map("DNS_SERVERS"))
    }

    /// Says which pods wait for their enrolment.
    ///
    /// # Errors
    /// [`LoadError::Map`] if the pinned map cannot be opened.
    pub fn holds(&self) -> Result<super::Holds, LoadError> {
        super::Holds::open(&self.pins.map("HELD"))
    }

    /// The channels to the helper, one for each worker; empty on a second call.
    pub fn take_channels(&mut self) -> Vec<super::SocketChannel> {
        self.helper.take_channels()
    }

    /// Every counter of the programs with its name, summed over the CPUs.
    ///
    /// # Errors
    /// [`LoadError::Map`] if the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, LoadError> {
        let mut counters = Vec::with_capacity(COUNTERS.len());
        for (counter, name) in COUNTERS {
            let values = self.maps.counters.get(&(*counter as u32), 0).map_err(in_map("COUNTERS"))?;
            counters.push((*name, values.iter().sum()));
        }
        Ok(counters)
    }

    /// Pods an earlier daemon enrolled that are neither enrolled again nor swept. They are refused until then.
    pub fn adopted(&self) -> Vec<Adopted> {
        self.adopted.iter().map(|(cookie, record)| record::adopted(*cookie, record)).collect()
    }

    /// Forwards what the programs log to the `log` facade. The future never ends; it must run on a runtime. `None` on a second
    /// call.
    ///
    /// # Errors
    /// [`LoadError::Io`] if the ring buffer cannot be watched.
    pub fn events(&mut self) -> Result<Option<impl Future<Output = ()> + Send + use<>>, LoadError> {
        let logger = match aya_log::EbpfLogger::init(&mut self.loaded) {
            Ok(logger) => logger,
            Err(aya_log::Error::MapNotFound) => return Ok(None),
            Err(error) => {
                let source = std::io::Error::other(error);
                return Err(LoadError::Io { action: "opening the log of", path: "kernel programs".into(), source });
            }
        };
        Ok(Some(async move {
            let Ok(mut logger) = watch(logger) else {
                return;
            };
            loop {
                let Ok(mut ready) = logger.readable_mut().await else {
                    return;
                };
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        }))
    }
}

fn check_range(config: &RedirectConfig) -> Result<(), LoadError> {
    let problem = |setting, problem: String| Err(LoadError::Config { setting, problem });
    if !config.port_count.is_power_of_two() {
        return problem("port_count", format!("{} is not a power of two", config.port_count));
    }
    let end = u32::from(config.port_base) + u32::from(config.port_count);
    if config.port_base < 1024 || end > 65536 {
        return problem("port_base", format!("{}-{} is not within 1024-65535", config.port_base, end - 1));
    }
    let ours = [abi::OUTBOUND_PORT, abi::PLAINTEXT_PORT, abi::HBONE_PORT];
    if let Some(port) = ours.iter().find(|port| (u32::from(config.port_base)..end).contains(&u32::from(**port))) {
        return problem("port_base", format!("{}-{} contains {port}, a listener's port", config.port_base, end - 1));
    }
    if config.workers > 4096 || (config.workers == 0 && online_cpus().is_err()) {
        return problem("workers", format!("{} is more than any machine has CPUs", config.workers));
    }
    Ok(())
}

/// The node's cgroup, the pods' and the id of the engine's own, checked against each other.
fn cgroups(config: &RedirectConfig) -> Result<(std::path::PathBuf, std::path::PathBuf, u64), LoadError> {
    let root = cgroup::folder("cgroup_root", &config.cgroup_root)?;
    let pods = cgroup::folder("pods_cgroup", &config.pods_cgroup)?;
    if !pods.starts_with(&root) {
        let problem = format!("{} is not below the node's cgroup {}", pods.display(), root.display());
        return Err(LoadError::Config { setting: "pods_cgroup", problem });
    }
    let engine = match &config.engine_cgroup {
        Some(path) => path.clone(),
        None => {
            cgroup::own().map_err(|error| LoadError::Config { setting: "engine_cgroup", problem: error.to_string() })?
        }
    };
    let engine = cgroup::folder("engine_cgroup", &engine)?;
    if engine == pods {
        let problem = format!(
            "the daemon runs in the pods' cgroup {} itself, so its connections cannot be told from theirs; give it a cgroup of its own",
            pods.display()
        );
        return Err(LoadError::Config { setting: "engine_cgroup", problem });
    }
    let id = cgroup::id(&engine).map_err(|source| LoadError::Io { action: "looking at", path: engine, source })?;
    Ok((root, pods, id))
}
