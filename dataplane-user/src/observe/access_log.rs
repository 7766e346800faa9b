//! One line per connection, at its end. The data path hands over a record and never waits; a writer thread formats it.

use std::{
    fmt::{self, Write as _},
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use time::{OffsetDateTime, macros::format_description};

use super::{counters::Counters, traffic::Traffic};
use crate::{
    hbone::ConnError,
    identity::SpiffeId,
    state::{Service, Workload},
};

/// Records waiting for the writer; past that they are dropped and counted.
const QUEUE: usize = 65_536;

/// Which way a connection went, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Opened by an application of an enrolled pod.
    Outbound,
    /// Towards an application of an enrolled pod.
    Inbound,
    /// Through the gateway role.
    Gateway,
}

impl Direction {
    /// As it stands in logs and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
            Direction::Gateway => "gateway",
        }
    }
}

/// One side of a connection.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// The address of the socket.
    pub address: Option<SocketAddr>,
    /// The workload, where the model knows it.
    pub workload: Option<Arc<Workload>>,
    /// The identity it proved, or that we present for it.
    pub identity: Option<SpiffeId>,
    /// Cluster, where the peer said it and the model does not know.
    pub cluster: Option<Arc<str>>,
}

/// Which moment of a connection a record tells of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moment {
    /// It ended.
    #[default]
    End,
    /// It was opened; logged only where the end may be hours away.
    Open,
}

/// What there is to say about one connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// Opened or ended.
    pub moment: Moment,
    /// Which way.
    pub direction: Direction,
    /// Who opened it.
    pub source: Side,
    /// Where it went.
    pub destination: Side,
    /// The service the source named.
    pub service: Option<Arc<Service>>,
    /// The authority of the CONNECT, or the next hop's address.
    pub hbone: Option<String>,
    /// The client's own address as its node reported it, where a gateway stands between.
    pub forwarded_for: Option<String>,
    /// Bytes towards the destination and back.
    pub bytes: (u64, u64),
    /// From accept to the end.
    pub duration: Duration,
    /// From accept until bytes could flow.
    pub setup: Duration,
    /// Whether its bytes could flow.
    pub opened: bool,
    /// What went wrong: the leg and the words.
    pub error: Option<ConnError>,
}

impl Record {
    /// A record with nothing known but its direction.
    pub fn new(direction: Direction) -> Self {
        Self {
            moment: Moment::End,
            direction,
            source: Side::default(),
            destination: Side::default(),
            service: None,
            hbone: None,
            forwarded_for: None,
            bytes: (0, 0),
            duration: Duration::ZERO,
            setup: Duration::ZERO,
            opened: false,
            error: None,
        }
    }
}

/// A handle to the writer thread.
#[derive(Clone)]
pub struct AccessLog {
    sender: SyncSender<Record>,
    counters: Arc<Counters>,
    traffic: Arc<Traffic>,
}

impl AccessLog {
    /// Starts the writer: to the end of `file`, or to standard output.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or no thread can be started.
    pub fn start(file: Option<&Path>, counters: Arc<Counters>, traffic: Arc<Traffic>) -> io::Result<Self> {
        let output: Box<dyn Write + Send> = match file {
            Some(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
            None => Box::new(io::stdout()),
        };
        let (sender, receiver) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(&receiver, BufWriter::with_capacity(64 << 10, output)))?;
        Ok(Self { sender, counters, traffic })
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
        self.traffic.ended(&record, record.opened);
        self.record(record);
    }

    /// Hands over a record; drops it rather than wait.
    pub fn record(&self, record: Record) {
        if self.sender.try_send(record).is_err() {
            Counters::add(&self.counters.log_dropped);
        }
    }
}

/// Writes until every sender is gone; flushes when there is a pause.
fn write(receiver: &Receiver<Record>, mut output: BufWriter<Box<dyn Write + Send>>) {
    let mut line = String::new();
    loop {
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(record) => {
                line.clear();
                // Writing into a String cannot fail, and a log that cannot be written has nobody to complain to.
                let _ = format(&mut line, SystemTime::now(), &record);
                let _ = output.write_all(line.as_bytes());
            }
            Err(RecvTimeoutError::Timeout) => {
                let _ = output.flush();
            }
            Err(RecvTimeoutError::Disconnected) => {
                let _ = output.flush();
                return;
            }
        }
    }
}

/// Appends one line in the order of keys that readers of ambient access logs know, then ours.
fn format(line: &mut String, now: SystemTime, record: &Record) -> fmt::Result {
    let stamp = OffsetDateTime::from(now)
        .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"));
    let level = if record.error.is_some() { "error" } else { "info" };
    write!(
        line,
        "{}\t{level}\taccess\tconnection {}\t",
        stamp.unwrap_or_default(),
        match (record.moment, &record.error) {
            (_, Some(_)) => "failed",
            (Moment::Open, None) => "opened",
            (Moment::End, None) => "complete",
        }
    )?;
    side(line, "src", &record.source, None)?;
    side(line, "dst", &record.destination, Some(record))?;
    write!(line, "direction={}", record.direction.name())?;
    write!(
        line,
        " bytes_sent={} bytes_recv={} duration={}ms",
        record.bytes.0,
        record.bytes.1,
        record.duration.as_millis()
    )?;
    if let Some(client) = &record.forwarded_for {
        write!(line, " client={client}")?;
    }
    write!(line, " setup={}us", record.setup.as_micros())?;
    if let Some(error) = &record.error {
        write!(line, " leg={}", error.leg)?;
        if let Some(status) = error.status {
            write!(line, " status={status}")?;
        }
        write!(line, " error=")?;
        quoted(line, &error.to_string())?;
    }
    line.push('\n');
    Ok(())
}

fn side(line: &mut String, name: &str, side: &Side, extra: Option<&Record>) -> fmt::Result {
    if let Some(address) = side.address {
        write!(line, "{name}.addr={address} ")?;
    }
    if let Some(record) = extra {
        if let Some(hbone) = &record.hbone {
            write!(line, "{name}.hbone_addr={hbone} ")?;
        }
        if let Some(service) = &record.service {
            write!(line, "{name}.service={} ", service.hostname)?;
        }
    }
    if let Some(workload) = &side.workload {
        write!(line, "{name}.workload={} {name}.namespace={} ", workload.name, workload.namespace)?;
    }
    if let Some(identity) = &side.identity {
        write!(line, "{name}.identity={identity} ")?;
    }
    let cluster = side.workload.as_ref().map(|workload| &workload.cluster).or(side.cluster.as_ref());
    if let Some(cluster) = cluster {
        write!(line, "{name}.cluster={cluster} ")?;
    }
    Ok(())
}

/// Text from outside in quotes, so that it can neither end the line nor add a field.
fn quoted(line: &mut String, text: &str) -> fmt::Result {
    write!(line, "{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hbone::Leg;

    #[test]
    fn failed_record_names_leg_and_keeps_to_one_line() {
        let mut record = Record::new(Direction::Outbound);
        record.error = Some(ConnError::fatal(Leg::InnerTls, "web:80", "presented \"x\"\nforged=1"));
        let mut line = String::new();
        let written = format(&mut line, SystemTime::UNIX_EPOCH, &record);
        assert!(written.is_ok());
        assert!(line.starts_with("1970-01-01T00:00:00.000000Z\terror\taccess\t"));
        assert!(line.contains(" leg=inner-tls "), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}
