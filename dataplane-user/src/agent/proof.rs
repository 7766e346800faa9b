//! Proof that a pod is under capture before anybody is told so: a connection made in its namespace has to arrive at our own
//! listener there, and its certificate has to be here.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::worker::Shared;
use crate::kube::source::Outcome;
use crate::state::{Enrolment, Protocol, Workload};

/// Port of the HBONE listener.
const HBONE_PORT: u16 = 15008;
/// How long the connection may take; it never leaves the pod's namespace.
const ARRIVES: Duration = Duration::from_secs(2);
/// Pause before a proof that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the control plane may take to know a workload that the API knows, and its authority to certify it.
const KNOWN: Duration = Duration::from_secs(10);

/// Connections that are expected to arrive at a listener, by their client's end.
#[derive(Debug, Default)]
pub struct Proofs {
    expected: Mutex<HashMap<SocketAddr, oneshot::Sender<()>>>,
    count: AtomicUsize,
}

impl Proofs {
    fn expected(&self) -> MutexGuard<'_, HashMap<SocketAddr, oneshot::Sender<()>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, from: SocketAddr) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut expected = self.expected();
        expected.insert(from, sender);
        self.count.store(expected.len(), Ordering::Release);
        receiver
    }

    fn forget(&self, from: SocketAddr) -> Option<oneshot::Sender<()>> {
        let mut expected = self.expected();
        let sender = expected.remove(&from);
        self.count.store(expected.len(), Ordering::Release);
        sender
    }

    /// Whether an accepted connection is one of ours, which is then to be dropped.
    pub fn is_one(&self, from: SocketAddr) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.forget(from).is_some_and(|sender| sender.send(()).is_ok())
    }
}

/// Pods whose capture is being tried, and who is told.
pub(super) struct Proving {
    shared: Arc<Shared>,
    outcomes: mpsc::UnboundedSender<Outcome>,
    failed: (mpsc::UnboundedSender<String>, mpsc::UnboundedReceiver<String>),
    /// Pods to be tried, and from when on.
    due: BTreeMap<String, Instant>,
    running: BTreeMap<String, AbortHandle>,
}

impl Proving {
    pub(super) fn new(shared: Arc<Shared>, outcomes: mpsc::UnboundedSender<Outcome>) -> Self {
        Self { shared, outcomes, failed: mpsc::unbounded_channel(), due: BTreeMap::new(), running: BTreeMap::new() }
    }

    /// A pod was enrolled: to be tried.
    pub(super) fn enrolled(&mut self, uid: &str) {
        self.due.insert(uid.to_owned(), Instant::now());
    }

    /// A pod is not where it was found.
    pub(super) fn lost(&self, uid: &str) {
        let _ = self.outcomes.send(Outcome::Lost(uid.into()));
    }

    /// A pod could not be enrolled.
    pub(super) fn failed(&self, uid: &str, why: &str) {
        let _ = self.outcomes.send(Outcome::Failed(uid.into(), why.to_owned()));
    }

    /// What a pod is as a client before the control plane knows it.
    pub(super) fn client(&self, enrolment: &Enrolment) -> Option<Workload> {
        enrolment.client(&self.shared.model.load().node)
    }

    /// Whether the control plane says that peers may speak HBONE to a workload; `None` if it does not know it.
    pub(super) fn speaks_hbone(&self, uid: &str) -> Option<bool> {
        self.shared.model.load().workload(uid).map(|workload| workload.protocol == Protocol::Hbone)
    }

    /// A pod was released. What is being tried of it is given up, so that nothing is told of it afterwards.
    pub(super) fn released(&mut self, uid: &str) {
        self.due.remove(uid);
        if let Some(running) = self.running.remove(uid) {
            running.abort();
        }
        let _ = self.outcomes.send(Outcome::Released(uid.into()));
    }

    /// Pods whose turn it is.
    pub(super) fn take_due(&mut self) -> Vec<String> {
        while let Ok(uid) = self.failed.1.try_recv() {
            self.running.remove(&uid);
            self.due.insert(uid, Instant::now() + AGAIN);
        }
        let now = Instant::now();
        let due: Vec<String> = self.due.iter().filter(|(_, at)| **at <= now).map(|(uid, _)| uid.clone()).collect();
        self.due.retain(|_, at| *at > now);
        due
    }

    /// Tries a pod, with a socket of its namespace.
    pub(super) fn start(&mut self, uid: String, ip: IpAddr, socket: OwnedFd) {
        let (shared, outcomes, failed) = (self.shared.clone(), self.outcomes.clone(), self.failed.0.clone());
        let name = uid.clone();
        let task = tokio::spawn(async move {
            let outcome = match prove(&shared, &uid, ip, socket).await {
                Ok(()) => Outcome::Captured(uid.into()),
                Err(why) => {
                    let _ = failed.send(uid.clone());
                    Outcome::Failed(uid.into(), why)
                }
            };
            let _ = outcomes.send(outcome);
        });
        self.running.insert(name, task.abort_handle());
    }
}

/// Waits until a pod is under capture and can be spoken to as its workload. `socket` is one of its namespace.
///
/// # Errors
/// What is missing, and what to look at.
async fn prove(shared: &Shared, uid: &str, ip: IpAddr, socket: OwnedFd) -> Result<(), String> {
    arrives(&shared.proofs, ip, socket).await?;
    let mut changes = shared.model.subscribe();
    let known = async {
        loop {
            let model = shared.model.load();
            if let Some(workload) = model.workload(uid).filter(|_| model.synced) {
                return Some(workload.identity.clone());
            }
            changes.changed().await.ok()?;
        }
    };
    let unknown = || {
        format!(
            "the control plane does not know the workload {uid} after {} s; see \"causeway status\" for whether it is followed, and whether CLUSTER_ID is the name istiod gives this cluster",
            KNOWN.as_secs()
        )
    };
    let identity = tokio::time::timeout(KNOWN, known).await.ok().flatten().ok_or_else(unknown)?;
    let certificate = tokio::time::timeout(KNOWN, shared.credentials.credential(&identity)).await;
    match certificate {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("no certificate for {identity}: {error}")),
        Err(_) => Err(format!("no certificate for {identity} after {} s; see \"causeway certs\"", KNOWN.as_secs())),
    }
}

async fn arrives(proofs: &Proofs, ip: IpAddr, socket: OwnedFd) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("trying the capture of {ip}: {what}: {error}")
    };
    let socket = TcpSocket::from_std_stream(socket.into());
    socket.bind(SocketAddr::new(ip, 0)).map_err(failed("binding"))?;
    let from = socket.local_addr().map_err(failed("binding"))?;
    let arrived = proofs.expect(from);
    let tried = async {
        let connection = socket.connect(SocketAddr::new(ip, HBONE_PORT)).await.map_err(failed("connecting"))?;
        arrived.await.map_err(|_| format!("trying the capture of {ip}: given up"))?;
        drop(connection);
        Ok(())
    };
    let result = tokio::time::timeout(ARRIVES, tried).await;
    proofs.forget(from);
    result.unwrap_or_else(|_| {
        Err(format!(
            "a connection within the pod to {ip}:{HBONE_PORT} did not arrive at the engine within {} s; is another program attached to its namespace (bpftool net, bpftool link)?",
            ARRIVES.as_secs()
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn only_what_is_expected_is_one_and_only_once() {
        let proofs = Proofs::default();
        let from: SocketAddr = "10.0.0.1:4000".parse().unwrap();
        assert!(!proofs.is_one(from));
        let mut arrived = proofs.expect(from);
        assert!(!proofs.is_one("10.0.0.1:4001".parse().unwrap()));
        assert!(arrived.try_recv().is_err());
        assert!(proofs.is_one(from) && arrived.try_recv().is_ok());
        assert!(!proofs.is_one(from));
        drop(proofs.expect(from));
        assert!(!proofs.is_one(from), "nobody waits for it any more");
    }
}
