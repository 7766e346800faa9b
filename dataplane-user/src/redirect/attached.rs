//! Which programs are attached where they should be: whoever has the privilege may have detached one.

use std::collections::BTreeMap;

use super::error::{EnrolError, LoadError};
use super::object;
use super::pods::Pod;
use super::redirector::Redirector;

impl Redirector {
    /// The programs of the node's and the pods' cgroup, and whether each is attached to its own.
    pub fn programs(&self) -> BTreeMap<&'static str, bool> {
        object::attached(&self.pins, self.attached, self.entry.is_some())
    }

    /// Enrolled pods, by workload uid, to whose namespace the socket lookup is not attached.
    pub fn uncaptured(&self) -> Vec<String> {
        let is_closed = |pod: &Pod| object::is_attached(&self.pins.pod(pod.netns.cookie), pod.netns.inode);
        let open = self.pods.iter().filter(|(_, pod)| pod.captured && !is_closed(pod));
        open.map(|(uid, _)| uid.clone()).collect()
    }

    /// Attaches the programs of the cgroups again that are not.
    ///
    /// # Errors
    /// A cgroup is not there, or the kernel refuses.
    pub fn attach_again(&mut self) -> Result<(), LoadError> {
        object::attach(&self.loaded, &self.pins, &self.config.cgroup_root, &self.config.pods_cgroup)?;
        match self.entry {
            Some(_) => object::attach_dial(&self.loaded, &self.pins, &self.config.cgroup_root),
            None => Ok(()),
        }
    }

    /// Attaches the socket lookup to a pod's namespace again.
    ///
    /// # Errors
    /// [`EnrolError::NotEnrolled`], or [`EnrolError::Step`] if the kernel refuses.
    pub fn capture_again(&mut self, uid: &str) -> Result<(), EnrolError> {
        let pod = self.pods.remove(uid).ok_or_else(|| EnrolError::NotEnrolled { uid: uid.to_owned() })?;
        let captured = self.capture_inbound(uid, &pod);
        self.pods.insert(uid.to_owned(), pod);
        captured
    }
}
