//! Whether what redirection stands on is still there: the cgroups, the pods' namespaces, the helper.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::cgroup;
use super::error::LoadError;
use super::netns::{self, Netns};
use super::pods::Pod;
use super::redirector::Redirector;

impl Redirector {
    /// Attaches the programs again if one of the two cgroups was removed and made anew: a removed one takes its links with it.
    /// True if that was so.
    ///
    /// # Errors
    /// A cgroup is not there, or the kernel refuses.
    pub fn stay_attached(&mut self) -> Result<bool, LoadError> {
        let found = ids(self)?;
        if found == self.attached {
            return Ok(false);
        }
        self.attach_again()?;
        self.attached = found;
        Ok(true)
    }

    /// Whether the namespace a pod was enrolled with is not the pod's any more: its name stands for another one, or no process
    /// and no name has it. While processes are left in it the pod stays closed.
    pub fn is_gone(&self, uid: &str) -> bool {
        let Some(Pod { netns: Netns { path, inode, .. }, .. }) = self.pods.get(uid) else { return false };
        match fs::metadata(path) {
            Ok(found) if found.ino() == *inode => false,
            // The number of a process that ended is given to others, which says nothing about the pod.
            Ok(_) if !path.starts_with("/proc") && !path.starts_with(&self.config.proc) => true,
            _ => netns::find(&self.config.proc, path, *inode).is_none(),
        }
    }

    /// Whether the helper runs.
    ///
    /// # Errors
    /// It has ended, and how.
    pub fn require_helper(&mut self) -> io::Result<()> {
        match self.helper.ended()? {
            None => Ok(()),
            Some(status) => Err(io::Error::other(format!(
                "the helper process has ended ({status}); nothing can be opened in pods without it, so the daemon ends too: start \
                 it again, pods are refused until then"
            ))),
        }
    }
}

/// Ids of the node's cgroup and of the pods'.
pub(super) fn ids(redirector: &Redirector) -> Result<(u64, u64), LoadError> {
    let id = |path: &std::path::Path| {
        cgroup::id(path).map_err(|source| LoadError::Io { action: "looking at", path: path.to_owned(), source })
    };
    Ok((id(&redirector.config.cgroup_root)?, id(&redirector.config.pods_cgroup)?))
}
