//! What pods of this node can reach of other networks, tried on request.
//!
//! Each entry point is walked as a pod would: outer TCP, outer TLS, CONNECT and inner TLS, in a tunnel that carries nothing.
//! Services whose addresses the control plane allots are asked for by name in a pod, and looked for an endpoint.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::command::Command;
use super::connect::Source;
use super::worker::{Pod, Worker};
use super::{look, nested};
use crate::decide;
use crate::hbone::{TraceParent, Walk};
use crate::redirect::PodId;
use crate::state::{Model, Workload};

/// An answer is good for this long, however many ask: whoever reaches the port cannot make the node dial at will.
const GOOD_FOR: Duration = Duration::from_secs(5);
/// Entry points of one network that are tried.
const ENTRY_POINTS: usize = 32;
/// Services with allotted addresses that are asked for.
const NAMES: usize = 4;

/// Has a worker try, and remembers the answer for a moment.
pub(super) struct Reach {
    /// Weak, because a worker ends when nobody can give it orders any more.
    worker: Option<mpsc::WeakUnboundedSender<Command>>,
    last: Mutex<Option<(Instant, Value)>>,
}

impl Reach {
    /// Tries by the worker that takes these orders; without one there is nothing to tell.
    pub(super) fn by(worker: Option<&mpsc::UnboundedSender<Command>>) -> Self {
        Self { worker: worker.map(mpsc::UnboundedSender::downgrade), last: Mutex::default() }
    }

    /// What was found. `pods` are those whose DNS can be asked.
    pub(super) fn answer(&self, pods: Vec<(PodId, SocketAddr)>) -> Pin<Box<dyn Future<Output = Value> + Send + '_>> {
        Box::pin(async move {
            let mut last = self.last.lock().await;
            if let Some((_, value)) = last.as_ref().filter(|(at, _)| at.elapsed() < GOOD_FOR) {
                return value.clone();
            }
            let (done, answer) = oneshot::channel();
            let worker = self.worker.as_ref().and_then(mpsc::WeakUnboundedSender::upgrade);
            let sent = worker.and_then(|worker| worker.send(Command::Reach { pods, done }).ok());
            let value = match sent {
                Some(()) => answer.await.unwrap_or_default(),
                None => Value::Null,
            };
            *last = Some((Instant::now(), value.clone()));
            value
        })
    }
}

/// Tries everything as the first of `pods` that the model knows: `entry_points` with the leg that failed, and `allotted`.
pub(super) async fn all(worker: &Rc<Worker>, pods: &[(PodId, SocketAddr)]) -> Value {
    let model = worker.model();
    let known = pods.iter().find_map(|(id, at)| {
        let pod = worker.numbered(*id)?;
        let workload = model.workload(&pod.uid)?.clone();
        Some((pod, workload, *at))
    });
    let Some((pod, workload, at)) = known else {
        return json!({"pod": null, "entry_points": [], "allotted": []});
    };
    let entry_points = entry_points(worker, &model, &pod, &workload).await;
    let mut allotted = Vec::new();
    for service in decide::allotted(&model, &workload, NAMES) {
        let named = match service.routed {
            Ok(()) => look::ask(worker, pod.id, at, &service.hostname).await.map(drop),
            Err(why) => Err(why),
        };
        allotted.push(json!({"service": service.hostname, "address": service.address, "error": named.err()}));
    }
    json!({"pod": pod.uid, "entry_points": entry_points, "allotted": allotted})
}

async fn entry_points(worker: &Rc<Worker>, model: &Arc<Model>, pod: &Rc<Pod>, workload: &Arc<Workload>) -> Vec<Value> {
    let Some(own) = pod.addresses().first().copied() else { return Vec::new() };
    let network = &model.node.network;
    let mut tasks = Vec::new();
    for route in decide::abroad(model, workload) {
        let route = Rc::new(route);
        for candidate in route.gateways.iter().take(ENTRY_POINTS).cloned() {
            let (worker, route) = (worker.clone(), route.clone());
            let source = Source {
                pod: Some(pod.clone()),
                workload: workload.clone(),
                client: SocketAddr::new(own, 0),
                network: network.clone(),
                trace: TraceParent::random(worker.random.trace_bytes()),
                walk: Walk::default(),
            };
            tasks.push(tokio::task::spawn_local(async move {
                let began = Instant::now();
                let found = nested::knock(&worker, &source, &route, &candidate).await;
                let (leg, error) = found.err().map(|error| (error.leg.name(), error.reason)).unzip();
                json!({
                    "network": route.network, "address": super::gateways::name(&candidate.address),
                    "authority": route.authority, "ms": began.elapsed().as_secs_f64() * 1e3, "leg": leg, "error": error,
                })
            }));
        }
    }
    let mut rows = Vec::with_capacity(tasks.len());
    for task in tasks {
        rows.extend(task.await);
    }
    rows
}
