//! A node's look at itself: whether its programs are attached where they should be, and whether names are answered in pods.
//! What somebody detached is attached again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tracing::error;

use super::command::Command;
use super::worker::{self, Worker};
use crate::dns::asking;
use crate::redirect::{PodId, Redirector, SocketKind};
use crate::state::{Model, Service, Visibility};

/// Ticks between two looks at the programs.
const PROGRAM_TICKS: u32 = 8;
/// Ticks between two questions to the DNS of a pod.
const DNS_TICKS: u32 = 40;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was seen.
#[derive(Debug, Default, Serialize)]
pub(super) struct Seen {
    /// Programs of the node's and the pods' cgroup, and whether each is attached.
    pub(super) programs: BTreeMap<&'static str, bool>,
    /// How often programs were found detached, by program, or by workload uid for the one of a pod's namespace.
    pub(super) detached: BTreeMap<String, u64>,
    /// The last question to the DNS of a pod.
    pub(super) dns: Option<Asked>,
}

/// A question to the DNS of a pod.
#[derive(Debug, Serialize)]
pub(super) struct Asked {
    /// Workload uid of the pod.
    pod: String,
    /// The name that was asked for.
    name: String,
    /// How long the answer took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<f64>,
    /// Why there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A pod whose DNS can be asked.
pub(super) struct Askable {
    /// Workload uid.
    pub(super) uid: String,
    /// Number of the pod at this node.
    pub(super) pod: PodId,
    /// One of its DNS sockets.
    pub(super) at: SocketAddr,
}

/// Looks, and remembers.
pub(super) struct Look {
    seen: Arc<Mutex<Seen>>,
    ticks: u32,
    turn: usize,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Look {
    /// Looks, and tells it there.
    pub(super) fn new(seen: Arc<Mutex<Seen>>) -> Self {
        Self { seen, ticks: 0, turn: 0 }
    }

    /// Regular work; whether it is time to ask a pod's DNS.
    pub(super) fn tick(&mut self, redirector: &mut Redirector) -> bool {
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks % PROGRAM_TICKS == 1 {
            self.look(redirector);
        }
        self.ticks % DNS_TICKS == 1
    }

    fn look(&self, redirector: &mut Redirector) {
        let programs = redirector.programs();
        let detached: Vec<&str> = programs.iter().filter(|(_, attached)| !**attached).map(|(name, _)| *name).collect();
        let pods = redirector.uncaptured();
        if !detached.is_empty() {
            error!("programs were detached by somebody else: {}; they are attached again", detached.join(", "));
            if let Err(failure) = redirector.attach_again() {
                error!("{failure}");
            }
        }
        for uid in &pods {
            error!("the socket lookup was detached from {uid} by somebody else; it is attached again");
            if let Err(failure) = redirector.capture_again(uid) {
                error!("{failure}");
            }
        }
        let mut seen = lock(&self.seen);
        for name in detached.into_iter().chain(pods.iter().map(String::as_str)) {
            *seen.detached.entry(name.to_owned()).or_default() += 1;
        }
        seen.programs = if pods.is_empty() && seen.programs == programs { programs } else { redirector.programs() };
    }

    /// Asks the DNS of the next pod for a name.
    pub(super) fn ask(&mut self, pods: &[Askable], name: Option<String>, workers: &[worker::Handle]) {
        self.turn = self.turn.wrapping_add(1);
        let pod = pods.get(self.turn.checked_rem(pods.len()).unwrap_or_default());
        let (Some(pod), Some(name), Some(worker)) = (pod, name, workers.first()) else {
            lock(&self.seen).dns = None;
            return;
        };
        let (done, answer) = oneshot::channel();
        let question = Command::AskDns { pod: pod.pod, at: pod.at, name: name.clone(), done };
        let _ = worker.commands.send(question);
        let (seen, pod) = (self.seen.clone(), pod.uid.clone());
        tokio::spawn(async move {
            let answer = answer.await.unwrap_or_else(|_| Err("the worker has ended".to_owned()));
            let (ms, error) = match answer {
                Ok(took) => (Some(took.as_secs_f64() * 1e3), None),
                Err(why) => (None, Some(why)),
            };
            lock(&seen).dns = Some(Asked { pod, name, ms, error });
        });
    }
}

/// A name that every pod gets an answer for.
pub(super) fn known_name(model: &Model) -> Option<String> {
    let nameable = |service: &&Arc<Service>| {
        service.visibility == Visibility::Public && !service.vips.is_empty() && !service.hostname.starts_with('*')
    };
    model.services().find(nameable).map(|service| service.hostname.to_string())
}

/// Asks a DNS socket of a pod from inside it, as its applications do, and says how long that took.
///
/// # Errors
/// Why there was no answer.
pub(super) async fn ask(worker: &Worker, pod: PodId, at: SocketAddr, name: &str) -> Result<Duration, String> {
    let id = (worker.random.next() & 0xffff) as u16;
    let question = asking::question(name, id).ok_or_else(|| format!("{name} is no name for a question"))?;
    let started = Instant::now();
    let answered = async {
        let socket = worker.sockets.take(pod, SocketKind::Datagram, at.ip().into()).await?;
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
        socket.connect(at).await?;
        socket.send(&question).await?;
        let mut answer = vec![0; 4096];
        let length = socket.recv(&mut answer).await?;
        answer.truncate(length);
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(PATIENCE, answered).await {
        Ok(Ok(answer)) => asking::answered(id, &answer).map(|()| started.elapsed()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}
