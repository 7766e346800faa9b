//! The gRPC side: one task per stream.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use causeway::istio::xds_proto::{DELTA_PATH, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use causeway::istio::xds_session::TYPES;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::authority::{self, Authority, CertificateRequest, CertificateResponse};
use super::encode::clock;
use super::on_demand::{self, Named};
use super::server::Seen;

/// How the server misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Not at all.
    #[default]
    None,
    /// Refuses every stream, as istiod refuses a token it does not know.
    Unauthenticated,
    /// Takes requests and never answers.
    Silent,
}

/// What all streams share.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) resources: [BTreeMap<String, Resource>; 2],
    pub(super) fault: Fault,
    pub(super) seen: Vec<Seen>,
    pub(super) streams: usize,
    /// Signs certificates as well.
    pub(super) authority: Option<Authority>,
}

#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) script: Arc<Mutex<Script>>,
    /// Raised by every change that streams have to look at.
    pub(super) pushed: watch::Sender<u64>,
    /// Raised to end all streams.
    pub(super) reset: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { script: Arc::default(), pushed: watch::Sender::new(0), reset: watch::Sender::new(0) }
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Script) -> T) -> T {
        work(&mut self.script.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Outgoing = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// What one stream was sent.
struct Sent {
    versions: [HashMap<String, String>; 2],
    subscribed: [bool; 2],
    /// Names asked for, where not everything is.
    named: Option<Named>,
}

async fn stream(shared: Shared, token: Option<String>, mut requests: Streaming<DeltaDiscoveryRequest>, out: Outgoing) {
    let mut sent = Sent { versions: Default::default(), subscribed: [false; 2], named: None };
    let (mut pushed, mut reset) = (shared.pushed.subscribe(), shared.reset.subscribe());
    pushed.mark_unchanged();
    reset.mark_unchanged();
    loop {
        tokio::select! {
            request = requests.message() => {
                let Ok(Some(request)) = request else { return };
                shared.with(|script| script.seen.push(Seen { token: token.clone(), request: request.clone() }));
                let Some(at) = TYPES.iter().position(|known| *known == request.type_url) else { continue };
                if !request.response_nonce.is_empty() {
                    continue;
                }
                if !subscribe(&mut sent, at, request) {
                    continue;
                }
                if push(&shared, &mut sent, at, true, &out).await.is_err() {
                    return;
                }
            }
            _ = pushed.changed() => {
                for at in [0, 1] {
                    if sent.subscribed[at] && push(&shared, &mut sent, at, false, &out).await.is_err() {
                        return;
                    }
                }
            }
            _ = reset.changed() => {
                let _ = out.send(Err(Status::unavailable("told to end"))).await;
                return;
            }
        }
    }
}

/// Takes a subscription in; whether it is to be answered.
fn subscribe(sent: &mut Sent, at: usize, request: DeltaDiscoveryRequest) -> bool {
    let first = !sent.subscribed[at];
    sent.subscribed[at] = true;
    if first && at == 0 && request.resource_names_unsubscribe.iter().any(|name| name == "*") {
        sent.named = Some(Named::new(on_demand::node(&request)));
    }
    let news = match &mut sent.named {
        Some(named) if at == 0 => named.take(&request),
        _ => true,
    };
    if first {
        sent.versions[at] = request.initial_resource_versions;
    }
    first || news
}

/// Sends what differs; the answer to a subscription even if nothing does.
async fn push(shared: &Shared, sent: &mut Sent, at: usize, asked: bool, out: &Outgoing) -> Result<(), ()> {
    let response = shared.with(|script| {
        if script.fault == Fault::Silent {
            return None;
        }
        let known = &script.resources[at];
        let versions = &sent.versions[at];
        let (wanted, missing) = match sent.named.as_ref().filter(|_| at == 0) {
            Some(named) => named.select(known.values()),
            None => (known.values().cloned().collect(), BTreeSet::new()),
        };
        // Policies carry no version, so each push sends them all again, as istiod does.
        let fresh = |resource: &Resource| {
            resource.version.is_empty() || versions.get(&resource.name) != Some(&resource.version)
        };
        let resources: Vec<Resource> = wanted.into_iter().filter(fresh).collect();
        let mut removed: Vec<String> = versions.keys().filter(|name| !known.contains_key(*name)).cloned().collect();
        if asked {
            removed.extend(missing);
        }
        for resource in &resources {
            sent.versions[at].insert(resource.name.clone(), resource.version.clone());
        }
        for name in &removed {
            sent.versions[at].remove(name);
        }
        let anything = asked || !resources.is_empty() || !removed.is_empty();
        anything.then(|| DeltaDiscoveryResponse {
            system_version_info: "scripted".into(),
            resources,
            type_url: TYPES[at].to_owned(),
            nonce: clock().to_string(),
            removed_resources: removed,
        })
    });
    match response {
        Some(response) => out.send(Ok(response)).await.map_err(drop),
        None => Ok(()),
    }
}

#[derive(Clone)]
struct Method(Shared);

type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tower_service::Service<Request<Streaming<DeltaDiscoveryRequest>>> for Method {
    type Response = Response<ReceiverStream<Result<DeltaDiscoveryResponse, Status>>>;
    type Error = Status;
    type Future = Answer<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            let token =
                request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
            let refused = shared.with(|script| {
                script.streams += 1;
                script.fault == Fault::Unauthenticated
            });
            if refused {
                return Err(Status::unauthenticated("authentication failure"));
            }
            let (out, responses) = mpsc::channel(16);
            tokio::spawn(stream(shared, token, request.into_inner(), out));
            Ok(Response::new(ReceiverStream::new(responses)))
        })
    }
}

/// Both services of the server.
#[derive(Clone)]
pub(super) struct Ads(pub(super) Shared);

impl tower_service::Service<http::Request<Body>> for Ads {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            if request.uri().path() == authority::METHOD
                && let Some(authority) = shared.with(|script| script.authority.clone())
            {
                let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
                return Ok(tonic::server::Grpc::new(codec).unary(authority, request).await);
            }
            if request.uri().path() != DELTA_PATH {
                return Ok(Status::unimplemented("not served here").into_http());
            }
            let codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
            Ok(tonic::server::Grpc::new(codec).streaming(Method(shared), request).await)
        })
    }
}
