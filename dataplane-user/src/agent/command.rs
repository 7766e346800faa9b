//! What the control thread tells workers to do.

use std::{
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use tokio::sync::oneshot;

use super::dns;
use crate::{
    redirect::{PodId, WorkerListeners},
    state::Workload,
};

/// An order from the control thread.
pub enum Command {
    /// Accept connections of a pod.
    AddPod {
        /// Number of the pod at this node.
        pod: PodId,
        /// Its workload uid.
        uid: Arc<str>,
        /// Its addresses.
        ips: Arc<[IpAddr]>,
        /// What it is as a client, until the control plane knows it.
        client: Option<Arc<Workload>>,
        /// Its open connections, all workers together.
        open: Arc<AtomicUsize>,
        /// This worker's listeners inside the pod's namespace.
        listeners: WorkerListeners,
        /// Whether its DNS is captured.
        dns: bool,
        /// What it takes to serve that over UDP, at one worker.
        capture: Option<dns::Capture>,
    },
    /// Stop accepting connections of a pod; those that run go on.
    RemovePod {
        /// Number of the pod at this node.
        pod: PodId,
    },
    /// Ask the DNS of a pod from inside it.
    AskDns {
        /// Number of the pod at this node.
        pod: PodId,
        /// One of its DNS sockets.
        at: SocketAddr,
        /// What to ask for.
        name: String,
        /// Who is told how long the answer took, or why there was none.
        done: oneshot::Sender<Result<Duration, String>>,
    },
    /// Try what pods can reach of other networks.
    Reach {
        /// Pods of which the first that is known tries it, each with one of its DNS sockets.
        pods: Vec<(PodId, SocketAddr)>,
        /// Who is told what was found.
        done: oneshot::Sender<serde_json::Value>,
    },
    /// Accept connections to a node port.
    AddNodePort {
        /// The port.
        port: u16,
        /// Its open connections, all workers together.
        open: Arc<AtomicUsize>,
        /// This worker's listener in the entry's namespace.
        listener: StdListener,
    },
    /// Stop accepting connections to a node port; those that run go on.
    RemoveNodePort {
        /// The port.
        port: u16,
    },
    /// Accept outer tunnels.
    AddGateway {
        /// The listening socket.
        listener: StdListener,
    },
}
