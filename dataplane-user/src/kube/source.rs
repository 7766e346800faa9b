//! Follows the API and says which pods of this node shall be enrolled, and where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, mpsc as sync};
use std::thread;
use std::time::{Duration, Instant};

use ::kube::core::PartialObjectMeta;
use ::kube::runtime::WatchStreamExt;
use ::kube::runtime::watcher::{Config, Error, Event, watcher};
use ::kube::{Api, Client};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tracing::{error, info, warn};

use super::arrivals::Arrivals;
use super::cgroups::{self, PodCgroup};
use super::marks::Marks;
use super::node_ports::Candidate;
use super::pods::{Facts, Known};
use super::sandbox::{Processes, Sandbox};
use super::{Hold, Settings, services};
use crate::state::{Enrolment, ExistingConnections};

/// How often sandboxes are looked for that were not found yet: well below the time a runtime takes from a pod's sandbox to the
/// first instruction of its containers.
const LOOK: Duration = Duration::from_millis(10);
/// The same for pods that have not come soon.
const LOOK_LATER: Duration = Duration::from_millis(100);
/// How often those that are known are looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// After this time a pod has not come soon.
const SOON: Duration = Duration::from_secs(20);

/// What became of a pod that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its connections go through the engine: that was tried.
    Captured(Arc<str>),
    /// Its network namespace is not where it was found: look again. The first processes of a container are gone in a moment.
    Lost(Arc<str>),
    /// They do not, for this reason.
    Failed(Arc<str>, String),
    /// Its own connections no longer go through the engine.
    Released(Arc<str>),
}

/// The running source.
#[derive(Debug)]
pub struct Source {
    /// Pods to be enrolled; `None` until the API has told all it knows.
    pub wanted: watch::Receiver<Option<Arc<[Enrolment]>>>,
    /// What became of them.
    pub outcomes: mpsc::UnboundedSender<Outcome>,
    /// Node ports that are to be steered; `None` until the API has told all services.
    pub node_ports: watch::Receiver<Option<Arc<[Candidate]>>>,
}

/// Starts following the API, on a thread of its own.
///
/// # Errors
/// There is no way to the API, or the node's processes cannot be seen.
pub fn start(settings: Settings, hold: Box<dyn Hold>) -> Result<Source, String> {
    let processes = Processes::new(&settings.proc).map_err(|error| error.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let (wanted, receiver) = watch::channel(None);
    let (outcomes, told) = mpsc::unbounded_channel();
    let (candidates, node_ports) = watch::channel(None);
    let (started, result) = sync::channel();
    thread::Builder::new()
        .name("kubernetes".into())
        .spawn(move || {
            runtime.block_on(async move {
                let client = match super::client().await {
                    Ok(client) => client,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let _ = started.send(Ok(()));
                tokio::spawn(services::follow(client.clone(), settings.clone(), candidates));
                let marks = Marks::new(client.clone(), &settings.node);
                let follower = Follower {
                    arrivals: Arrivals::new(&settings.pods_cgroup),
                    unknown: BTreeMap::new(),
                    settings,
                    processes,
                    known: Known::default(),
                    earlier: hold.held(),
                    holding: hold.held(),
                    hold,
                    held: BTreeMap::new(),
                    cgroups: BTreeMap::new(),
                    sandboxes: BTreeMap::new(),
                    missing: BTreeMap::new(),
                    captured: BTreeSet::new(),
                    looked: Instant::now(),
                    tried: Instant::now(),
                    marks,
                    wanted,
                    rival: false,
                };
                follower.run(client, told).await;
            });
        })
        .map_err(|error| error.to_string())?;
    match result.recv() {
        Ok(Ok(())) => Ok(Source { wanted: receiver, outcomes, node_ports }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err("the thread that follows the Kubernetes API has ended".to_owned()),
    }
}

struct Follower {
    settings: Settings,
    processes: Processes,
    known: Known,
    hold: Box<dyn Hold>,
    /// Cgroups an earlier daemon had named, until all pods are known.
    earlier: BTreeSet<u64>,
    /// Cgroups of pods that are held, by uid: those that were seen to start. They stay while the pod belongs to the mesh.
    held: BTreeMap<String, u64>,
    /// What the kernel was told of that.
    holding: BTreeSet<u64>,
    /// Pods that came before the API had told of them.
    arrivals: Arrivals,
    /// What the kernel was told of those.
    unknown: BTreeMap<u64, Instant>,
    /// Cgroups of missing pods, by uid.
    cgroups: BTreeMap<String, PodCgroup>,
    /// Found ones, by uid of the pod.
    sandboxes: BTreeMap<String, Sandbox>,
    /// Since when others are looked for.
    missing: BTreeMap<String, Instant>,
    /// Workloads that the agent has under capture.
    captured: BTreeSet<Arc<str>>,
    looked: Instant,
    tried: Instant,
    marks: Marks,
    wanted: watch::Sender<Option<Arc<[Enrolment]>>>,
    /// Another dataplane was seen on this node.
    rival: bool,
}

impl Follower {
    /// Follows until nobody listens any more.
    async fn run(mut self, client: Client, mut told: mpsc::UnboundedReceiver<Outcome>) {
        let here = Config::default().fields(&format!("spec.nodeName={}", self.settings.node));
        let mut pods = pin!(watcher(Api::<Pod>::all(client.clone()), here).default_backoff());
        let all = Api::<PartialObjectMeta<Namespace>>::all(client);
        let mut namespaces = pin!(watcher(all, Config::default()).default_backoff());
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut troubles = (None, None);
        loop {
            let mut news = true;
            tokio::select! {
                Some(event) = pods.next() => {
                    if let Some(event) = heard("pods", event, &mut troubles.0) {
                        self.known.pod(event);
                    }
                }
                Some(event) = namespaces.next() => {
                    if let Some(event) = heard("namespaces", event, &mut troubles.1) {
                        self.known.namespace(event);
                    }
                }
                outcome = told.recv() => match outcome {
                    Some(outcome) => self.outcome(outcome),
                    None => return,
                },
                _ = look.tick() => {
                    self.arrivals.look();
                    news = self.is_time();
                }
            }
            if self.known.complete() && news {
                self.settle();
            }
            self.hold_unknown();
            self.marks.work();
        }
    }

    /// Whether sandboxes have to be looked at without news from the API.
    fn is_time(&mut self) -> bool {
        let now = Instant::now();
        let pause = match self.missing.values().max() {
            Some(since) if now.duration_since(*since) < SOON => LOOK,
            Some(_) => LOOK_LATER,
            None => LOOK_AGAIN,
        };
        // A tick comes a little early at times.
        let due = now.duration_since(self.tried) + LOOK / 2 >= pause;
        if due {
            self.tried = now;
        }
        due
    }

    fn outcome(&mut self, outcome: Outcome) {
        let pod = |workload: &Arc<str>| self.known.of_workload(&self.settings.cluster, workload);
        match outcome {
            Outcome::Captured(workload) => {
                if let Some(facts) = pod(&workload) {
                    self.marks.settled(&facts.uid);
                    self.marks.set(facts, true);
                }
                self.captured.insert(workload);
            }
            Outcome::Lost(workload) => {
                if let Some(facts) = pod(&workload) {
                    self.sandboxes.remove(&facts.cgroup_uid);
                }
            }
            Outcome::Failed(workload, why) => {
                if let Some(facts) = pod(&workload) {
                    self.marks.complain(facts, "RedirectionFailed", &why);
                }
            }
            Outcome::Released(workload) => {
                self.captured.remove(&workload);
                if let Some(facts) = pod(&workload) {
                    self.marks.set(facts, false);
                }
            }
        }
    }

    /// Brings what is wanted to what the API and the kernel say.
    fn settle(&mut self) {
        let other = self.rival();
        let verdicts: Vec<(&Facts, Result<(), _>)> =
            self.known.pods().map(|facts| (facts, self.known.verdict(facts, &self.settings))).collect();
        let mut eligible: Vec<Facts> = Vec::new();
        for (facts, verdict) in verdicts {
            let workload = facts.workload(&self.settings.cluster);
            match (verdict, &other) {
                (Ok(()), Some(text)) if !self.captured.contains(&workload) => {
                    self.marks.complain(facts, "OtherDataplane", text);
                }
                (Ok(()), _) => {
                    // The agent may have known before the API had told of the pod.
                    if self.captured.contains(&workload) {
                        self.marks.set(facts, true);
                    }
                    eligible.push(facts.clone());
                }
                (Err(reason), _) => {
                    if reason.surprises() && !facts.candidate.finished {
                        self.marks.complain(facts, "NotEligible", &reason.to_string());
                    }
                    // Left by an earlier daemon; of what this one has captured, the agent says when.
                    if facts.marked && other.is_none() && !self.captured.contains(&workload) {
                        self.marks.set(facts, false);
                    }
                }
            }
        }
        self.marks.retain(|uid| self.known.has(uid));
        self.locate(&eligible);
        let enrolments: Arc<[Enrolment]> = eligible
            .iter()
            .filter_map(|facts| {
                let sandbox = self.sandboxes.get(&facts.cgroup_uid)?;
                Some(Enrolment {
                    workload: facts.workload(&self.settings.cluster),
                    netns: sandbox.netns.clone(),
                    inode: Some(sandbox.inode),
                    ips: facts.ips.clone(),
                    service_account: Some(facts.account.clone()),
                    cgroup: None,
                    existing: ExistingConnections::Keep,
                    dns: facts.dns.unwrap_or(self.settings.dns),
                })
            })
            .collect();
        self.wanted.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&enrolments);
            if changed {
                *before = Some(enrolments);
            }
            changed
        });
    }

    /// Finds sandboxes that are not known, and forgets those that are gone. Pods that are seen to start are held before that.
    fn locate(&mut self, eligible: &[Facts]) {
        let now = Instant::now();
        let again = now.duration_since(self.looked) >= LOOK_AGAIN;
        if again {
            self.looked = now;
        }
        let uids: BTreeSet<String> = eligible.iter().map(|facts| facts.cgroup_uid.clone()).collect();
        self.sandboxes.retain(|uid, sandbox| uids.contains(uid) && (!again || self.processes.stands(uid, sandbox)));
        self.missing.retain(|uid, _| uids.contains(uid) && !self.sandboxes.contains_key(uid));
        self.cgroups.retain(|uid, cgroup| self.missing.contains_key(uid) && cgroup.stands());
        self.hold(&uids);
        let mut wanted = BTreeSet::new();
        for uid in uids.into_iter().filter(|uid| !self.sandboxes.contains_key(uid)) {
            self.missing.entry(uid.clone()).or_insert(now);
            // Where cgroups are not what they are elsewhere, all processes are looked at, which takes longer.
            if self.cgroups.get(&uid).map_or(again, PodCgroup::is_populated) {
                wanted.insert(uid);
            }
        }
        for (uid, sandbox) in self.processes.find(&wanted) {
            self.missing.remove(&uid);
            self.sandboxes.insert(uid, sandbox);
        }
    }

    /// Lets pods wait that were missing before and have a cgroup now, those that were seen to come, and those that an earlier daemon
    /// let wait; a pod whose sandbox is found at first sight was running before it belonged to the mesh, and is enrolled without
    /// that.
    fn hold(&mut self, uids: &BTreeSet<String>) {
        let known = |uid: &&String| self.sandboxes.contains_key(*uid) || self.cgroups.contains_key(*uid);
        let unknown: BTreeSet<String> = uids.iter().filter(|uid| !known(uid)).cloned().collect();
        self.cgroups.extend(cgroups::find(&self.settings.pods_cgroup, &unknown));
        self.held.retain(|uid, _| uids.contains(uid));
        for (uid, cgroup) in &self.cgroups {
            if self.missing.contains_key(uid) || self.arrivals.has(uid) || self.earlier.contains(&cgroup.id) {
                self.held.insert(uid.clone(), cgroup.id);
            }
        }
        self.earlier.clear();
        let wanted: BTreeSet<u64> = self.held.values().copied().collect();
        if wanted == self.holding {
            return;
        }
        match self.hold.hold(&wanted) {
            Ok(()) => self.holding = wanted,
            Err(error) => error!("pods that start cannot be held until they are enrolled: {error}"),
        }
    }

    /// Lets pods wait of which nobody has told, for a while.
    fn hold_unknown(&mut self) {
        let unknown = self.arrivals.unknown(|uid| self.known.decides(uid), Instant::now());
        // What another dataplane redirects is left to it.
        let unknown = if self.rival { BTreeMap::new() } else { unknown };
        if unknown == self.unknown {
            return;
        }
        match self.hold.hold_unknown(&unknown) {
            Ok(()) => self.unknown = unknown,
            Err(error) => error!("pods that the API has not told of cannot be held: {error}"),
        }
    }

    /// Why no pod is enrolled here, if another dataplane does that.
    fn rival(&mut self) -> Option<String> {
        let found = self.known.other().map(|(what, facts)| {
            format!(
                "{what} runs on this node ({}/{}), and two cannot redirect the same pods; move its DaemonSet off the node (a node label and its nodeSelector), or give causeway's a nodeSelector that leaves this node out",
                facts.candidate.namespace, facts.name
            )
        });
        match (&found, self.rival) {
            (Some(text), false) => error!("no further pod is enrolled: {text}"),
            (None, true) => info!("the other dataplane has left this node: pods are enrolled again"),
            _ => {}
        }
        self.rival = found.is_some();
        found
    }
}

/// The event, unless it is a failure, which is told once.
pub(super) fn heard<K>(what: &str, event: Result<Event<K>, Error>, trouble: &mut Option<String>) -> Option<Event<K>> {
    match event {
        Ok(event) => {
            if trouble.take().is_some() {
                info!("the Kubernetes API tells of {what} again");
            }
            Some(event)
        }
        Err(error) => {
            let text = error.to_string();
            if trouble.as_ref() != Some(&text) {
                warn!("the Kubernetes API does not tell of {what}; what is in force stays: {text}");
            }
            *trouble = Some(text);
            None
        }
    }
}
