//! The HTTP side of the admin interface, on the ports that users of ztunnel know: 15000 admin, 15020 metrics, 15021 readiness.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tracing::warn;

use super::logging;

/// The form Prometheus and OpenMetrics scrapers ask for.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoints show; every call asks anew.
pub trait Source: Send + Sync {
    /// What is missing until traffic can be served; nothing means ready.
    fn pending(&self) -> Vec<String>;
    /// Metrics in text form.
    fn metrics(&self) -> String;
    /// The whole state.
    fn config_dump(&self) -> Value;
    /// Starts an orderly end of the daemon.
    fn quit(&self);
}

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
    tokio::spawn(async move {
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    warn!("{address}: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let source = source.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let source = source.clone();
                    async move { Ok::<_, Infallible>(answer(port, &request, source.as_ref())) }
                });
                // A client that goes away has nobody to tell.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(std::time::Duration::from_secs(10))
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
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
        (Port::Admin, "/config_dump") => {
            let mut response = text(StatusCode::OK, format!("{:#}\n", source.config_dump()));
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            response
        }
        (Port::Admin, "/logging") if method == Method::POST => log_level(request.uri().query().unwrap_or_default()),
        (Port::Admin, "/quitquitquit") if method == Method::POST => {
            source.quit();
            text(StatusCode::OK, "draining\n")
        }
        (Port::Admin, "/logging" | "/quitquitquit") => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n"),
        (Port::Admin, _) => text(
            StatusCode::NOT_FOUND,
            "GET /config_dump, POST /logging[?level=info|?level=scope=debug|?reset], POST /quitquitquit\n",
        ),
        (Port::Stats, _) => text(StatusCode::NOT_FOUND, "GET /metrics or /stats/prometheus\n"),
        (Port::Readiness, _) => text(StatusCode::NOT_FOUND, "GET /healthz/ready\n"),
    }
}

fn log_level(query: &str) -> Response<Full<Bytes>> {
    let changed = match query.split_once('=') {
        _ if query.is_empty() => Ok(()),
        _ if query == "reset" => logging::set(None),
        Some(("level", directives)) => logging::set(Some(&directives.replace("%3D", "=").replace("%2C", ","))),
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
