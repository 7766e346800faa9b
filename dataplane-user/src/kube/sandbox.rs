//! Where the network namespaces of pods are: a process belongs to the pod whose uid stands in its cgroup path, and its
//! namespace is the pod's. Both are the kernel's word.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The network namespace of a pod, by one of its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The namespace as a file below the node's proc file system.
    pub netns: PathBuf,
    /// Its inode, so that another namespace at the same path is told apart.
    pub inode: u64,
    pid: u32,
}

/// Looks for sandboxes among the processes of the node.
#[derive(Debug)]
pub struct Processes {
    proc: PathBuf,
    /// Inodes of namespaces that are no pod's: the node's and our own.
    foreign: BTreeSet<u64>,
}

impl Processes {
    /// The processes that a proc file system shows.
    ///
    /// # Errors
    /// It shows no first process, or not its namespace.
    pub fn new(proc: &Path) -> io::Result<Self> {
        let first = proc.join("1/ns/net");
        let inode = |path: &Path| fs::metadata(path).map(|metadata| metadata.ino());
        let node = inode(&first).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "{}: {error}; mount the node's /proc and name it with --proc, with CAP_SYS_PTRACE",
                    first.display()
                ),
            )
        })?;
        let own = inode(Path::new("/proc/self/ns/net"))?;
        Ok(Self { proc: proc.to_owned(), foreign: BTreeSet::from([node, own]) })
    }

    /// The sandboxes of these pods, by uid, in one pass over all processes. A pod that has no process in a namespace of its own
    /// yet is left out. Of several namespaces it is that of the oldest process: a sandbox is there before what runs in it.
    #[must_use]
    pub fn find(&self, uids: &BTreeSet<String>) -> BTreeMap<String, Sandbox> {
        let mut found: BTreeMap<String, (u64, Sandbox)> = BTreeMap::new();
        if uids.is_empty() {
            return BTreeMap::new();
        }
        let entries = fs::read_dir(&self.proc).into_iter().flatten().filter_map(Result::ok);
        for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let Some(uid) = self.pod_of(pid, uids) else { continue };
            let Some((age, sandbox)) = self.sandbox(pid, &uid, uids) else { continue };
            let older = |(other, _): &(u64, Sandbox)| age < *other;
            if found.get(&uid).is_none_or(older) {
                found.insert(uid, (age, sandbox));
            }
        }
        found.into_iter().map(|(uid, (_, sandbox))| (uid, sandbox)).collect()
    }

    /// Whether a sandbox is still that of the pod.
    #[must_use]
    pub fn stands(&self, uid: &str, sandbox: &Sandbox) -> bool {
        let uids = BTreeSet::from([uid.to_owned()]);
        let inode = fs::metadata(&sandbox.netns).map(|metadata| metadata.ino());
        inode.is_ok_and(|inode| inode == sandbox.inode) && self.pod_of(sandbox.pid, &uids).is_some()
    }

    /// Whose process this is.
    fn pod_of(&self, pid: u32, uids: &BTreeSet<String>) -> Option<String> {
        let text = fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup")).ok()?;
        uid_in(text.lines().find_map(|line| line.strip_prefix("0::"))?, uids)
    }

    /// When the process started, and its namespace. The pod is looked at again after the namespace was opened, so that a
    /// process number that was given to somebody else meanwhile is noticed.
    fn sandbox(&self, pid: u32, uid: &str, uids: &BTreeSet<String>) -> Option<(u64, Sandbox)> {
        let folder = self.proc.join(pid.to_string());
        let netns = folder.join("ns/net");
        let inode = File::open(&netns).ok()?.metadata().ok()?.ino();
        // A container's first process is in the node's namespace until the runtime has moved it.
        if self.foreign.contains(&inode) {
            return None;
        }
        let started = started(&fs::read_to_string(folder.join("stat")).ok()?)?;
        (self.pod_of(pid, uids).as_deref() == Some(uid)).then_some((started, Sandbox { netns, inode, pid }))
    }
}

/// When a process started, in ticks since the boot (proc(5): field 22; the name in field 2 may hold spaces and brackets).
fn started(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The one of `uids` a cgroup path belongs to, as kubelets spell it: `…/pod<uid>/…` (cgroupfs) or
/// `…-pod<uid with _ for ->.slice/…` (systemd). The outermost counts: a pod may name cgroups of its own as it likes, but only
/// below that.
pub(super) fn uid_in(path: &str, uids: &BTreeSet<String>) -> Option<String> {
    path.split('/').find_map(|part| uids.get(&uid_of(part)?).cloned())
}

/// What stands for the uid in the name of a pod's cgroup.
pub(super) fn uid_of(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = name.rsplit_once("pod")?;
    (before.is_empty() || before.ends_with('-')).then(|| uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    const A: &str = "0c2f9a2e-7d55-4bb4-9b6e-3f3f4fd2a001";
    const B: &str = "1d2f9a2e-7d55-4bb4-9b6e-3f3f4fd2a002";

    #[test]
    fn uids_are_read_from_the_paths_of_both_drivers_and_from_within_a_cgroup_namespace() {
        let uids = BTreeSet::from([A.to_owned(), B.to_owned()]);
        let systemd = A.replace('-', "_");
        let rows = [
            (format!("/kubepods/besteffort/pod{A}/0123abc"), Some(A)),
            (format!("/kubepods/pod{A}/0123abc/nested"), Some(A)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-1.scope"
                ),
                Some(A),
            ),
            (format!("/kubepods.slice/kubepods-pod{systemd}.slice/crio-1.scope"), Some(A)),
            (format!("/../../pod{A}/0123abc"), Some(A)),
            (format!("/../../kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/x.scope"), Some(A)),
            (format!("/kubepods/pod{B}/c/pod{A}/d"), Some(B)),
            (format!("/kubepods/burstable/podX{A}/c"), None),
            (format!("/user.slice/tripod{A}/c"), None),
            ("/kubepods/besteffort/pod00000000-7d55-4bb4-9b6e-3f3f4fd2a001/c".to_owned(), None),
            ("/system.slice/kubelet.service".to_owned(), None),
            ("/".to_owned(), None),
        ];
        for (path, expected) in rows {
            assert_eq!(uid_in(&path, &uids).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn the_start_is_read_behind_any_name() {
        let line = |name: &str| format!("77 ({name}) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2 3");
        for name in ["sleep", "a b", "x) S 1 (y", "))"] {
            assert_eq!(started(&line(name)), Some(4242), "{name}");
        }
        assert_eq!(started("nothing"), None);
    }

    #[test]
    fn a_made_up_proc_gives_the_oldest_process_of_a_pod_and_never_the_nodes_namespace() {
        let root = std::env::temp_dir().join(format!("causeway-proc-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        // Files stand for namespaces: only their inodes matter here.
        let process = |pid: u32, cgroup: &str, start: u64, namespace: &str| {
            let folder = root.join(pid.to_string());
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("cgroup"), format!("1:cpu:/elsewhere\n0::{cgroup}\n")).unwrap();
            let stat = format!("{pid} (x) S 1 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 {start} 1");
            fs::write(folder.join("stat"), stat).unwrap();
            let file = root.join(namespace);
            fs::write(&file, "").unwrap();
            fs::hard_link(&file, folder.join("ns/net")).unwrap();
        };
        process(1, "/init", 1, "node");
        process(20, &format!("/kubepods/pod{A}/sandbox"), 50, "a");
        process(10, &format!("/kubepods/pod{A}/app"), 60, "inner");
        process(30, &format!("/kubepods/pod{B}/starting"), 70, "node");
        let uids = BTreeSet::from([A.to_owned(), B.to_owned()]);
        let processes = Processes::new(&root).unwrap();
        let found = processes.find(&uids);
        assert_eq!(found.keys().collect::<Vec<_>>(), [A], "one in the node's namespace is not moved yet");
        let sandbox = found.get(A).unwrap();
        assert_eq!(sandbox.netns, root.join("20/ns/net"));
        assert!(processes.stands(A, sandbox));
        fs::write(root.join("20/cgroup"), format!("0::/kubepods/pod{B}/x\n")).unwrap();
        assert!(!processes.stands(A, sandbox), "the number belongs to somebody else now");
        fs::remove_dir_all(&root).unwrap();
        assert!(Processes::new(&root).is_err());
    }
}
