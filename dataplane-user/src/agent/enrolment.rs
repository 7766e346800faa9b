//! Which pods are enrolled, which should be, and which are on their way out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{
    command::Command,
    dns,
    look::{Askable, Look, Seen},
    proof::Proving,
    worker,
};
use crate::{
    redirect::{EnrolError, EnrolRequest, Existing, Family, NetnsRef, PodId, Redirector},
    state::{Enrolment, ExistingConnections},
};

/// How long a pod that leaves the mesh still understands HBONE after the control plane says that it does not: peers hear of it
/// at about the same time.
const LINGER: Duration = Duration::from_secs(3);
/// The longest it does so where the control plane says nothing.
const LONGEST_LINGER: Duration = Duration::from_secs(15);
/// Ticks between two attempts at a pod that could not be enrolled.
const RETRY_TICKS: u32 = 4;

/// An enrolled pod, as the admin socket tells of it.
#[derive(serde::Serialize)]
pub(super) struct PodInfo {
    #[serde(skip)]
    pod: PodId,
    #[serde(skip)]
    open: Arc<AtomicUsize>,
    #[serde(skip)]
    inode: u64,
    netns: PathBuf,
    netns_cookie: u64,
    ips: Vec<IpAddr>,
    /// One of its DNS sockets.
    #[serde(skip)]
    dns: Option<SocketAddr>,
}

impl PodInfo {
    /// Its number and one of its DNS sockets, if it has any.
    pub(super) fn askable(&self) -> Option<(PodId, SocketAddr)> {
        Some((self.pod, self.dns?))
    }
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
    /// What the node saw of itself.
    pub(super) look: Arc<Mutex<Seen>>,
    /// Pods come from the Kubernetes API.
    pub(super) from_api: bool,
    /// It has not told all it knows yet.
    pub(super) incomplete: bool,
    /// Why the model file is not in force, if it is not.
    pub(super) model_error: Option<String>,
    /// What keeps the kernel from redirecting any pod, if anything does.
    pub(super) trouble: Option<String>,
}

/// Keeps enrolment at what the model asks for.
pub(super) struct Enrolments {
    pub(super) redirector: Redirector,
    /// Who is told of each pod, once its capture was tried.
    pub(super) proving: Option<Proving>,
    /// Pods that leave the mesh: since when, and since when the control plane says so.
    leaving: BTreeMap<String, (Instant, Option<Instant>)>,
    report: Arc<Mutex<Report>>,
    look: Look,
    ticks: u32,
}

impl Enrolments {
    pub(super) fn new(redirector: Redirector) -> Self {
        let report: Arc<Mutex<Report>> = Arc::default();
        let look = Look::new(report.lock().unwrap_or_else(PoisonError::into_inner).look.clone());
        Self { redirector, proving: None, leaving: BTreeMap::new(), report, look, ticks: 0 }
    }

    /// What there is to tell, for now.
    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to tell, for another thread.
    pub(super) fn shared_report(&self) -> Arc<Mutex<Report>> {
        self.report.clone()
    }

    /// Looks whether everything is as it should be; `name` is one that pods ask for.
    pub(super) fn look(&mut self, name: impl FnOnce() -> Option<String>, workers: &[worker::Handle]) {
        if self.look.tick(&mut self.redirector) {
            let askable =
                |(uid, info): (&String, &PodInfo)| Some(Askable { uid: uid.clone(), pod: info.pod, at: info.dns? });
            let pods: Vec<Askable> = self.report().enrolled.iter().filter_map(askable).collect();
            self.look.ask(&pods, name(), workers);
        }
    }

    /// Releases pods that are not wanted, enrols those that are, forgets what an earlier daemon left of others.
    pub(super) fn apply(&mut self, wanted: &[Enrolment], workers: &[worker::Handle]) {
        let is_wanted = |uid: &str| wanted.iter().any(|enrolment| *enrolment.workload == *uid);
        // A pod made anew under its old uid has another namespace: the old one is released first. So is one whose namespace
        // turns out to be without an address that it must have.
        let is_same = |wanted: &Enrolment, pod: &PodInfo| match wanted.inode {
            Some(inode) => inode == pod.inode && wanted.ips.iter().all(|ip| pod.ips.contains(ip)),
            None => netns(wanted).path() == pod.netns,
        };
        let stands = |uid: &str, pod: &PodInfo| {
            wanted.iter().any(|enrolment| *enrolment.workload == *uid && is_same(enrolment, pod))
        };
        let enrolled = |report: &Report| -> Vec<String> {
            report.enrolled.iter().filter(|(uid, pod)| !stands(uid, pod)).map(|(uid, _)| uid.clone()).collect()
        };
        let gone = enrolled(&self.report());
        for uid in gone {
            if self.proving.is_some() && !is_wanted(&uid) {
                self.leave(&uid);
            } else {
                self.release(&uid);
            }
        }
        let back = |report: &Report| -> Vec<String> {
            let left = report.enrolled.iter().filter(|(uid, _)| self.leaving.contains_key(*uid));
            let all = left.chain(&report.releasing).filter(|(uid, pod)| stands(uid, pod));
            all.map(|(uid, _)| uid.clone()).collect()
        };
        let back = back(&self.report());
        for uid in back {
            self.resume(&uid);
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
        // Before all that is wanted is known, nothing of an earlier daemon is removed.
        if !self.report().incomplete {
            for error in self.redirector.sweep_unless(is_wanted) {
                warn!("a pod of an earlier daemon left something behind: {error}");
            }
        }
        self.prove();
    }

    /// Tries the capture of pods that were enrolled and not tried yet, or in vain.
    fn prove(&mut self) {
        for uid in self.proving.iter_mut().flat_map(Proving::take_due).collect::<Vec<_>>() {
            let ip = self.report().enrolled.get(&uid).and_then(|info| info.ips.first().copied());
            let (Some(ip), Some(proving)) = (ip, &mut self.proving) else { continue };
            match self.redirector.socket(&uid, Family::from(ip)) {
                Ok(socket) => proving.start(uid, ip, socket),
                Err(failure) => {
                    proving.failed(&uid, &failure.to_string());
                    proving.enrolled(&uid);
                }
            }
        }
    }

    /// Regular work: ends releases whose last connection is gone, tries again what failed, reads the kernel's counters.
    pub(super) fn tick(&mut self, wanted: &[Enrolment], workers: &[worker::Handle]) {
        self.ticks = self.ticks.wrapping_add(1);
        self.stay_attached();
        let left = self.leave_what_is_gone(wanted, workers);
        self.end_leaves();
        let ended = self.end_releases(workers);
        let retry = self.ticks.is_multiple_of(RETRY_TICKS) && !self.report().failed.is_empty();
        if left || ended || retry {
            self.apply(wanted, workers);
        }
        self.prove();
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
            inode: enrolment.inode,
            expected: enrolment.ips.clone(),
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
                let asked = enrolled.dns.first().and_then(|socket| socket.local_addr().ok());
                let client = self.proving.as_ref().and_then(|proving| proving.client(enrolment)).map(Arc::new);
                let open = Arc::new(AtomicUsize::new(0));
                let mut capture = Some(dns::Capture {
                    sockets: enrolled.dns,
                    netns_cookie: enrolled.netns_cookie,
                    ips: enrolled.ips.clone(),
                });
                // DNS over UDP is one worker's: datagrams of one socket must not be shared out among threads.
                let resolver = enrolled.pod.0 as usize % workers.len().max(1);
                let ips: Arc<[IpAddr]> = enrolled.ips.clone().into();
                for (number, (worker, listeners)) in workers.iter().zip(enrolled.listeners).enumerate() {
                    let (pod, uid, client, open) =
                        (enrolled.pod, enrolment.workload.clone(), client.clone(), open.clone());
                    let capture = if number == resolver { capture.take() } else { None };
                    let (dns, ips) = (enrolment.dns, ips.clone());
                    let _ =
                        worker.commands.send(Command::AddPod { pod, uid, ips, client, open, listeners, dns, capture });
                }
                info!(uid, "enrolled");
                if let Some(proving) = &mut self.proving {
                    proving.enrolled(&uid);
                }
                let info = PodInfo {
                    pod: enrolled.pod,
                    open,
                    inode: enrolled.inode,
                    netns: netns.path(),
                    netns_cookie: enrolled.netns_cookie,
                    ips: enrolled.ips,
                    dns: asked,
                };
                let mut report = self.report();
                report.failed.remove(&uid);
                report.started += 1;
                report.enrolled.insert(uid, info);
            }
            Err(failure) => {
                let text = failure.to_string();
                if let (EnrolError::NoNamespace { .. } | EnrolError::AnotherNamespace { .. }, Some(proving)) =
                    (&failure, &self.proving)
                {
                    proving.lost(&uid);
                }
                let before = self.report().failed.insert(uid.clone(), text.clone());
                if before.as_deref() != Some(&text) {
                    error!("cannot enrol {uid}: {text}");
                } else if let Some(proving) = &self.proving {
                    // Twice the same: not one of the states that a pod passes through while it starts.
                    proving.failed(&uid, &text);
                }
            }
        }
    }

    /// Connections that the pod opens pass by from now on. Peers are told, and those that arrive are redirected until they know.
    fn leave(&mut self, uid: &str) {
        if self.leaving.contains_key(uid) {
            return;
        }
        if let Err(failure) = self.redirector.stop_outbound(uid) {
            error!("{uid} is still redirected: {failure}");
            return;
        }
        self.leaving.insert(uid.to_owned(), (Instant::now(), None));
        if let Some(proving) = &mut self.proving {
            proving.released(uid);
        }
    }

    /// Releases pods that have left as far as peers are concerned, or are gone altogether.
    fn end_leaves(&mut self) {
        let Some(proving) = &self.proving else { return };
        let mut done = Vec::new();
        for (uid, (since, quiet)) in &mut self.leaving {
            let speaks = proving.speaks_hbone(uid);
            *quiet = if speaks == Some(true) { None } else { quiet.or_else(|| Some(Instant::now())) };
            let known = quiet.is_some_and(|quiet| quiet.elapsed() >= LINGER);
            if speaks.is_none() || known || since.elapsed() >= LONGEST_LINGER {
                done.push(uid.clone());
            }
        }
        for uid in done {
            self.release(&uid);
        }
    }

    /// Redirects a pod again that was about to be released.
    fn resume(&mut self, uid: &str) {
        if let Err(failure) = self.redirector.resume(uid) {
            error!("{uid} cannot be redirected again yet: {failure}");
            return;
        }
        self.leaving.remove(uid);
        let mut report = self.report();
        if let Some(info) = report.releasing.remove(uid) {
            report.enrolled.insert(uid.to_owned(), info);
        }
        drop(report);
        if let Some(proving) = &mut self.proving {
            proving.enrolled(uid);
        }
        info!(uid, "enrolled again");
    }

    /// New connections of the pod pass by from now on; those that run go on.
    fn release(&mut self, uid: &str) {
        if let Err(failure) = self.redirector.stop_capture(uid) {
            error!("{uid} is still redirected: {failure}");
            return;
        }
        if self.leaving.remove(uid).is_none()
            && let Some(proving) = &mut self.proving
        {
            proving.released(uid);
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
    /// over the old one is not waited for, or the new one would be outside the mesh meanwhile. Where the inode is told with the
    /// path, whoever tells it looks after that. True if there was one.
    fn leave_what_is_gone(&mut self, wanted: &[Enrolment], workers: &[worker::Handle]) -> bool {
        let told = |uid: &str| wanted.iter().any(|one| *one.workload == *uid && one.inode.is_some());
        let gone: Vec<(String, PodId)> = {
            let report = self.report();
            let gone = report.enrolled.iter().filter(|(uid, _)| !told(uid) && self.redirector.is_gone(uid));
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
