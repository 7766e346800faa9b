//! The clients that measure. Each prints one line of JSON; units are in the names of the fields.

use super::{CHUNK, connect};
use crate::{Result, context, sys};
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The length of one ping and one pong.
const PING: usize = 64;

/// One stream in one direction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stream {
    /// Bytes the server has counted.
    pub bytes: u64,
    /// From the first byte until the server's count arrived.
    pub seconds: f64,
}

/// Pings that wait for their pongs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PingPong {
    /// Round trips completed.
    pub round_trips: u64,
    /// How long they were counted.
    pub seconds: f64,
    /// Median of all round trips.
    pub p50_us: f64,
    /// The slowest of a hundred.
    pub p99_us: f64,
}

/// Connections that are opened, used for one exchange and closed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connections {
    /// Connections that completed their exchange.
    pub completed: u64,
    /// Connections that failed in any way.
    pub failed: u64,
    /// How long they were counted.
    pub seconds: f64,
    /// From `connect` until the answer was there: the median.
    pub p50_us: f64,
    /// The slowest of a hundred.
    pub p99_us: f64,
}

/// The time that `connect` itself takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectCost {
    /// The fastest.
    pub min_us: f64,
    /// The median.
    pub p50_us: f64,
    /// Calls measured.
    pub count: u64,
}

fn print(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value).map_err(context("JSON"))?);
    Ok(())
}

/// Sends to a sink for a time, or a number of bytes if that comes first, and prints [`Stream`].
///
/// # Errors
/// If the connection breaks or the sink did not get everything.
pub async fn stream(to: SocketAddr, seconds: f64, bytes: Option<u64>) -> Result<()> {
    let mut stream = connect(to).await?;
    let block = vec![b's'; CHUNK];
    let start = Instant::now();
    let mut sent = 0;
    let limit = bytes.unwrap_or(u64::MAX);
    while sent < limit && start.elapsed().as_secs_f64() < seconds {
        stream.write_all(&block).await.map_err(context("write"))?;
        sent += block.len() as u64;
    }
    stream.shutdown().await.map_err(context("shutdown"))?;
    let counted = stream.read_u64_le().await.map_err(context("the sink's count"))?;
    if counted != sent {
        return Err(format!("sent {sent}, the sink counted {counted}").into());
    }
    print(&Stream { bytes: counted, seconds: start.elapsed().as_secs_f64() })
}

/// Keeps `connections` pings in flight against an echo server and prints [`PingPong`].
///
/// # Errors
/// If one connection fails.
pub async fn ping_pong(to: SocketAddr, connections: usize, seconds: f64) -> Result<()> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = connect(to).await?;
        // Once around before the clock starts: tunnels and caches are warm for every contender.
        once(&mut stream).await?;
        streams.push(stream);
    }
    let start = Instant::now();
    let length = Duration::from_secs_f64(seconds);
    let mut tasks = Vec::new();
    for mut stream in streams {
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < length {
                let begin = Instant::now();
                once(&mut stream).await?;
                times.push(begin.elapsed());
            }
            Ok::<_, crate::Error>(times)
        }));
    }
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.map_err(context("task"))??);
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    print(&PingPong {
        round_trips: times.len() as u64,
        seconds,
        p50_us: percentile(&times, 50),
        p99_us: percentile(&times, 99),
    })
}

async fn once(stream: &mut tokio::net::TcpStream) -> Result<()> {
    let mut buffer = [b'p'; PING];
    stream.write_all(&buffer).await.map_err(context("ping"))?;
    stream.read_exact(&mut buffer).await.map_err(context("pong"))?;
    Ok(())
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let index = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

/// Opens, uses once and closes connections to an echo server, `parallel` at a time, and prints [`Connections`]. With a
/// `rate` per second they are begun evenly, as far as the answers allow.
///
/// # Errors
/// Only if a task is lost; failed connections are counted.
pub async fn connections(
    to: SocketAddr,
    parallel: usize,
    seconds: f64,
    count: Option<u64>,
    rate: Option<f64>,
) -> Result<()> {
    let start = Instant::now();
    let length = Duration::from_secs_f64(seconds);
    let share = count.map(|count| count.div_ceil(parallel as u64)).unwrap_or(u64::MAX);
    let mut tasks = Vec::new();
    for _ in 0..parallel {
        tasks.push(tokio::spawn(async move {
            let (mut times, mut completed, mut failed) = (Vec::new(), 0_u64, 0_u64);
            let mut pace =
                rate.map(|rate| tokio::time::interval(Duration::from_secs_f64(parallel as f64 / rate.max(0.001))));
            while start.elapsed() < length && completed + failed < share {
                if let Some(pace) = &mut pace {
                    pace.tick().await;
                }
                match whole_connection(to).await {
                    Ok(took) => {
                        completed += 1;
                        times.push(took);
                    }
                    Err(error) => {
                        failed += 1;
                        if failed <= 3 {
                            eprintln!("after {:.1} s: {error}", start.elapsed().as_secs_f64());
                        }
                    }
                }
            }
            (times, failed)
        }));
    }
    let (mut times, mut failed) = (Vec::new(), 0);
    for task in tasks {
        let (took, failures) = task.await.map_err(context("task"))?;
        times.extend(took);
        failed += failures;
    }
    let seconds = start.elapsed().as_secs_f64();
    times.sort_unstable();
    print(&Connections {
        completed: times.len() as u64,
        failed,
        seconds,
        p50_us: percentile(&times, 50),
        p99_us: percentile(&times, 99),
    })
}

/// One connection from beginning to end; how long its first answer took.
async fn whole_connection(to: SocketAddr) -> Result<Duration> {
    let begin = Instant::now();
    let mut stream = connect(to).await?;
    stream.write_all(b"x").await.map_err(context("write"))?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(context("read"))?;
    let took = begin.elapsed();
    stream.shutdown().await.map_err(context("shutdown"))?;
    // Their end is waited for, so that both directions are closed in order.
    stream.read(&mut answer).await.map_err(context("end"))?;
    Ok(took)
}

/// Times `connect` alone and prints [`ConnectCost`].
///
/// # Errors
/// If a connection is refused.
pub fn connect_cost(to: SocketAddr, count: usize) -> Result<()> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        let stream = BlockingStream::connect(to).map_err(context(format!("connect {to}")))?;
        times.push(begin.elapsed());
        // RST instead of TIME_WAIT: thousands of these in a row must not run out of ports.
        sys::reset_on_close(stream.as_fd()).map_err(context("SO_LINGER"))?;
    }
    times.sort_unstable();
    print(&ConnectCost { min_us: percentile(&times, 0), p50_us: percentile(&times, 50), count: count as u64 })
}
