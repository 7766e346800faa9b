//! The HTTP side of the admin interface, on the ports that users of ztunnel know: 15000 admin, 15020 metrics, 15021 readiness.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
};
use tracing::warn;

use super::logging;

/// The form Prometheus and OpenMetrics scrapers ask for.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints show; every call asks anew.
pub trait Source: Send + Sync {
    /// What is missing until traffic can be served; nothing means ready.
    fn pending(&self) -> Vec<String>;
    /// How the node is, as the admin socket tells it.
    fn status(&self) -> Value;
    /// What the node's pods can reach of other networks, tried now.
    fn reach(&self) -> Pin<Box<dyn Future<Output = Value> + Send + '_>>;
    /// Metrics in text form.
    fn metrics(&self) -> String;
    /// The whole state.
    fn config_dump(&self) -> Value;
    /// Starts an orderly end of the daemon.
    fn quit(&self);
    /// Takes a CPU profile in pprof's format. Blocks for `duration`.
    ///
    /// # Errors
    /// Words for the caller.
    fn profile(&self, frequency: u32, duration: Duration) -> Result<Vec<u8>, String>;
    /// What memory the process holds.
    fn memory(&self) -> Value;
}

/// What `/debug/pprof/heap` says.
const NO_HEAP_PROFILE: &str = "There is no heap profile: the allocator in use, that of the C library, keeps no record of who \
allocated what.\nGET /debug/memory tells what it holds now, /metrics of the stats port process_resident_memory_bytes over \
time.\nTo find out who allocates, run the daemon under heaptrack or bpftrace (uprobe on malloc).\n";
/// What the admin port offers.
const OFFERS: &str = "GET /config_dump, /debug/memory, /debug/pprof/heap, /debug/pprof/profile?seconds=10&frequency=99\n\
POST /logging[?level=info|?level=scope=debug|?reset], /quitquitquit\n";
/// Seconds and frequency of a profile that asks for none.
const PROFILE: (u64, u32) = (10, 99);
/// Connections to one port at a time; further ones wait to be taken, so that nobody uses up the daemon's descriptors.
const CONNECTIONS: usize = 512;
/// The longest profile.
const LONGEST_PROFILE: u64 = 300;
/// The highest frequency.
const HIGHEST_FREQUENCY: u32 = 999;

/// Which of the three servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// State, log level, end: loopback only.
    Admin,
    /// Metrics.
    Stats,
    /// Readiness.
    Readiness,
}

/// Serves `port` at `address` until the runtime ends.
///
/// # Errors
/// The address cannot be bound; the text names it.
pub async fn serve(port: Port, address: SocketAddr, source: Arc<dyn Source>) -> io::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address} ({port:?}): {error}")))?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        // The semaphore is never closed.
        while let Ok(place) = places.clone().acquire_owned().await {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    warn!("{address}: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let source = source.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let source = source.clone();
                    async move {
                        if port == Port::Admin && request.uri().path() == "/debug/pprof/profile" {
                            return Ok::<_, Infallible>(profile(&request, source).await);
                        }
                        if port == Port::Stats && request.uri().path() == "/reach" {
                            return Ok(json(&source.reach().await));
                        }
                        Ok(answer(port, &request, source.as_ref()))
                    }
                });
                // A client that goes away has nobody to tell.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
                drop(place);
            });
        }
    });
    Ok(())
}

fn answer(port: Port, request: &Request<Incoming>, source: &dyn Source) -> Response<Full<Bytes>> {
    let (path, method) = (request.uri().path(), request.method());
    match (port, path) {
        (Port::Readiness, "/healthz/ready") => {
            let pending = source.pending();
            if pending.is_empty() {
                text(StatusCode::OK, "ready\n")
            } else {
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("not ready: {}\n", pending.join("; ")))
            }
        }
        (Port::Stats, "/metrics" | "/stats/prometheus") => {
            let mut response = text(StatusCode::OK, source.metrics());
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(METRICS_TYPE));
            response
        }
        (Port::Stats, "/status") => json(&source.status()),
        (Port::Admin, "/config_dump") => json(&source.config_dump()),
        (Port::Admin, "/debug/memory") => json(&source.memory()),
        (Port::Admin, "/debug/pprof/heap") => text(StatusCode::NOT_IMPLEMENTED, NO_HEAP_PROFILE),
        (Port::Admin, "/logging") if method == Method::POST => log_level(request.uri().query().unwrap_or_default()),
        (Port::Admin, "/quitquitquit") if method == Method::POST => {
            source.quit();
            text(StatusCode::OK, "draining\n")
        }
        (Port::Admin, "/logging" | "/quitquitquit") => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
        (Port::Admin, _) => text(StatusCode::NOT_FOUND, OFFERS),
        (Port::Stats, _) => text(StatusCode::NOT_FOUND, "GET /metrics, /stats/prometheus, /status or /reach\n"),
        (Port::Readiness, _) => text(StatusCode::NOT_FOUND, "GET /healthz/ready\n"),
    }
}

/// Seconds and frequency that a query asks for.
fn profile_of(query: &str) -> Result<(u64, u32), String> {
    let (mut seconds, mut frequency) = PROFILE;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let known = match part.split_once('=') {
            Some(("seconds", value)) => value.parse().map(|value| seconds = value).is_ok(),
            Some(("frequency", value)) => value.parse().map(|value| frequency = value).is_ok(),
            _ => false,
        };
        if !known {
            return Err(format!("{part:?} is not understood: seconds=10&frequency=99"));
        }
    }
    if !(1..=LONGEST_PROFILE).contains(&seconds) || !(1..=HIGHEST_FREQUENCY).contains(&frequency) {
        return Err(format!("seconds must be 1 to {LONGEST_PROFILE}, frequency 1 to {HIGHEST_FREQUENCY}"));
    }
    Ok((seconds, frequency))
}

async fn profile(request: &Request<Incoming>, source: Arc<dyn Source>) -> Response<Full<Bytes>> {
    let (seconds, frequency) = match profile_of(request.uri().query().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    // The control thread, which answers here, has other things to do meanwhile.
    let (sender, done) = oneshot::channel();
    let started = std::thread::Builder::new().name("profiler".to_owned()).spawn(move || {
        // Whoever asked may be gone by then.
        let _ = sender.send(source.profile(frequency, Duration::from_secs(seconds)));
    });
    let taken = match started {
        Ok(_) => done.await.unwrap_or_else(|_| Err("the profiler ended without a result".to_owned())),
        Err(error) => Err(format!("no thread for it: {error}")),
    };
    match taken {
        Ok(profile) => {
            let mut response = text(StatusCode::OK, profile);
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/octet-stream"));
            response
        }
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn json(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, format!("{value:#}\n"));
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn log_level(query: &str) -> Response<Full<Bytes>> {
    let decoded = |directives: &str| directives.replace("%3D", "=").replace("%2C", ",");
    let changed = match query.split_once('=') {
        _ if query.is_empty() => Ok(()),
        _ if query == "reset" => logging::reset(),
        Some(("level", directives)) => logging::add(&decoded(directives)),
        _ => Err(format!("{query:?} is not understood: level=info, level=scope=debug or reset")),
    };
    match changed {
        Ok(()) => text(StatusCode::OK, format!("current log level is {}\n", logging::current())),
        Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_asked_for_within_bounds() {
        for (query, asked) in [
            ("", Some((10, 99))),
            ("seconds=3", Some((3, 99))),
            ("frequency=250&seconds=1", Some((1, 250))),
            ("seconds=0", None),
            ("seconds=301", None),
            ("frequency=1000", None),
            ("seconds=x", None),
            ("hertz=9", None),
        ] {
            assert_eq!(profile_of(query).ok(), asked, "{query}");
        }
    }
}
