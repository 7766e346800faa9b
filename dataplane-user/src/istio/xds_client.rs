//! Keeps one source of the model at what its server says.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Streaming};
use tonic_prost::ProstCodec;
use tracing::{debug, error, info, warn};

use super::channel::{ChannelError, Connector, describe};
use super::demand::{Ask, Demand, Want};
use super::wds::ADDRESS_TYPE;
use super::xds_proto::{DELTA_PATH, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use super::xds_session::{Received, Session, TYPES};
use super::xds_settings::Server;
use crate::state::{Model, ModelStore};

/// First pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A server that has not answered both subscriptions after this long is given up. (One that is silent later is found by the
/// pings of the connection.)
const ANSWER: Duration = Duration::from_secs(30);
/// Requests on their way; a server that reads none of them is stalled.
const QUEUE: usize = 64;
/// A failure that repeats is said again after this long.
const REMIND: Duration = Duration::from_secs(60);
/// Wishes on their way to a client.
const MOST_WANTED: usize = 10_000;

/// How a client is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Condition {
    /// Address of the server.
    pub address: String,
    /// Whether a stream is open and has been answered.
    pub connected: bool,
    /// Whether all was received at least once.
    pub synced: bool,
    /// Resources in force.
    pub resources: usize,
    /// Streams that ended, by the reason ztunnel's metric names.
    pub terminations: BTreeMap<&'static str, u64>,
    /// Messages received, by type.
    pub messages: BTreeMap<String, u64>,
    /// Bytes of them.
    pub message_bytes: BTreeMap<String, u64>,
    /// Why there is no connection, if there is none.
    pub error: Option<String>,
    /// What is refused now, by name, with the reason.
    pub refused: BTreeMap<String, String>,
}

/// Asks for addresses on demand and tells how the client is doing. Cheap to copy.
#[derive(Debug, Clone)]
pub struct Handle {
    condition: Arc<Mutex<Condition>>,
    wanted: mpsc::Sender<Want>,
    on_demand: bool,
}

impl Handle {
    /// How the client is doing.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether addresses have to be asked for.
    #[must_use]
    pub fn on_demand(&self) -> bool {
        self.on_demand
    }

    /// Whether a stream is open and has been answered.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner).connected
    }

    /// Asks for `network/address`, `namespace/hostname` or a uid. What is returned is told when the server has answered: then
    /// the model holds it, or it does not exist. It fails when too much is asked for.
    pub fn want(&self, name: String) -> oneshot::Receiver<()> {
        let (answered, answer) = oneshot::channel();
        // A full queue means thousands of unanswered questions; the caller is told by the closed channel.
        let _ = self.wanted.try_send(Want { name, answered });
        answer
    }
}

/// The client of one server.
#[derive(Debug)]
pub struct Client {
    server: Server,
    connector: Connector,
    store: Arc<ModelStore>,
    session: Session,
    condition: Arc<Mutex<Condition>>,
    wanted: mpsc::Receiver<Want>,
    demand: Demand,
}

/// How a stream ended.
enum End {
    /// The server closed it in order.
    Closed,
    /// It broke in a way that is part of a server's life: it restarts, moves clients elsewhere, or the path was lost.
    Broken(String),
    Failed(String),
}

impl Client {
    /// Checks the settings; connects to nothing yet.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn new(server: Server, store: Arc<ModelStore>) -> Result<(Self, Handle), ChannelError> {
        let connector = Connector::new(&server.channel)?;
        let condition = Condition { address: server.channel.address.clone(), ..Condition::default() };
        let condition = Arc::new(Mutex::new(condition));
        let (sender, wanted) = mpsc::channel(MOST_WANTED);
        let handle = Handle { condition: condition.clone(), wanted: sender, on_demand: server.on_demand };
        let (session, demand) = (Session::default(), Demand::default());
        let client = Self { server, connector, store, session, condition, wanted, demand };
        Ok((client, handle))
    }

    /// Follows the server for ever. Whatever it sent stays in force while it is away.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut said: Option<(String, Instant)> = None;
        loop {
            let mut answered = false;
            let end = self.stream(&mut answered).await;
            if answered {
                pause = FIRST_PAUSE;
                said = None;
            }
            let (kind, reason) = match end {
                End::Closed => ("Complete", None),
                End::Broken(reason) if answered => ("Reconnect", Some(reason)),
                End::Broken(reason) | End::Failed(reason) => {
                    (if answered { "Error" } else { "ConnectionError" }, Some(reason))
                }
            };
            self.note(|condition| {
                condition.connected = false;
                condition.error.clone_from(&reason);
                *condition.terminations.entry(kind).or_default() += 1;
            });
            match reason {
                None => info!("{}: the stream was closed; connecting again", self.connector.address()),
                Some(reason) if said.as_ref().is_none_or(|(text, at)| *text != reason || at.elapsed() > REMIND) => {
                    warn!("{}: {reason}; what was received stays in force", self.connector.address());
                    said = Some((reason, Instant::now()));
                }
                Some(reason) => debug!("{}: {reason}", self.connector.address()),
            }
            if kind != "Complete" || !answered {
                sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Condition)) {
        change(&mut self.condition.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn stream(&mut self, answered: &mut bool) -> End {
        let (requests, queue) = mpsc::channel(QUEUE);
        for type_url in TYPES {
            let mut request = self.session.subscribe(type_url, self.server.on_demand);
            request.node = Some(self.server.node.clone());
            if requests.try_send(request).is_err() {
                return End::Failed("no room for the first requests".into());
            }
        }
        for request in named(Ask { subscribe: self.demand.resume(), ..Ask::default() }) {
            let _ = requests.try_send(request);
        }
        let deadline = Instant::now() + ANSWER;
        let opened = timeout_at(deadline, open(&self.connector, queue)).await;
        let mut responses = match opened {
            Err(_) => return End::Failed(format!("no answer within {} s", ANSWER.as_secs())),
            Ok(Err(reason)) => return End::Failed(reason),
            Ok(Ok(responses)) => responses,
        };
        let mut told = BTreeSet::new();
        loop {
            let waiting = told.len() < TYPES.len();
            tokio::select! {
                message = next(&mut responses, waiting.then_some(deadline)) => match message {
                    Ok(Some(response)) => {
                        *answered = true;
                        told.insert(response.type_url.clone());
                        let answer = self.take(response);
                        if timeout_at(Instant::now() + ANSWER, requests.send(answer)).await.is_err() {
                            return End::Failed("the server reads no answers".into());
                        }
                    }
                    Ok(None) => return End::Closed,
                    Err(end) => return end,
                },
                Some(want) = self.wanted.recv(), if self.server.on_demand => {
                    for request in named(self.demand.want(want, Instant::now().into_std())) {
                        if timeout_at(Instant::now() + ANSWER, requests.send(request)).await.is_err() {
                            return End::Failed("the server reads no questions".into());
                        }
                    }
                }
            }
        }
    }

    /// Applies a response as one snapshot and makes the answer.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let (type_url, bytes) = (response.type_url.clone(), response.encoded_len() as u64);
        let names: Vec<String> = response.resources.iter().map(|resource| resource.name.clone()).collect();
        let aliases: HashSet<String> = match self.server.on_demand {
            true => response.resources.iter().flat_map(|resource| resource.aliases.iter().cloned()).collect(),
            false => HashSet::new(),
        };
        let Received { update, refused, removed, answer, complete } = self.session.receive(response);
        let applied = self.store.apply(self.server.source, update);
        for (key, winner) in &applied.shadowed {
            warn!("{key} is published by {} too; {winner} counts", self.server.source);
        }
        for (name, reason) in &refused {
            error!("{}: {name} is refused, its last good version stays: {reason}", self.connector.address());
        }
        if self.server.on_demand {
            let model = self.store.load();
            let known = |name: &str| aliases.contains(name) || names.iter().any(|n| n == name) || holds(&model, name);
            self.demand.told(&removed, known, Instant::now().into_std());
        }
        debug!("{type_url}: {} resources, {} removed, {} changed", names.len(), removed.len(), applied.changed);
        if complete {
            self.store.synced(self.server.source);
        }
        let resources = self.session.len();
        self.note(|condition| {
            condition.connected = true;
            condition.error = None;
            condition.synced |= complete;
            condition.resources = resources;
            *condition.message_bytes.entry(type_url.clone()).or_default() += bytes;
            *condition.messages.entry(type_url).or_default() += 1;
            for name in names.iter().chain(&removed) {
                condition.refused.remove(name);
            }
            condition.refused.extend(refused);
        });
        answer
    }
}

/// Whether the model holds what is asked for by `network/address`, `namespace/hostname` or a uid.
fn holds(model: &Model, name: &str) -> bool {
    if let Some((network, rest)) = name.split_once('/')
        && let Ok(ip) = rest.parse()
    {
        return model.workload_by_ip(network, ip).is_some() || model.service_with_vip(network, ip).is_some();
    }
    model.service_by_key(name).is_some() || model.workload(name).is_some()
}

/// Names as requests. What is let go is let go first, in a request of its own: within one, letting go would come last.
fn named(ask: Ask) -> impl Iterator<Item = DeltaDiscoveryRequest> {
    let request = |subscribe, unsubscribe| DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..DeltaDiscoveryRequest::default()
    };
    let let_go = (!ask.unsubscribe.is_empty()).then(|| request(Vec::new(), ask.unsubscribe));
    let asked = (!ask.subscribe.is_empty()).then(|| request(ask.subscribe, Vec::new()));
    let_go.into_iter().chain(asked)
}

async fn open(
    connector: &Connector,
    queue: mpsc::Receiver<DeltaDiscoveryRequest>,
) -> Result<Streaming<DeltaDiscoveryResponse>, String> {
    let mut connection = connector.connect().await.map_err(|error| error.to_string())?;
    connection.ready().await.map_err(|error| format!("not ready: {error}"))?;
    let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
    let path = PathAndQuery::from_static(DELTA_PATH);
    let response = connection.streaming(Request::new(Requests(queue)), path, codec).await;
    Ok(response.map_err(|status| describe(&status))?.into_inner())
}

async fn next(
    responses: &mut Streaming<DeltaDiscoveryResponse>,
    deadline: Option<Instant>,
) -> Result<Option<DeltaDiscoveryResponse>, End> {
    let message = match deadline {
        None => responses.message().await,
        Some(deadline) => match timeout_at(deadline, responses.message()).await {
            Ok(message) => message,
            Err(_) => {
                return Err(End::Failed(format!("not all subscriptions were answered within {} s", ANSWER.as_secs())));
            }
        },
    };
    message.map_err(|status| match status.code() {
        // A server that ends or loses a connection tells this, or nothing at all.
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded => End::Broken(describe(&status)),
        _ => End::Failed(describe(&status)),
    })
}

/// Half of the pause to all of it: clients that lost one server do not come back as one.
fn jittered(pause: Duration) -> Duration {
    let random = u32::try_from(RandomState::new().hash_one(0_u8) & 0xffff).unwrap_or_default();
    pause / 2 + pause * random / 0x1_ffff
}

/// Requests as a stream.
struct Requests(mpsc::Receiver<DeltaDiscoveryRequest>);

impl tokio_stream::Stream for Requests {
    type Item = DeltaDiscoveryRequest;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}
