//! Spans of connections for an OpenTelemetry collector: OTLP over HTTP, as JSON, from a thread of its own.
//!
//! A collector that is away, slow or says no costs spans, which are counted; connections and the access log go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{
    Request,
    header::{CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tracing::warn;

use super::{
    counters::Counters,
    line::{self, Value as Field},
    record::{Direction, Record},
};
use crate::{hbone::Span, state::Traces};

/// Spans waiting for the exporter; past that they are dropped.
const QUEUE: usize = 8_192;
/// Spans sent at once.
const BATCH: usize = 512;
/// How long a span waits for others.
const WAIT: Duration = Duration::from_millis(500);
/// How long a collector may take.
const ANSWER: Duration = Duration::from_secs(5);
/// A failure that repeats is said again after this long.
const REMIND: Duration = Duration::from_secs(60);

/// Whose spans these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// This node.
    pub node: Arc<str>,
    /// Its cluster.
    pub cluster: Arc<str>,
}

/// A span on its way, and where to.
struct Job {
    span: Value,
    to: Traces,
    origin: Origin,
}

/// Makes spans of records, and starts the exporter with the first one.
pub struct Spans {
    sender: Option<SyncSender<Job>>,
    counters: Arc<Counters>,
}

impl Spans {
    pub fn new(counters: Arc<Counters>) -> Self {
        Self { sender: None, counters }
    }

    /// Hands the span of a connection over, if it has one that is recorded; drops it rather than wait.
    pub fn add(&mut self, to: &Traces, origin: &Origin, record: &Record) {
        let Some(span) = record.span.filter(|span| span.context.is_recorded()) else { return };
        let job = Job { span: otlp(record, span), to: to.clone(), origin: origin.clone() };
        if self.sender.is_none() {
            let (sender, receiver) = sync_channel(QUEUE);
            let counters = self.counters.clone();
            let started = thread::Builder::new().name("spans".to_owned()).spawn(move || export(&receiver, &counters));
            match started {
                Ok(_) => self.sender = Some(sender),
                Err(error) => warn!("no thread to send spans: {error}"),
            }
        }
        if self.sender.as_ref().is_none_or(|sender| sender.try_send(job).is_err()) {
            Counters::add(&self.counters.spans_dropped);
        }
    }
}

/// A span as OTLP has it in JSON.
fn otlp(record: &Record, span: Span) -> Value {
    let nanos = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    let begin = record.at.checked_sub(record.duration).unwrap_or(record.at);
    let mut attributes = Vec::new();
    // Nothing that is put here fails.
    let _ = line::fields(record, &mut |key, value| {
        let value = match value {
            Field::Text(text) => json!({ "stringValue": text }),
            Field::Shown(value) | Field::Words(value) => json!({ "stringValue": value.to_string() }),
            Field::Number(number) => json!({ "intValue": number.to_string() }),
            Field::Micros(micros) => json!({ "doubleValue": f64::from(micros) / 1000.0 }),
        };
        attributes.push(json!({"key": key, "value": value}));
        Ok(())
    });
    let (name, kind) = match record.direction {
        Direction::Outbound => ("outbound connection", 3),
        Direction::Inbound => ("inbound connection", 2),
        Direction::Gateway => ("gateway stream", 1),
    };
    let mut made = json!({
        "traceId": hex(&span.context.trace()),
        "spanId": hex(&span.context.span()),
        "name": name,
        "kind": kind,
        "startTimeUnixNano": nanos(begin),
        "endTimeUnixNano": nanos(record.at),
        "attributes": attributes,
    });
    if let Some(made) = made.as_object_mut() {
        let more: Map<String, Value> = [
            ("parentSpanId", span.parent.map(|parent| json!(hex(&parent)))),
            ("status", record.error.as_ref().map(|error| json!({"code": 2, "message": error.to_string()}))),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect();
        made.extend(more);
    }
    made
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A request of OTLP with these spans.
fn request(origin: &Origin, spans: &[Value]) -> Value {
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let version = env!("CARGO_PKG_VERSION");
    json!({"resourceSpans": [{
        "resource": {"attributes": [
            attribute("service.name", "causeway"),
            attribute("service.version", version),
            attribute("k8s.node.name", &origin.node),
            attribute("k8s.cluster.name", &origin.cluster),
        ]},
        "scopeSpans": [{"scope": {"name": "causeway", "version": version}, "spans": spans}],
    }]})
}

/// Sends what comes, in batches, until the sender is gone.
fn export(receiver: &Receiver<Job>, counters: &Counters) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            warn!("spans cannot be sent: {error}");
            return;
        }
    };
    let mut said: Option<Instant> = None;
    let mut kept: Option<Job> = None;
    while let Some(first) = kept.take().or_else(|| receiver.recv().ok()) {
        let mut spans = vec![first.span];
        let until = Instant::now() + WAIT;
        while spans.len() < BATCH {
            match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(job) if job.to == first.to && job.origin == first.origin => spans.push(job.span),
                Ok(job) => {
                    kept = Some(job);
                    break;
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        let body = request(&first.origin, &spans).to_string();
        let sent = runtime.block_on(async {
            match tokio::time::timeout(ANSWER, post(&first.to, body)).await {
                Ok(sent) => sent,
                Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
            }
        });
        let add = |counter: &AtomicU64| counter.fetch_add(spans.len() as u64, Relaxed);
        match sent {
            Ok(()) => {
                add(&counters.spans_sent);
                said = None;
            }
            Err(reason) => {
                add(&counters.spans_dropped);
                if said.is_none_or(|at| at.elapsed() > REMIND) {
                    warn!(
                        "the collector at {} takes no spans: {reason}; they are dropped and counted",
                        first.to.collector
                    );
                    said = Some(Instant::now());
                }
            }
        }
    }
}

/// One request on a connection of its own: batches are few.
async fn post(to: &Traces, body: String) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let socket = TcpStream::connect(&to.collector).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        http1::handshake::<_, Full<Bytes>>(TokioIo::new(socket)).await.map_err(|error| text(&error))?;
    let request = Request::post(&to.path)
        .header(HOST, &to.collector)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::from(body))
        .map_err(|error| text(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| text(&error))?;
        let status = response.status();
        // Read to its end, so that the collector does not see an error.
        let said = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if status.is_success() {
            return Ok(());
        }
        let said: String = String::from_utf8_lossy(&said).chars().take(200).collect();
        Err(format!("it answers {status} {said:?}"))
    };
    tokio::select! {
        done = exchange => done,
        // The connection ends without an error only after the exchange.
        Err(error) = connection => Err(text(&error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;
    use crate::hbone::{ConnError, Leg, TraceParent};

    #[test]
    fn a_span_has_its_parent_its_times_and_the_fields_of_the_log() {
        let parent = TraceParent::random([1; 24]).recorded(true);
        let mut record = Record::new(Direction::Inbound);
        record.at = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        record.duration = Duration::from_secs(3);
        record.bytes = (5, 6);
        record.error = Some(ConnError::fatal(Leg::Backend, "10.0.0.1:80", "refused"));
        let span = otlp(&record, Span::below(parent, 2));
        assert_eq!(span["traceId"], "01".repeat(16));
        assert_eq!(span["parentSpanId"], "01".repeat(8));
        assert_eq!(span["spanId"], "0000000000000002");
        assert_eq!(span["kind"], 2);
        assert_eq!(span["startTimeUnixNano"], "7000000000");
        assert_eq!(span["endTimeUnixNano"], "10000000000");
        assert_eq!(span["status"]["code"], 2);
        let attributes = span["attributes"].as_array().unwrap();
        let of = |key: &str| &attributes.iter().find(|one| one["key"] == key).unwrap()["value"];
        assert_eq!(of("bytes_recv")["intValue"], "6");
        assert_eq!(of("leg")["stringValue"], "backend");
        let first = otlp(&Record::new(Direction::Outbound), Span::first(parent));
        assert!(first.get("parentSpanId").is_none() && first.get("status").is_none(), "{first}");
    }
}
