//! TLS connections that pass the gateway unread, to where the name belongs that they ask for: the istiod of this cluster, for
//! those that other clusters' proxies look for there.
//!
//! The name is read from the ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3), which is handed on as it came. What
//! asks for no name, or for another one, is closed: nothing but the listed names is reachable.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use crate::hbone::{Cause, ConnError, Leg, advice};
use crate::observe::access_log::{AccessLog, Direction, Record};
use crate::state::{GatewayAddress, Passthrough};
use crate::tunnel::settings::CONNECT_TIMEOUT;

/// How long a client may take to say whom it looks for.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest ClientHello that is waited for; those of today's clients have less than 2 KiB.
const LONGEST_HELLO: usize = 16 * 1024;
/// Connections at a time; further ones wait to be taken.
const CONNECTIONS: usize = 1024;

/// Open listeners, each closed when it is dropped; connections that run go on.
#[derive(Default)]
pub struct Passthroughs(Vec<(Passthrough, JoinHandle<()>)>);

impl Drop for Passthroughs {
    fn drop(&mut self) {
        for (_, task) in &self.0 {
            task.abort();
        }
    }
}

impl Passthroughs {
    /// Opens what is `wanted` and closes what is not. Must run on a runtime.
    ///
    /// # Errors
    /// The address that cannot be listened on; the others are open all the same.
    pub fn apply(&mut self, wanted: &[Passthrough], log: &AccessLog) -> Result<(), String> {
        self.0.retain(|(open, task)| {
            let kept = wanted.contains(open);
            if !kept {
                task.abort();
            }
            kept
        });
        let mut failed = Ok(());
        for one in wanted {
            if self.0.iter().any(|(open, _)| open == one) {
                continue;
            }
            match listen(one.listen) {
                Ok(listener) => {
                    let task = tokio::spawn(accept(listener, Arc::new(one.clone()), log.clone()));
                    self.0.push((one.clone(), task));
                }
                Err(error) => failed = Err(format!("the gateway cannot pass on what comes to {}: {error}", one.listen)),
            }
        }
        failed
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::bind(address)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

async fn accept(listener: TcpListener, way: Arc<Passthrough>, log: AccessLog) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((socket, from)) => {
                let (way, log) = (way.clone(), log.clone());
                tokio::spawn(async move {
                    serve(socket, from, &way, &log).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!("{}: {error}", way.listen);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one connection, and leaves its line in the log.
async fn serve(mut socket: TcpStream, from: SocketAddr, way: &Passthrough, log: &AccessLog) {
    let started = Instant::now();
    let mut record = Record::new(Direction::Gateway);
    record.source.address = Some(from);
    let error = pass(&mut socket, from, way, log, &mut record, started).await.err();
    log.finish(record, error, started.elapsed());
}

async fn pass(
    socket: &mut TcpStream,
    from: SocketAddr,
    way: &Passthrough,
    log: &AccessLog,
    record: &mut Record,
    started: Instant,
) -> Result<(), ConnError> {
    let refused = |reason: String| ConnError::fatal(Leg::Accept, from, reason);
    let (name, hello) = match timeout(HELLO_TIMEOUT, hello(socket)).await {
        Ok(read) => read.map_err(|error| refused(error.to_string()))?,
        Err(_) => return Err(refused("no ClientHello within 5 s".to_owned()).because(Cause::Timeout)),
    };
    if !way.hosts.iter().any(|host| host.eq_ignore_ascii_case(&name)) {
        return Err(refused(format!("nothing is passed on for the name {name:?}, only for {}", way.hosts.join(", "))));
    }
    let failed = |error: &dyn std::fmt::Display| ConnError::fatal(Leg::Backend, &way.to, error);
    let mut server = match timeout(CONNECT_TIMEOUT, connect(&way.to)).await {
        Ok(connected) => connected.map_err(|error| failed(&advice::connect(&error)))?,
        Err(_) => return Err(failed(&"no answer within 10 s").because(Cause::Timeout)),
    };
    record.destination.address = server.peer_addr().ok();
    record.setup = started.elapsed();
    // Whom it serves must be known while it is open: a proxy keeps its stream to istiod for hours.
    log.begin(record);
    server.write_all(&hello).await.map_err(|error| failed(&error))?;
    let (sent, received) = copy_bidirectional(socket, &mut server).await.map_err(|error| failed(&error))?;
    record.bytes = (sent + hello.len() as u64, received);
    Ok(())
}

async fn connect(to: &GatewayAddress) -> io::Result<TcpStream> {
    match to {
        GatewayAddress::Ip(address) => TcpStream::connect(address).await,
        GatewayAddress::Host(host, port) => TcpStream::connect((host.as_str(), *port)).await,
    }
}

/// Reads a ClientHello: the name it asks for, and all bytes that were read.
async fn hello(socket: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut acceptor = Acceptor::default();
    let (mut bytes, mut told) = (Vec::with_capacity(2048), 0);
    loop {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut new = bytes.get(told..).unwrap_or_default();
        while !new.is_empty() {
            told += acceptor.read_tls(&mut new)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return name.map(|name| (name, bytes)).ok_or_else(|| io::Error::other("it asks for no name"));
            }
            Ok(None) if bytes.len() < LONGEST_HELLO => {}
            Ok(None) => return Err(io::Error::other(format!("no ClientHello in {LONGEST_HELLO} bytes"))),
            Err((error, _)) => return Err(io::Error::other(format!("this is no TLS: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests;
