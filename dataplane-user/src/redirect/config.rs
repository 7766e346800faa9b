//! What a [`Redirector`](super::Redirector) is told by its caller.

use std::net::IpAddr;
use std::path::PathBuf;

use causeway_ebpf::abi::{DEFAULT_PORT_BASE, DEFAULT_PORT_COUNT};

/// Settings of one node's redirection.
#[derive(Clone, Debug)]
pub struct RedirectConfig {
    /// Name of this node among those that share the kernel: letters, digits, `-` and `_`. Part of the pin directory.
    pub instance: String,
    /// The node's own cgroup2 folder: the root of the hierarchy on a machine of its own.
    pub cgroup_root: PathBuf,
    /// Folder that holds all pods, below `cgroup_root` or the same.
    pub pods_cgroup: PathBuf,
    /// Mount point of the BPF file system; mounted there if it is not.
    pub bpffs: PathBuf,
    /// Where the node's own proc file system is mounted.
    pub proc: PathBuf,
    /// The node's own network namespace, where its processes that are no pod's reach enrolled pods past the engine: kubelet's
    /// probes. `None` if there are none.
    pub node_netns: Option<PathBuf>,
    /// The daemon's own cgroup, whose connections are never redirected; `None` finds it in `/proc/self/cgroup`.
    pub engine_cgroup: Option<PathBuf>,
    /// First port of the range of rewrite targets.
    pub port_base: u16,
    /// Ports in that range: a power of two. A pod can open about 28,000 connections to one destination per port.
    pub port_count: u16,
    /// Whether a running daemon of this instance is asked to make way; else starting beside it is refused.
    pub succeed: bool,
    /// What is never redirected.
    pub exclusions: Exclusions,
    /// Number of workers, each of which gets its own listeners.
    pub workers: usize,
}

impl RedirectConfig {
    /// The settings of node `instance` with every default.
    pub fn new(instance: impl Into<String>, cgroup_root: impl Into<PathBuf>, pods_cgroup: impl Into<PathBuf>) -> Self {
        Self {
            instance: instance.into(),
            cgroup_root: cgroup_root.into(),
            pods_cgroup: pods_cgroup.into(),
            bpffs: PathBuf::from("/sys/fs/bpf"),
            proc: PathBuf::from("/proc"),
            node_netns: None,
            engine_cgroup: None,
            port_base: DEFAULT_PORT_BASE,
            port_count: DEFAULT_PORT_COUNT,
            succeed: false,
            exclusions: Exclusions::default(),
            workers: 1,
        }
    }
}

/// Traffic that is left alone on the whole node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Destination ports of connections that pods open.
    pub ports: Vec<u16>,
    /// Destination ranges (address and prefix length) of connections that pods open.
    pub cidrs: Vec<(IpAddr, u8)>,
    /// Ports on which pods accept connections directly.
    pub inbound_ports: Vec<u16>,
}
