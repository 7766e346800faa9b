//! Topologies, peers and captures for the tests of Causeway.
//!
//! Everything runs on one kernel: a node is a network namespace, a cgroup folder and a daemon process; a pod is a network
//! namespace behind a veth pair and a cgroup folder below its node's. Several clusters use the same pod addresses; only
//! addresses of nodes are routed between them. A [`Topology`] owns all of it and takes it away again when it is dropped,
//! also while a test panics, and fails the test if anything is left.
//!
//! ```no_run
//! use testkit::Topology;
//!
//! let mut topology = Topology::new("hello").unwrap();
//! let one = topology.cluster("cluster1", "network1");
//! let two = topology.cluster("cluster2", "network2");
//! let left = topology.node(one).unwrap();
//! let right = topology.node(two).unwrap();
//! topology.gateway(right);
//! let client = topology.pod(left, "default/client").unwrap();
//! let server = topology.pod(right, "default/web").unwrap();
//! topology.service("default/web", &[(80, 8080)], &[&server]);
//! topology.start().unwrap();
//! let url = format!("http://{}/", topology.vip(one, "default/web"));
//! client.run_ok(&["curl", "--silent", &url]).unwrap();
//! ```

pub mod apps;
pub mod bench;
pub mod bpffs;
pub mod capture;
pub mod certificates;
pub mod cgroup;
pub mod clusters;
pub mod control_plane;
pub mod daemon;
pub mod demo;
pub mod envoy;
mod error;
pub mod fixture;
pub mod fuzz;
pub mod istiod;
pub mod netfilter;
pub mod netns;
pub mod outside;
pub mod pcap;
pub mod peer;
pub mod process;
pub mod resolver;
pub mod sys;
pub mod topology;
pub mod ztunnel;

pub use capture::Capture;
pub use daemon::Daemon;
pub use error::{Error, Result, context};
pub use process::{Finished, Place, Proc};
pub use topology::{Pod, Topology};

/// Leaves a test early because this machine cannot run it; `cargo xtask test` counts the line and shows the reason.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        let test = std::thread::current().name().unwrap_or("test").to_owned();
        println!("skipped: {test}: {}", format_args!($($reason)*));
        return;
    }};
}

/// Leaves a test early where namespaces and cgroups cannot be made.
#[macro_export]
macro_rules! needs_root {
    () => {
        if let Some(reason) = $crate::missing_privilege() {
            $crate::skip!("{reason}");
        }
    };
}

/// Why a test that needs root cannot run here, if it cannot.
pub fn missing_privilege() -> Option<&'static str> {
    if !sys::is_root() {
        return Some("needs root");
    }
    cgroup::root().is_err().then_some("needs a cgroup2 mount")
}
