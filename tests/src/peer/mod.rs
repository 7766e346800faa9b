//! What the program `testkit-peer` does: small servers and clients that behave in ways ordinary tools do not show.

pub mod client;
pub mod measure;
pub mod pattern;
pub mod relay;
pub mod serve;

use crate::{Result, context};
use std::future::Future;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Large enough that one read or write moves what the socket buffers hold.
pub(crate) const CHUNK: usize = 256 * 1024;

/// Connections that may wait for accept.
const BACKLOG: u32 = 8192;

/// Runs one future to its end on this thread.
///
/// # Errors
/// If the runtime cannot be made, or what the future returns.
pub fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(context("tokio runtime"))?.block_on(work)
}

/// Connects without delaying small writes.
pub(crate) async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await.map_err(context(format!("connect {to}")))?;
    stream.set_nodelay(true).map_err(context("TCP_NODELAY"))?;
    Ok(stream)
}

/// Listens on both families.
pub(crate) fn listen(port: u16, shared: bool) -> Result<TcpListener> {
    let step = || format!("listen on port {port}");
    let socket = TcpSocket::new_v6().map_err(context(step()))?;
    socket.set_reuseaddr(true).map_err(context(step()))?;
    socket.set_reuseport(shared).map_err(context(step()))?;
    let address = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    socket.bind(address).map_err(context(step()))?;
    socket.listen(BACKLOG).map_err(context(step()))
}
