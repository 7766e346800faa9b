//! The cgroups of pods, by which the kernel knows them before they have a network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::sandbox::uid_in;

/// The cgroup of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    folder: PathBuf,
    /// Its id in the kernel.
    pub id: u64,
}

impl PodCgroup {
    /// Whether it is still there.
    #[must_use]
    pub fn stands(&self) -> bool {
        fs::metadata(&self.folder).is_ok_and(|metadata| metadata.ino() == self.id)
    }

    /// Whether a process is in it or below it.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.folder.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }
}

/// The cgroups of these pods, by uid, below the folder of all pods: directly, or one level deeper by class of service.
#[must_use]
pub fn find(pods: &Path, uids: &BTreeSet<String>) -> BTreeMap<String, PodCgroup> {
    let mut found = BTreeMap::new();
    if uids.is_empty() {
        return found;
    }
    let mut folders = vec![(pods.to_owned(), true)];
    while let Some((folder, classes)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            match name.to_str().and_then(|name| uid_in(name, uids)) {
                Some(uid) => {
                    if let Ok(metadata) = entry.metadata() {
                        found.insert(uid, PodCgroup { folder: entry.path(), id: metadata.ino() });
                    }
                }
                None if classes => folders.push((entry.path(), false)),
                None => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn pods_are_found_below_their_class_and_beside_it_and_known_again() {
        let root = std::env::temp_dir().join(format!("causeway-pods-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let (a, b) = ("0c2f9a2e-7d55-4bb4-9b6e-3f3f4fd2a001", "1d2f9a2e-7d55-4bb4-9b6e-3f3f4fd2a002");
        let systemd = format!("kubepods-burstable.slice/kubepods-burstable-pod{}.slice", b.replace('-', "_"));
        for folder in [format!("pod{a}/container"), systemd.clone(), "besteffort/other".to_owned()] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let uids = BTreeSet::from([a.to_owned(), b.to_owned()]);
        let found = find(&root, &uids);
        assert_eq!(found.keys().collect::<Vec<_>>(), [a, b]);
        let pod = found.get(b).unwrap();
        assert_eq!(pod.id, fs::metadata(root.join(&systemd)).unwrap().ino());
        assert!(pod.stands() && !pod.is_populated());
        fs::write(root.join(&systemd).join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(pod.is_populated());
        fs::remove_dir_all(root.join(&systemd)).unwrap();
        assert!(!pod.stands() && !pod.is_populated());
        fs::remove_dir_all(&root).unwrap();
        assert!(find(&root, &uids).is_empty());
    }
}
