//! Which cgroups of the node are meant: its root, and the folder that kubelet puts pods under.

use std::path::{Path, PathBuf};

use super::node::Failure;

/// Names by cgroup driver, and where nodes are containers themselves.
const PODS: [&str; 4] = ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

/// The cgroup-2 hierarchy at `root`, or below it where controllers of version 1 are mounted beside it.
pub(super) fn root(root: &Path) -> PathBuf {
    let unified = root.join("unified");
    if !root.join("cgroup.procs").exists() && unified.join("cgroup.procs").exists() { unified } else { root.to_owned() }
}

/// The folder of all pods below `root`: the one that is named, else the one that is there.
pub(super) fn pods(root: &Path, named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(folder) = named {
        return Ok(if folder.is_absolute() { folder.to_owned() } else { root.join(folder) });
    }
    let found = PODS.iter().map(|name| root.join(name)).find(|folder| folder.is_dir());
    found.ok_or_else(|| {
        let names = PODS.join(", ");
        format!("none of {names} is below {}; name the pods' cgroup with --pods-cgroup", root.display()).into()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::fs;

    use super::*;

    #[test]
    fn folders_are_found_by_the_names_kubelets_give_them() {
        let folder = std::env::temp_dir().join(format!("causeway-cgroups-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("unified/kubelet/kubepods")).unwrap();
        fs::write(folder.join("unified/cgroup.procs"), "").unwrap();
        let hybrid = root(&folder);
        assert_eq!(hybrid, folder.join("unified"));
        assert_eq!(pods(&hybrid, None).unwrap(), hybrid.join("kubelet/kubepods"));
        assert_eq!(pods(&hybrid, Some(Path::new("own"))).unwrap(), hybrid.join("own"));
        assert_eq!(pods(&hybrid, Some(Path::new("/own"))).unwrap(), Path::new("/own"));
        assert!(pods(&folder, None).unwrap_err().to_string().contains("--pods-cgroup"));
        fs::write(folder.join("cgroup.procs"), "").unwrap();
        assert_eq!(root(&folder), folder, "the hierarchy itself");
        fs::remove_dir_all(&folder).unwrap();
    }
}
