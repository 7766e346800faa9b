//! Redirection: loads, attaches and removes the kernel programs, enrols pods, and hands out sockets inside their namespaces.
//!
//! - [`Redirector`] owns the programs and maps of one node. They are pinned, so that a daemon that dies leaves its pods refused
//!   rather than in the clear, and so that the next one adopts them.
//! - [`helper`] is a small process of its own, the only one that enters other namespaces. It opens listeners when a pod is
//!   enrolled and hands workers ready-made sockets ([`SocketSource`]).
//! - [`OriginalDst`] tells where a redirected connection was meant to go.
//! - [`probe()`] says feature by feature what the running kernel supports.
//!
//! This is the only room with `unsafe` code: everything else works with the safe functions of this one.
#![allow(unsafe_code, reason = "system calls without a safe wrapper; one operation per block, each with its reason")]

mod attached;
mod bpf;
mod cgroup;
mod config;
mod connect;
mod dns;
mod enrol;
mod entry;
mod error;
pub mod helper;
mod hold;
mod maps;
mod netns;
mod object;
mod original;
mod pins;
mod pods;
pub mod privileges;
mod probe;
mod record;
mod redirector;
mod sampling;
mod sockets;
mod standing;
mod succession;
mod system;
mod uninstall;

pub use config::{Exclusions, RedirectConfig};
pub use connect::{connect_start, deliver, delivery_port};
pub use dns::{DnsServers, is_own};
pub use enrol::{Adopted, EnrolRequest, Enrolled, Existing, NetnsRef, PodId, WorkerListeners};
pub use entry::{EntryConfig, is_entry_itself, is_node_itself};
pub use error::{EnrolError, LoadError};
pub use hold::Holds;
pub use original::OriginalDst;
pub use probe::{Feature, probe};
pub use redirector::Redirector;
pub use sampling::{MAX_FREQUENCY, Registers, Sample, sample_stacks};
pub use sockets::{Family, SocketChannel, SocketKind, SocketSource};
pub use system::{
    Heap, TcpInfo, heap, keep_buffers, online_cpus, pin_thread_to_cpu, raise_nofile_limit, return_memory,
    set_reset_on_close, tcp_info,
};
pub use uninstall::uninstall;
