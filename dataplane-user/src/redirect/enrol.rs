//! Names and results of enrolment.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;

/// Number of an enrolled pod, unique while the daemon lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u32);

/// A network namespace as the caller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsRef {
    /// A file, as `/run/netns/x` or `/proc/123/ns/net`.
    Path(PathBuf),
    /// A name, as `ip netns` knows it.
    Name(String),
}

impl NetnsRef {
    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Name(name) => PathBuf::from("/var/run/netns").join(name),
        }
    }
}

/// What happens to connections that are open when a pod is enrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// They live on, past the engine.
    #[default]
    Keep,
    /// They are reset, so that the application opens them anew through the engine.
    Close,
}

/// A pod to be enrolled.
#[derive(Clone, Debug)]
pub struct EnrolRequest {
    /// Uid of its workload.
    pub uid: String,
    /// Its network namespace.
    pub netns: NetnsRef,
    /// Inode of that namespace, where it is known: another one at the same path is refused.
    pub inode: Option<u64>,
    /// Addresses that its interfaces must have; empty where nobody has said.
    pub expected: Vec<IpAddr>,
    /// Its cgroup, checked to be below the pods' cgroup where given.
    pub cgroup: Option<PathBuf>,
    /// Its addresses; empty means those of its interfaces.
    pub ips: Vec<IpAddr>,
    /// What happens to open connections.
    pub existing: Existing,
    /// Whether its DNS queries go to the engine.
    pub dns: bool,
}

/// An enrolled pod.
#[derive(Debug)]
pub struct Enrolled {
    /// Its number, for [`SocketSource::take`](super::SocketSource::take).
    pub pod: PodId,
    /// Uid of its workload.
    pub uid: String,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Inode of its network namespace.
    pub inode: u64,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// One set of listeners for each worker, in worker order.
    pub listeners: Vec<WorkerListeners>,
    /// Sockets at the pod's own addresses on which the engine takes DNS queries, none if they are not captured; non-blocking.
    /// Each stands for one name server, which [`DnsServers`](super::DnsServers) tells. Datagrams from addresses that are not
    /// the pod's must be dropped.
    pub dns: Vec<UdpSocket>,
}

/// Listeners of one worker inside one pod's namespace; non-blocking.
#[derive(Debug)]
pub struct WorkerListeners {
    /// Redirected outbound connections; [`OriginalDst`](super::OriginalDst) says where they were meant to go. A connection
    /// without an original destination must be reset.
    pub outbound: TcpListener,
    /// Inbound connections that are not HBONE; the local address is where they were meant to go.
    pub plaintext: TcpListener,
    /// Inbound HBONE.
    pub hbone: TcpListener,
}

/// A pod enrolled by an earlier daemon of the same instance: refused until it is enrolled again or swept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Uid of its workload.
    pub uid: String,
    /// Path its namespace was opened by.
    pub netns: PathBuf,
    /// Inode of its namespace.
    pub inode: u64,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
}
