//! Enrolling pods and releasing them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use aya::maps::MapError;
use causeway_ebpf::abi::{self, DnsPod, ListenerKey, Record, listener_kind};

use super::cgroup;
use super::enrol::{EnrolRequest, Enrolled, Existing, PodId, WorkerListeners};
use super::error::{EnrolError, LoadError};
use super::helper::{Saved, StepError};
use super::maps::Plain;
use super::netns::{self, Netns};
use super::object;
use super::original::words;
use super::pins::remove_link;
use super::record;
use super::redirector::Redirector;
use super::sockets::Family;
use super::system::netns_cookie;

/// Between taking a pod out of PODS and taking its lookup away: a connect() that was rewritten just before has sent its SYN.
const IN_FLIGHT: Duration = Duration::from_millis(5);

/// An enrolled pod.
#[derive(Debug)]
pub(super) struct Pod {
    id: PodId,
    pub(super) netns: Netns,
    ips: Vec<IpAddr>,
    saved: Saved,
    /// New connections are redirected; false once `stop_capture` was called.
    pub(super) captured: bool,
    /// How its DNS queries were captured, once they are not any more.
    dns: Option<DnsPod>,
    /// One worker's listeners again, so that a capture that was stopped can be resumed: they stand for those of all workers.
    kept: Vec<(u32, TcpListener)>,
}

impl Redirector {
    /// Puts a pod under capture: new connections of it and to it go to the engine as soon as this returns; those that are open
    /// live on (or are reset, where the request says so).
    ///
    /// # Errors
    /// Every way this can fail is a variant of [`EnrolError`]; after an error nothing is left of the pod.
    pub fn enrol(&mut self, request: &EnrolRequest) -> Result<Enrolled, EnrolError> {
        let uid = request.uid.as_str();
        if self.pods.contains_key(uid) {
            return Err(EnrolError::AlreadyEnrolled { uid: uid.to_owned() });
        }
        if let Some(cgroup) = &request.cgroup {
            self.check_cgroup(uid, cgroup)?;
        }
        let netns = netns::open(uid, &request.netns, &self.config.proc)?;
        if request.inode.is_some_and(|inode| inode != netns.inode) {
            return Err(EnrolError::AnotherNamespace { uid: uid.to_owned(), path: netns.path });
        }
        // Before anything is opened there: listeners of two enrolments would share the connections.
        if let Some((other, _)) = self.pods.iter().find(|(_, other)| other.netns.inode == netns.inode) {
            return Err(EnrolError::NamespaceTaken { uid: uid.to_owned(), other: other.clone() });
        }
        let id = PodId(self.next_pod);
        self.next_pod = self.next_pod.wrapping_add(1);
        // Listeners of a daemon that has made way take what is in their queues to the end; they must not share ports with these.
        let apart = self.pins.succeeds && self.adopted.values().any(|record| record.inode == netns.inode);
        let opened = self.helper.control.open(id, self.config.workers, apart, netns.fd.as_fd()).map_err(failed(uid))?;
        let missing = request.expected.iter().find(|ip| !opened.addresses.contains(ip));
        if let Some(address) = missing {
            let error = EnrolError::NotItsAddress { uid: uid.to_owned(), address: *address };
            let _ = self.helper.control.forget(id);
            let _ = self.helper.control.undo(opened.saved, netns.fd.as_fd());
            return Err(error);
        }
        let ips = if request.ips.is_empty() { opened.addresses } else { request.ips.clone() };
        let mut pod = Pod { id, netns, ips, saved: opened.saved, captured: true, dns: None, kept: Vec::new() };
        let dns = match self.capture(uid, &mut pod, &opened.listeners, request.dns) {
            Ok(dns) => dns,
            Err(error) => {
                self.undo(&pod);
                return Err(error);
            }
        };
        if request.existing == Existing::Close
            && let Err(error) = self.helper.control.close_existing(pod.netns.fd.as_fd())
        {
            self.undo(&pod);
            return Err(failed(uid)(error));
        }
        let enrolled = Enrolled {
            pod: id,
            uid: uid.to_owned(),
            netns_cookie: pod.netns.cookie,
            inode: pod.netns.inode,
            ips: pod.ips.clone(),
            listeners: opened.listeners,
            dns,
        };
        self.pods.insert(uid.to_owned(), pod);
        Ok(enrolled)
    }

    fn check_cgroup(&self, uid: &str, cgroup: &Path) -> Result<(), EnrolError> {
        let pods = &self.config.pods_cgroup;
        let below = cgroup.canonicalize().is_ok_and(|path| path != *pods && path.starts_with(pods));
        if below && cgroup::is_cgroup2(cgroup).unwrap_or(false) {
            return Ok(());
        }
        Err(EnrolError::CgroupOutside { uid: uid.to_owned(), cgroup: cgroup.to_owned(), pods: pods.clone() })
    }

    /// Fills the maps for a pod whose listeners are open: everything that answers before what sends.
    fn capture(
        &mut self,
        uid: &str,
        pod: &mut Pod,
        listeners: &[WorkerListeners],
        dns: bool,
    ) -> Result<Vec<UdpSocket>, EnrolError> {
        let step = |action: &str| {
            let (uid, action) = (uid.to_owned(), action.to_owned());
            move |source| EnrolError::Step { uid, action, source }
        };
        let first = listeners.first().ok_or_else(|| step("opening listeners")(io::ErrorKind::NotFound.into()))?;
        pod.netns.cookie =
            netns_cookie(first.outbound.as_fd()).map_err(step("reading the namespace's cookie (needs Linux 5.14)"))?;
        let cookie = pod.netns.cookie;
        if pod.ips.is_empty() {
            return Err(EnrolError::NoAddress { uid: uid.to_owned() });
        }
        self.check_addresses(uid, pod)?;
        if let Some(earlier) = self.adopted.get(&cookie) {
            pod.saved = earliest(record::saved(earlier), pod.saved);
        }
        let kept = record::new(uid, &pod.netns.path, pod.netns.inode, pod.saved);
        self.maps.records.insert(cookie, Plain(kept), 0).map_err(in_map(uid, "RECORDS"))?;
        for (kind, listener) in [
            (listener_kind::OUTBOUND, &first.outbound),
            (listener_kind::PLAINTEXT, &first.plaintext),
            (listener_kind::HBONE, &first.hbone),
        ] {
            pod.kept.push((kind, listener.try_clone().map_err(step("keeping a listener"))?));
        }
        self.capture_inbound(uid, pod)?;
        let value = destination(&pod.ips);
        let sockets = if dns { self.capture_dns(uid, cookie, pod.netns.fd.as_fd(), &value)? } else { Vec::new() };
        if !dns {
            self.uncapture_dns(cookie);
        }
        self.maps.pods.insert(cookie, Plain(value), 0).map_err(in_map(uid, "PODS"))?;
        self.adopted.remove(&cookie);
        Ok(sockets)
    }

    /// Directs what arrives for a pod to the listeners that are kept of it.
    pub(super) fn capture_inbound(&mut self, uid: &str, pod: &Pod) -> Result<(), EnrolError> {
        let cookie = pod.netns.cookie;
        for (kind, listener) in &pod.kept {
            let key = ListenerKey { netns: cookie, kind: *kind, pad: 0 };
            self.maps.listeners.insert(Plain(key), listener.as_raw_fd(), 0).map_err(in_map(uid, "LISTENERS"))?;
        }
        for ip in &pod.ips {
            self.maps.pod_by_ip.insert(words(*ip), cookie, 0).map_err(in_map(uid, "POD_BY_IP"))?;
        }
        self.maps.pod_by_ip.insert(abi::hold_address(cookie), cookie, 0).map_err(in_map(uid, "POD_BY_IP"))?;
        let pin = self.pins.pod(cookie);
        object::attach_lookup(self.lookup.as_fd(), pod.netns.fd.as_fd(), pod.netns.inode, &pin).map_err(|source| {
            let action = String::from("attaching the socket lookup (needs Linux 5.9 and CAP_NET_ADMIN)");
            EnrolError::Step { uid: uid.to_owned(), action, source }
        })
    }

    /// Two pods of a node never share an address; one that an earlier daemon knew under it is gone.
    fn check_addresses(&mut self, uid: &str, pod: &Pod) -> Result<(), EnrolError> {
        for ip in &pod.ips {
            let owner = match self.maps.pod_by_ip.get(&words(*ip), 0) {
                Ok(owner) if owner != pod.netns.cookie => owner,
                Ok(_) | Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(in_map(uid, "POD_BY_IP")(error)),
            };
            if let Some((other, _)) = self.pods.iter().find(|(_, other)| other.netns.cookie == owner) {
                return Err(EnrolError::AddressTaken { uid: uid.to_owned(), address: *ip, other: other.clone() });
            }
            if let Some(record) = self.adopted.remove(&owner) {
                self.clean(owner, &record)?;
            }
            let _ = self.maps.pod_by_ip.remove(&words(*ip));
        }
        Ok(())
    }

    /// A socket in the namespace of an enrolled pod, not connected, non-blocking.
    ///
    /// # Errors
    /// [`EnrolError::NotEnrolled`], or [`EnrolError::Step`] if none can be made.
    pub fn socket(&self, uid: &str, family: Family) -> Result<OwnedFd, EnrolError> {
        let pod = self.pods.get(uid).ok_or_else(|| EnrolError::NotEnrolled { uid: uid.to_owned() })?;
        self.helper.control.socket(family, pod.netns.fd.as_fd()).map_err(failed(uid))
    }

    /// Ends the redirection of new connections, in both directions. Open ones go on: listeners, rules and sysctl values stay
    /// until [`forget`](Self::forget).
    ///
    /// # Errors
    /// [`EnrolError::NotEnrolled`], or [`EnrolError::Step`] if the kernel refuses.
    pub fn stop_capture(&mut self, uid: &str) -> Result<(), EnrolError> {
        self.stop_outbound(uid)?;
        let pod = self.pods.get_mut(uid).ok_or_else(|| EnrolError::NotEnrolled { uid: uid.to_owned() })?;
        pod.captured = false;
        let (cookie, ips) = (pod.netns.cookie, pod.ips.clone());
        std::thread::sleep(IN_FLIGHT);
        self.uncapture(cookie, &ips).map_err(|source| EnrolError::Step {
            uid: uid.to_owned(),
            action: String::from("detaching the socket lookup"),
            source,
        })
    }

    /// Ends the redirection of connections that the pod opens, and of its DNS. What arrives for it is redirected as before, so
    /// that peers who have not heard yet still find somebody who speaks HBONE. [`stop_capture`](Self::stop_capture) follows.
    ///
    /// # Errors
    /// [`EnrolError::NotEnrolled`].
    pub fn stop_outbound(&mut self, uid: &str) -> Result<(), EnrolError> {
        let pod = self.pods.get(uid).ok_or_else(|| EnrolError::NotEnrolled { uid: uid.to_owned() })?;
        let cookie = pod.netns.cookie;
        let dns = self.pause_dns(cookie);
        let _ = self.maps.pods.remove(&cookie);
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.dns = dns.or(pod.dns);
        }
        Ok(())
    }

    /// Redirects new connections of a pod and its DNS queries again, before it was forgotten.
    ///
    /// # Errors
    /// [`EnrolError::NotEnrolled`], or [`EnrolError::Step`] if the kernel refuses; what was redirected before still is.
    pub fn resume(&mut self, uid: &str) -> Result<(), EnrolError> {
        let mut pod = self.pods.remove(uid).ok_or_else(|| EnrolError::NotEnrolled { uid: uid.to_owned() })?;
        let inbound = if pod.captured { Ok(()) } else { self.capture_inbound(uid, &pod) };
        let value = destination(&pod.ips);
        let cookie = pod.netns.cookie;
        let resumed = inbound.and_then(|()| {
            if let Some(dns) = pod.dns {
                self.maps.dns_pods.insert(cookie, Plain(dns), 0).map_err(in_map(uid, "DNS_PODS"))?;
            }
            self.maps.pods.insert(cookie, Plain(value), 0).map_err(in_map(uid, "PODS"))
        });
        pod.captured |= resumed.is_ok();
        self.pods.insert(uid.to_owned(), pod);
        resumed
    }

    /// Lets go of listeners that are kept for [`resume`](Self::resume): with those of the workers the last ones are closed.
    pub fn let_go(&mut self) {
        self.pods.values_mut().for_each(|pod| pod.kept.clear());
    }

    /// Undoes the rest of an enrolment, after the engine has closed the pod's listeners and its last connection.
    ///
    /// # Errors
    /// [`EnrolError::NotEnrolled`], or [`EnrolError::Step`] if something inside the namespace could not be undone; the pod is
    /// forgotten all the same.
    pub fn forget(&mut self, uid: &str) -> Result<(), EnrolError> {
        if self.pods.get(uid).is_some_and(|pod| pod.captured) {
            self.stop_capture(uid)?;
        }
        let pod = self.pods.remove(uid).ok_or_else(|| EnrolError::NotEnrolled { uid: uid.to_owned() })?;
        if pod.dns.is_some() {
            self.forget_servers(pod.netns.cookie);
        }
        let undone = self.helper.control.undo(pod.saved, pod.netns.fd.as_fd());
        let forgotten = self.helper.control.forget(pod.id);
        let _ = self.maps.records.remove(&pod.netns.cookie);
        undone.and(forgotten).map_err(failed(uid))
    }

    /// Removes everything from the kernel: pods, programs, pins. Returns what could not be undone inside a pod's namespace;
    /// everything else is gone then too.
    ///
    /// # Errors
    /// [`LoadError::Io`] if a pin cannot be removed.
    pub fn remove(mut self) -> Result<Vec<EnrolError>, LoadError> {
        let uids: Vec<String> = self.pods.keys().cloned().collect();
        let mut failures: Vec<EnrolError> = uids.iter().filter_map(|uid| self.forget(uid).err()).collect();
        failures.extend(self.sweep());
        self.close_entry()?;
        self.pins.remove()?;
        Ok(failures)
    }

    /// Removes every pod of an earlier daemon that was not enrolled again. Returns what could not be undone.
    pub fn sweep(&mut self) -> Vec<EnrolError> {
        self.sweep_unless(|_| false)
    }

    /// Removes the pods of an earlier daemon that were not enrolled again and are not `wanted`, by workload uid. Those that
    /// are, and could not be enrolled yet, stay refused. Returns what could not be undone.
    pub fn sweep_unless(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<EnrolError> {
        let (kept, stale) = std::mem::take(&mut self.adopted)
            .into_iter()
            .partition::<BTreeMap<u64, Record>, _>(|(_, record)| wanted(&record::uid(record)));
        self.adopted = kept;
        let mut failures: Vec<EnrolError> =
            stale.iter().filter_map(|(cookie, record)| self.clean(*cookie, record).err()).collect();
        // Links without a record: the daemon died in between.
        let enrolled: Vec<u64> = self.pods.values().map(|pod| pod.netns.cookie).collect();
        let known = |cookie: &u64| enrolled.contains(cookie) || self.adopted.contains_key(cookie);
        let unknown: Vec<u64> = self.pins.pods().into_iter().filter(|cookie| !known(cookie)).collect();
        for cookie in unknown {
            if let Err(source) = self.uncapture(cookie, &[]) {
                let (uid, action) = (format!("netns {cookie}"), String::from("removing its link"));
                failures.push(EnrolError::Step { uid, action, source });
            }
        }
        failures
    }

    /// Removes what an earlier daemon left of one pod.
    fn clean(&mut self, cookie: u64, record: &Record) -> Result<(), EnrolError> {
        let uid = record::uid(record);
        let ips: Vec<IpAddr> = self.addresses_of(cookie);
        self.uncapture(cookie, &ips).map_err(|source| EnrolError::Step {
            uid: uid.clone(),
            action: String::from("removing its link"),
            source,
        })?;
        // A namespace nobody has any more took its rules and sysctl values with it.
        let undone = match netns::find(&self.config.proc, &record::path(record), record.inode) {
            Some(netns) => self.helper.control.undo(record::saved(record), netns.as_fd()).map_err(failed(&uid)),
            None => Ok(()),
        };
        let _ = self.maps.records.remove(&cookie);
        undone
    }

    fn addresses_of(&self, cookie: u64) -> Vec<IpAddr> {
        let entries = self.maps.pod_by_ip.iter().filter_map(Result::ok);
        entries.filter(|(_, owner)| *owner == cookie).map(|(addr, _)| super::original::address(&addr)).collect()
    }

    /// Takes a pod out of the maps and its lookup away, in the order that never leaves a rewritten connection without listener.
    fn uncapture(&mut self, cookie: u64, ips: &[IpAddr]) -> io::Result<()> {
        self.uncapture_dns(cookie);
        if self.maps.pods.remove(&cookie).is_ok() {
            std::thread::sleep(IN_FLIGHT);
        }
        remove_link(&self.pins.pod(cookie))?;
        for key in ips.iter().map(|ip| words(*ip)).chain([abi::hold_address(cookie)]) {
            if self.maps.pod_by_ip.get(&key, 0).is_ok_and(|owner| owner == cookie) {
                let _ = self.maps.pod_by_ip.remove(&key);
            }
        }
        for kind in 0..listener_kind::COUNT {
            let _ = self.maps.listeners.remove(&Plain(ListenerKey { netns: cookie, kind, pad: 0 }));
        }
        Ok(())
    }

    /// Undoes a failed enrolment as far as it went. The first error is the one that is reported. A pod of an earlier daemon
    /// goes back to being refused.
    fn undo(&mut self, pod: &Pod) {
        let _ = self.helper.control.forget(pod.id);
        if self.adopted.contains_key(&pod.netns.cookie) {
            return;
        }
        if pod.netns.cookie != 0 {
            let _ = self.uncapture(pod.netns.cookie, &pod.ips);
            let _ = self.maps.records.remove(&pod.netns.cookie);
        }
        let _ = self.helper.control.undo(pod.saved, pod.netns.fd.as_fd());
    }
}

/// The values from before the first of two enrolments of the same namespace.
fn earliest(earlier: Saved, later: Saved) -> Saved {
    let pick = |earlier: i32, later: i32| if earlier >= 0 { earlier } else { later };
    Saved {
        fwmark_accept: pick(earlier.fwmark_accept, later.fwmark_accept),
        somaxconn: pick(earlier.somaxconn, later.somaxconn),
        reflect4: pick(earlier.reflect4, later.reflect4),
        reflect6: pick(earlier.reflect6, later.reflect6),
    }
}

/// Where rewritten connections of a pod with these addresses go.
fn destination(ips: &[IpAddr]) -> abi::Pod {
    abi::Pod { v4: first_of(ips, IpAddr::is_ipv4), v6: first_of(ips, IpAddr::is_ipv6) }
}

fn first_of(ips: &[IpAddr], family: impl Fn(&IpAddr) -> bool) -> abi::Addr {
    ips.iter().map(IpAddr::to_canonical).find(|ip| family(ip)).map_or([0; 4], words)
}

pub(super) fn failed(uid: &str) -> impl Fn(StepError) -> EnrolError {
    let uid = uid.to_owned();
    move |error| EnrolError::Step { uid: uid.clone(), action: error.action, source: error.source }
}

pub(super) fn in_map(uid: &str, map: &'static str) -> impl Fn(MapError) -> EnrolError {
    let uid = uid.to_owned();
    move |error| {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        };
        EnrolError::Step { uid: uid.clone(), action: format!("writing map {map}"), source }
    }
}
