//! Which pods are enrolled, which should be, and which are on their way out.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tracing::{error, info, warn};

use super::{
    dns,
    worker::{self, Command},
};
use crate::{
    redirect::{EnrolRequest, Existing, NetnsRef, PodId, Redirector},
    state::{Enrolment, ExistingConnections},
};

/// Ticks between two attempts at a pod that could not be enrolled.
const RETRY_TICKS: u32 = 4;

/// An enrolled pod, as the admin socket tells of it.
#[derive(serde::Serialize)]
pub(super) struct PodInfo {
    #[serde(skip)]
    pod: PodId,
    #[serde(skip)]
    open: Arc<AtomicUsize>,
    netns: PathBuf,
    netns_cookie: u64,
    ips: Vec<IpAddr>,
}

/// What the admin socket tells.
#[derive(Default)]
pub(super) struct Report {
    /// Enrolled pods by workload uid.
    pub(super) enrolled: BTreeMap<String, PodInfo>,
    /// Pods no longer redirected whose connections still run.
    pub(super) releasing: BTreeMap<String, PodInfo>,
    /// Pods that could not be enrolled, and why.
    pub(super) failed: BTreeMap<String, String>,
    /// Enrolments so far.
    pub(super) started: u64,
    /// Enrolments that ended.
    pub(super) stopped: u64,
    /// Counters of the kernel programs.
    pub(super) kernel: Vec<(&'static str, u64)>,
    /// Node ports: addresses and ports in use, and why not, if they are not.
    pub(super) node_ports: super::node_ports::Report,
    /// Why the model file is not in force, if it is not.
    pub(super) model_error: Option<String>,
    /// What keeps the kernel from redirecting any pod, if anything does.
    pub(super) trouble: Option<String>,
}

/// Keeps enrolment at what the model asks for.
pub(super) struct Enrolments {
    pub(super) redirector: Redirector,
    report: Arc<Mutex<Report>>,
    ticks: u32,
}

impl Enrolments {
    pub(super) fn new(redirector: Redirector) -> Self {
        Self { redirector, report: Arc::default(), ticks: 0 }
    }

    /// What there is to tell, for now.
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to tell, for another thread.
    pub(super) fn shared_report(&self) -> Arc<Mutex<Report>> {
        self.report.clone()
    }

    /// Releases pods that are not wanted, enrols those that are, forgets what an earlier daemon left of others.
    pub(super) fn apply(&mut self, wanted: &[Enrolment], workers: &[worker::Handle]) {
        let is_wanted = |uid: &str| wanted.iter().any(|enrolment| *enrolment.workload == *uid);
        // A pod made anew under its old uid has another namespace: the old one is released first.
        let stands = |uid: &str, pod: &PodInfo| {
            wanted.iter().any(|enrolment| *enrolment.workload == *uid && netns(enrolment).path() == pod.netns)
        };
        let enrolled = |report: &Report| -> Vec<String> {
            report.enrolled.iter().filter(|(uid, pod)| !stands(uid, pod)).map(|(uid, _)| uid.clone()).collect()
        };
        let gone = enrolled(&self.report());
        for uid in gone {
            self.release(&uid);
        }
        self.report().failed.retain(|uid, _| is_wanted(uid));
        for enrolment in wanted {
            let uid = enrolment.workload.to_string();
            let known = {
                let report = self.report();
                report.enrolled.contains_key(&uid) || report.releasing.contains_key(&uid)
            };
            if !known {
                self.enrol(uid, enrolment, workers);
            }
        }
        for error in self.redirector.sweep_unless(is_wanted) {
            warn!("a pod of an earlier daemon left something behind: {error}");
        }
    }

    /// Regular work: ends releases whose last connection is gone, tries again what failed, reads the kernel's counters.
    pub(super) fn tick(&mut self, wanted: &[Enrolment], workers: &[worker::Handle]) {
        self.ticks = self.ticks.wrapping_add(1);
        self.stay_attached();
        let left = self.leave_what_is_gone(workers);
        let ended = self.end_releases(workers);
        let retry = self.ticks.is_multiple_of(RETRY_TICKS) && !self.report().failed.is_empty();
        if left || ended || retry {
            self.apply(wanted, workers);
        }
        match self.redirector.counters() {
            Ok(counters) => self.report().kernel = counters,
            Err(error) => warn!("{error}"),
        }
    }

    /// Enrols one pod. One that cannot be enrolled is reported and does not keep the others out.
    fn enrol(&mut self, uid: String, enrolment: &Enrolment, workers: &[worker::Handle]) {
        let netns = netns(enrolment);
        let request = EnrolRequest {
            uid: uid.clone(),
            netns: netns.clone(),
            cgroup: enrolment.cgroup.clone(),
            ips: Vec::new(),
            existing: match enrolment.existing {
                ExistingConnections::Keep => Existing::Keep,
                ExistingConnections::Close => Existing::Close,
            },
            dns: enrolment.dns,
        };
        match self.redirector.enrol(&request) {
            Ok(enrolled) => {
                let open = Arc::new(AtomicUsize::new(0));
                let mut capture = Some(dns::Capture {
                    sockets: enrolled.dns,
                    netns_cookie: enrolled.netns_cookie,
                    ips: enrolled.ips.clone(),
                });
                // DNS over UDP is one worker's: datagrams of one socket must not be shared out among threads.
                let resolver = enrolled.pod.0 as usize % workers.len().max(1);
                for (number, (worker, listeners)) in workers.iter().zip(enrolled.listeners).enumerate() {
                    let (pod, uid, open) = (enrolled.pod, enrolment.workload.clone(), open.clone());
                    let capture = if number == resolver { capture.take() } else { None };
                    let dns = enrolment.dns;
                    let _ = worker.commands.send(Command::AddPod { pod, uid, open, listeners, dns, capture });
                }
                info!(uid, "enrolled");
                let info = PodInfo {
                    pod: enrolled.pod,
                    open,
                    netns: netns.path(),
                    netns_cookie: enrolled.netns_cookie,
                    ips: enrolled.ips,
                };
                let mut report = self.report();
                report.failed.remove(&uid);
                report.started += 1;
                report.enrolled.insert(uid, info);
            }
            Err(failure) => {
                let text = failure.to_string();
                let before = self.report().failed.insert(uid.clone(), text.clone());
                if before.as_deref() != Some(&text) {
                    error!("cannot enrol {uid}: {text}");
                }
            }
        }
    }

    /// New connections of the pod pass by from now on; those that run go on.
    fn release(&mut self, uid: &str) {
        if let Err(failure) = self.redirector.stop_capture(uid) {
            error!("{uid} is still redirected: {failure}");
            return;
        }
        let mut report = self.report();
        if let Some(info) = report.enrolled.remove(uid) {
            report.releasing.insert(uid.to_owned(), info);
        }
    }

    /// Undoes the rest of enrolments whose last connection has ended. True if there was one.
    fn end_releases(&mut self, workers: &[worker::Handle]) -> bool {
        let idle: Vec<(String, PodId)> = self
            .report()
            .releasing
            .iter()
            .filter(|(_, info)| info.open.load(Relaxed) == 0)
            .map(|(uid, info)| (uid.clone(), info.pod))
            .collect();
        for (uid, pod) in &idle {
            self.forget(uid, *pod, workers);
            info!(uid, "released");
        }
        !idle.is_empty()
    }

    /// Leaves pods whose namespace nobody has any more, or whose name stands for another one: a pod made anew. What runs
    /// over the old one is not waited for, or the new one would be outside the mesh meanwhile. True if there was one.
    fn leave_what_is_gone(&mut self, workers: &[worker::Handle]) -> bool {
        let gone: Vec<(String, PodId)> = {
            let report = self.report();
            let gone = report.enrolled.iter().filter(|(uid, _)| self.redirector.is_gone(uid));
            gone.map(|(uid, info)| (uid.clone(), info.pod)).collect()
        };
        for (uid, pod) in &gone {
            warn!("{uid}: its network namespace is gone; it is enrolled again as soon as there is one of that name");
            self.forget(uid, *pod, workers);
        }
        !gone.is_empty()
    }

    fn forget(&mut self, uid: &str, pod: PodId, workers: &[worker::Handle]) {
        for worker in workers {
            let _ = worker.commands.send(Command::RemovePod { pod });
        }
        if let Err(failure) = self.redirector.forget(uid) {
            error!("releasing {uid} left something behind: {failure}");
        }
        let mut report = self.report();
        report.enrolled.remove(uid);
        report.releasing.remove(uid);
        report.stopped += 1;
    }

    /// Puts the programs back in place where a cgroup was made anew.
    fn stay_attached(&mut self) {
        let trouble = match self.redirector.stay_attached() {
            Ok(false) => None,
            Ok(true) => {
                error!(
                    "the pods' cgroup was made anew: programs are attached to it again, and what its pods had opened meanwhile went past them"
                );
                None
            }
            Err(failure) => Some(failure.to_string()),
        };
        let before = std::mem::replace(&mut self.report().trouble, trouble.clone());
        match trouble {
            Some(text) if before.as_ref() != Some(&text) => error!("no pod can be redirected: {text}"),
            None if before.is_some() => info!("pods are redirected again"),
            _ => {}
        }
    }
}

/// The namespace an enrolment names: a name of `ip netns`, or a path.
fn netns(enrolment: &Enrolment) -> NetnsRef {
    match enrolment.netns.to_str() {
        Some(name) if !name.contains('/') => NetnsRef::Name(name.to_owned()),
        _ => NetnsRef::Path(enrolment.netns.clone()),
    }
}
