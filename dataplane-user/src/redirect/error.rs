//! Why redirection could not be set up, or a pod not be enrolled.

use std::io;
use std::path::PathBuf;

/// Loading or attaching the programs failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The daemon was built without the kernel programs.
    #[error("this build carries no kernel programs: run `cargo xtask build`, which builds them and embeds them")]
    NotEmbedded,
    /// A setting has no meaning.
    #[error("redirection setting {setting}: {problem}")]
    Config {
        /// Name of the setting.
        setting: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A privilege is missing.
    #[error("{action}: missing privilege {capability}; run as root or grant the capability")]
    Privilege {
        /// What was tried.
        action: String,
        /// Name of the capability.
        capability: &'static str,
    },
    /// The kernel refused a program.
    #[error("program {program} (needs Linux {floor}): {source}; see `causeway probe`")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// First kernel that has everything it uses.
        floor: &'static str,
        /// The verifier's or the kernel's answer.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object as a whole or one of its maps was refused.
    #[error("loading the kernel programs: {0}; see `causeway probe`")]
    Object(#[from] Box<aya::EbpfError>),
    /// A map could not be read or written.
    #[error("map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// The kernel's answer.
        source: Box<aya::maps::MapError>,
    },
    /// A program could not be attached.
    #[error("attaching {program} at {target} (needs Linux {floor}): {source}")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Where it was to be attached.
        target: PathBuf,
        /// First kernel that can.
        floor: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something around the programs failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Node ports could not be set up or removed.
    #[error("node ports: {action}: {source}")]
    Entry {
        /// What was tried, or what is wrong.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The helper process did not do its part.
    #[error("netns helper: {0}")]
    Helper(io::Error),
}

/// Enrolling or releasing a pod failed. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The namespace does not exist.
    #[error("{uid}: network namespace {}: {source}; is the pod running?", path.display())]
    NoNamespace {
        /// Workload.
        uid: String,
        /// Where it was looked for.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The path is not a network namespace.
    #[error("{uid}: {} is not a network namespace", path.display())]
    NotANamespace {
        /// Workload.
        uid: String,
        /// The path.
        path: PathBuf,
    },
    /// The namespace is that of the node.
    #[error("{uid}: {} is the network namespace of the node itself; pods on the host network cannot be enrolled", path.display())]
    NodeNamespace {
        /// Workload.
        uid: String,
        /// The path.
        path: PathBuf,
    },
    /// Two workloads claim one namespace.
    #[error("{uid}: its network namespace is already enrolled for {other}; release that first")]
    NamespaceTaken {
        /// Workload.
        uid: String,
        /// The other one.
        other: String,
    },
    /// Two pods of this node have the same address.
    #[error("{uid}: address {address} already belongs to {other}")]
    AddressTaken {
        /// Workload.
        uid: String,
        /// The address.
        address: std::net::IpAddr,
        /// The other one.
        other: String,
    },
    /// The workload is enrolled already.
    #[error("{uid} is already enrolled in another namespace; release it first")]
    AlreadyEnrolled {
        /// Workload.
        uid: String,
    },
    /// The workload is not enrolled.
    #[error("{uid} is not enrolled")]
    NotEnrolled {
        /// Workload.
        uid: String,
    },
    /// The pod has no address.
    #[error("{uid}: no address on any interface but loopback; enrol it once its network is set up")]
    NoAddress {
        /// Workload.
        uid: String,
    },
    /// The path is that of another namespace meanwhile.
    #[error("{uid}: {} is not the network namespace that it was found by; it is looked for again", path.display())]
    AnotherNamespace {
        /// Workload.
        uid: String,
        /// The path.
        path: PathBuf,
    },
    /// The namespace does not have an address that the pod is said to have.
    #[error(
        "{uid}: its network namespace does not have the address {address} that the API shows for it; restart the pod if this stays"
    )]
    NotItsAddress {
        /// Workload.
        uid: String,
        /// The address.
        address: std::net::IpAddr,
    },
    /// The cgroup of the pod is outside the folder whose programs redirect.
    #[error("{uid}: cgroup {} is not below {}, where pods are redirected; check --pods-cgroup", cgroup.display(), pods.display())]
    CgroupOutside {
        /// Workload.
        uid: String,
        /// Its cgroup.
        cgroup: PathBuf,
        /// The pods' cgroup.
        pods: PathBuf,
    },
    /// A step inside or around the namespace failed.
    #[error("{uid}: {action}: {source}")]
    Step {
        /// Workload.
        uid: String,
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}
