//! One line per connection, at its end. The data path hands over a record and never waits; a writer thread formats it.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;

pub use super::record::{Direction, Moment, Party, Record, Side};
use super::{
    counters::Counters,
    line,
    log_output::Output,
    spans::{Origin, Spans},
    traffic::Traffic,
};
use crate::{
    hbone::ConnError,
    state::{LogConfig, LogFormat, NodeConfig, Traces},
    tunnel::random::Random,
};

/// Records waiting for the writer; past that they are dropped and counted.
const QUEUE: usize = 65_536;

thread_local! {
    static RANDOM: Random = Random::default();
}

/// What is written, and how; replaced as a whole when the model file changes.
struct Settings {
    log: LogConfig,
    format: LogFormat,
    traces: Option<Traces>,
    origin: Origin,
}

impl Settings {
    fn new(node: &NodeConfig) -> Self {
        let telemetry = &node.telemetry;
        let json = || std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json");
        let format = telemetry.log.format.unwrap_or_else(|| if json() { LogFormat::Json } else { LogFormat::Text });
        let origin = Origin { node: node.node.clone(), cluster: node.cluster.clone() };
        Self { log: telemetry.log.clone(), format, traces: telemetry.traces.clone(), origin }
    }
}

/// A handle to the writer thread.
#[derive(Clone)]
pub struct AccessLog {
    /// In boxes: a queue of records as they are would take 28 MiB from the start.
    sender: SyncSender<Box<Record>>,
    settings: Arc<ArcSwap<Settings>>,
    counters: Arc<Counters>,
    traffic: Arc<Traffic>,
}

impl AccessLog {
    /// Starts the writer: to the end of `file`, or to standard output.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or no thread can be started.
    pub fn start(
        file: Option<&Path>,
        node: &NodeConfig,
        counters: Arc<Counters>,
        traffic: Arc<Traffic>,
    ) -> io::Result<Self> {
        let output = Output::open(file)?;
        let settings = Arc::new(ArcSwap::from_pointee(Settings::new(node)));
        let (sender, receiver) = sync_channel(QUEUE);
        let (seen, counted) = (settings.clone(), counters.clone());
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(&receiver, &seen, &counted, output))?;
        Ok(Self { sender, settings, counters, traffic })
    }

    /// Takes over changed settings; lines that wait are written in the new form.
    pub fn configure(&self, node: &NodeConfig) {
        self.settings.store(Arc::new(Settings::new(node)));
    }

    /// Whether a connection that begins here is traced.
    pub fn traces(&self) -> bool {
        let settings = self.settings.load();
        settings.traces.as_ref().is_some_and(|traces| traces.sample.takes(RANDOM.with(Random::next)))
    }

    /// The counters this log adds to.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Logs the end of a connection, and counts it by leg if it failed.
    pub fn finish(&self, mut record: Record, error: Option<ConnError>, duration: Duration) {
        if let Some(error) = &error {
            self.counters.fail(error.leg);
        }
        record.error = error;
        record.duration = duration;
        self.traffic.ended(&record);
        record.logged = Some(self.wants(&record));
        if record.logged == Some(true) || self.wants_span(&record) {
            self.hand_over(record);
        }
    }

    fn wants_span(&self, record: &Record) -> bool {
        record.span.is_some_and(|span| span.context.is_recorded()) && self.settings.load().traces.is_some()
    }

    /// Logs that the bytes of a connection begin to flow; its end has a line if this has.
    pub fn begin(&self, record: &mut Record) {
        let wanted = self.wants(record);
        record.logged = Some(wanted);
        if wanted {
            self.hand_over(Record { moment: Moment::Open, ..record.clone() });
        }
    }

    /// Whether a record has a line. Failures have one whatever was decided when they began.
    fn wants(&self, record: &Record) -> bool {
        let failed = record.error.is_some();
        if let (Some(logged), false) = (record.logged, failed) {
            return logged;
        }
        self.settings.load().log.wants(record.namespace(), failed, || RANDOM.with(Random::next))
    }

    /// Hands over a record; drops it rather than wait.
    fn hand_over(&self, mut record: Record) {
        record.at = SystemTime::now();
        if self.sender.try_send(Box::new(record)).is_err() {
            Counters::add(&self.counters.log_dropped);
        }
    }
}

/// Writes until every sender is gone; flushes when there is a pause.
fn write(receiver: &Receiver<Box<Record>>, settings: &ArcSwap<Settings>, counters: &Arc<Counters>, mut output: Output) {
    let mut line = String::new();
    let mut spans = Spans::new(counters.clone());
    loop {
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(record) => {
                let settings = settings.load();
                if record.logged == Some(true) {
                    line.clear();
                    // Writing into a String cannot fail.
                    let _ = line::write(&mut line, settings.format, &record);
                    output.line(line.as_bytes(), counters);
                }
                if let (Some(traces), Moment::End) = (&settings.traces, record.moment) {
                    spans.add(traces, &settings.origin, &record);
                }
            }
            Err(RecvTimeoutError::Timeout) => output.flush(counters),
            Err(RecvTimeoutError::Disconnected) => return output.flush(counters),
        }
    }
}
