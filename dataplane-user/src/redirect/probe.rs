//! What the running kernel and the privileges of this process allow, feature by feature.

use std::fs;
use std::io;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::cgroup;
use super::error::LoadError;
use super::system::{netns_cookie, socket};

/// One thing redirection needs or can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// First kernel that has it; empty where that is not a matter of the kernel.
    pub floor: &'static str,
    /// Whether redirection can do without it.
    pub optional: bool,
    /// Whether it is there; an error when that could not be found out, with the reason.
    pub supported: Result<bool, String>,
}

/// Capabilities by bit, and what each is for.
const CAPABILITIES: [(&str, u32, bool); 5] = [
    ("CAP_BPF", 39, false),
    ("CAP_NET_ADMIN", 12, false),
    ("CAP_SYS_ADMIN", 21, false),
    ("CAP_PERFMON", 38, true),
    ("CAP_SYS_PTRACE", 19, true),
];

/// Programs by kernel type, with the helpers each calls.
const PROGRAMS: [(&str, &str, ProgramType); 3] = [
    ("program type cgroup_sock_addr", "4.17", ProgramType::CgroupSockAddr),
    ("program type sock_ops", "4.13", ProgramType::SockOps),
    ("program type sk_lookup", "5.9", ProgramType::SkLookup),
];

const MAPS: [(&str, &str, MapType); 3] = [
    ("map type sk_storage", "5.2", MapType::SkStorage),
    ("map type sockhash", "4.18", MapType::SockHash),
    ("map type lpm_trie", "4.11", MapType::LpmTrie),
];

const HELPERS: [(&str, &str, ProgramType, BpfHelper); 5] = [
    ("netns cookie in connect hooks", "5.7", ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_netns_cookie),
    ("netns cookie in sock_ops", "5.15", ProgramType::SockOps, BpfHelper::BPF_FUNC_get_netns_cookie),
    ("socket storage in connect hooks", "5.8", ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_sk_storage_get),
    ("socket storage in sock_ops", "5.8", ProgramType::SockOps, BpfHelper::BPF_FUNC_sk_storage_get),
    ("socket choice in sk_lookup", "5.9", ProgramType::SkLookup, BpfHelper::BPF_FUNC_sk_assign),
];

/// Looks at the running kernel. Tiny programs and maps are loaded and dropped; nothing is attached, nobody else is affected.
pub fn probe() -> Vec<Feature> {
    let mut features = Vec::new();
    let mut add = |name, floor, optional, supported| features.push(Feature { name, floor, optional, supported });
    for (name, bit, optional) in CAPABILITIES {
        add(name, "", optional, effective(bit).map_err(|error| error.to_string()));
    }
    add("cgroup2 hierarchy mounted", "4.5", false, found(cgroup::mount_point().map(drop)));
    add("BPF file system at /sys/fs/bpf (mounted when needed)", "4.4", true, bpffs());
    add("kernel type information (BTF)", "5.4", true, Ok(Path::new("/sys/kernel/btf/vmlinux").exists()));
    add("netns cookie of a socket", "5.14", false, cookie());
    add(
        "accepted sockets inherit marks (tcp_fwmark_accept)",
        "3.16",
        false,
        Ok(Path::new("/proc/sys/net/ipv4/tcp_fwmark_accept").exists()),
    );
    for (name, floor, kind) in PROGRAMS {
        add(name, floor, false, is_program_supported(kind).map_err(|error| reason(&error)));
    }
    let device = is_program_supported(ProgramType::SchedClassifier).map_err(|error| reason(&error));
    add("program type sched_cls (node ports; tcx needs 6.6)", "4.1", true, device);
    for (name, floor, kind) in MAPS {
        add(name, floor, false, is_map_supported(kind).map_err(|error| reason(&error)));
    }
    for (name, floor, kind, helper) in HELPERS {
        add(name, floor, false, is_helper_supported(kind, helper).map_err(|error| reason(&error)));
    }
    add("kernel programs embedded in this build", "", false, Ok(super::object::embedded().is_ok()));
    features
}

/// The innermost cause, which carries the errno.
fn reason(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn found(result: io::Result<()>) -> Result<bool, String> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

fn bpffs() -> Result<bool, String> {
    match cgroup::is_bpffs(Path::new("/sys/fs/bpf")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map_err(|error| error.to_string()),
    }
}

fn cookie() -> Result<bool, String> {
    let probe = socket(libc::AF_INET, libc::SOCK_STREAM, 0).map_err(|error| error.to_string())?;
    match netns_cookie(std::os::fd::AsFd::as_fd(&probe)) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether this process has the capability with this number.
fn effective(bit: u32) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let set = set.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status has no CapEff"))?;
    Ok(set >> bit & 1 == 1)
}

/// Fails with the name of the first privilege that loading and attaching needs and this process lacks.
pub(super) fn require_privileges() -> Result<(), LoadError> {
    let has = |bit| effective(bit).unwrap_or(true);
    // SYS_ADMIN includes BPF, but not NET_ADMIN.
    for (capability, held) in [("CAP_BPF", has(39) || has(21)), ("CAP_NET_ADMIN", has(12))] {
        if !held {
            return Err(LoadError::Privilege { action: String::from("loading the kernel programs"), capability });
        }
    }
    Ok(())
}
