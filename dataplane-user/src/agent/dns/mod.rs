//! DNS of enrolled pods: questions the mesh can answer are answered here, all others are forwarded byte for byte to the server
//! the application asked.

mod tcp;
mod udp;

use std::{
    net::{IpAddr, UdpSocket},
    rc::Rc,
    time::{Duration, Instant},
};

pub use tcp::serve as serve_tcp;
pub use udp::listen as listen_udp;

use super::{
    on_demand::Search,
    worker::{Pod, Worker},
};
use crate::{
    dns::{
        answer::View,
        lookup::unknown_services,
        message::{Question, Transport},
    },
    observe::counters::Counters,
};

/// Questions of one pod in work at a time at one worker; more are dropped, and asked again by whoever still wants to know.
const MOST_QUESTIONS: usize = 1_024;
/// How long a question of a pod whose workload the model does not know yet waits: less than resolvers do.
const WORKLOAD_WAIT: Duration = Duration::from_secs(2);

/// What it takes to serve a pod's DNS over UDP; one worker has it.
#[derive(Debug)]
pub struct Capture {
    /// Sockets at the pod's addresses, one for each name server it may ask.
    pub sockets: Vec<UdpSocket>,
    /// Cookie of the pod's namespace.
    pub netns_cookie: u64,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
}

/// What becomes of a packet.
enum Fate {
    /// This is the answer.
    Answered(Vec<u8>),
    /// It is not for us.
    Forward(Option<Question>),
}

/// A question in work, counted while it lives.
struct Place(Rc<Pod>);

impl Place {
    fn take(worker: &Worker, pod: &Rc<Pod>) -> Option<Self> {
        Counters::add(&worker.shared.counters.dns.requests);
        if pod.questions.get() >= MOST_QUESTIONS {
            Counters::add(&worker.shared.counters.dns.dropped);
            return None;
        }
        pod.questions.set(pod.questions.get() + 1);
        Some(Self(pod.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.questions.set(self.0.questions.get().saturating_sub(1));
    }
}

/// Answers what is the mesh's.
async fn decide(worker: &Worker, pod: &Pod, packet: &[u8], transport: Transport) -> Fate {
    let Some(question) = Question::read(packet) else { return Fate::Forward(None) };
    let known = tokio::time::timeout(WORKLOAD_WAIT, worker.client(pod)).await.ok().flatten();
    let Some((mut model, workload)) = known else {
        Counters::add(&worker.shared.counters.dns.unknown_workload);
        return question.failure().map_or(Fate::Forward(None), Fate::Answered);
    };
    let mut search = Search::new(&worker.shared);
    if search.is_needed() {
        let services = unknown_services(&model, &workload, &question.name);
        // A question that nobody answers is forwarded: the cluster's own DNS knows the name, if anybody does.
        if !services.is_empty() && search.ask(services).await.is_ok() {
            model = worker.model();
        }
    }
    let reserved = &worker.shared.reserved;
    let view = View { model: &model, client: &workload, reserved, now: Instant::now() };
    let answer = view.answer(&question.name, question.kind, &mut || worker.random.next());
    match answer.and_then(|answer| question.answer(&answer, transport)) {
        Some(bytes) => {
            Counters::add(&worker.shared.counters.dns.answered);
            Fate::Answered(bytes)
        }
        None => Fate::Forward(Some(question)),
    }
}
