//! DNS over UDP.

use std::{
    cell::{OnceCell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::UdpSocket,
    task::{AbortHandle, spawn_local},
};
use tracing::{debug, warn};

use super::{Capture, Fate, Place, decide};
use crate::{
    agent::worker::{Pod, Worker, canonical},
    dns::message::Transport,
    observe::counters::Counters,
    redirect::{SocketKind, is_own},
};

/// How long the server may take: longer than resolvers wait before they ask again.
const PATIENCE: Duration = Duration::from_secs(10);
/// Datagrams passed back for one question. More than one comes when somebody guesses at answers: the application tells them
/// by their number, as it does without us.
const MOST_ANSWERS: usize = 4;

thread_local! {
    /// Room for the longest datagram, used between two waits.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 65_535]);
}

/// One socket of a pod, which stands for one name server.
struct Door {
    socket: UdpSocket,
    server: OnceCell<SocketAddr>,
    capture: Rc<Capture>,
}

/// Serves the sockets of a pod until their tasks are aborted.
pub fn listen(worker: &Rc<Worker>, pod: &Rc<Pod>, mut capture: Capture) -> Vec<AbortHandle> {
    let sockets = std::mem::take(&mut capture.sockets);
    let capture = Rc::new(capture);
    let mut tasks = Vec::with_capacity(sockets.len());
    for socket in sockets {
        match UdpSocket::from_std(socket) {
            Ok(socket) => {
                let door = Rc::new(Door { socket, server: OnceCell::new(), capture: capture.clone() });
                tasks.push(spawn_local(serve(worker.clone(), pod.clone(), door)).abort_handle());
            }
            Err(error) => warn!("a DNS socket of {} cannot be used: {error}", pod.uid),
        }
    }
    tasks
}

async fn serve(worker: Rc<Worker>, pod: Rc<Pod>, door: Rc<Door>) {
    loop {
        if let Err(error) = door.socket.readable().await {
            warn!("a DNS socket of {} failed: {error}", pod.uid);
            return;
        }
        let received = SCRATCH.with_borrow_mut(|scratch| {
            let (length, client) = door.socket.try_recv_from(scratch)?;
            io::Result::Ok((scratch.get(..length).unwrap_or_default().to_vec(), client))
        });
        // An error is that of an answer whose asker is gone; the next datagram is another's.
        let Ok((packet, client)) = received else { continue };
        // Anybody can reach this socket from outside the pod, but it is there for the pod alone.
        if !is_own(client.ip(), &door.capture.ips) {
            Counters::add(&worker.shared.counters.dns.dropped);
            continue;
        }
        let Some(place) = Place::take(&worker, &pod) else { continue };
        spawn_local(question(worker.clone(), pod.clone(), door.clone(), client, packet, place));
    }
}

async fn question(
    worker: Rc<Worker>,
    pod: Rc<Pod>,
    door: Rc<Door>,
    client: SocketAddr,
    packet: Vec<u8>,
    _place: Place,
) {
    let question = match decide(&worker, &pod, &packet, Transport::Datagram).await {
        Fate::Answered(bytes) => return answer(&door, client, &bytes),
        Fate::Forward(question) => question,
    };
    let counters = &worker.shared.counters.dns;
    let started = Instant::now();
    Counters::add(&counters.upstream_requests);
    match forward(&worker, &pod, &door, client, &packet).await {
        Ok(()) => counters.took(started.elapsed()),
        Err(error) => {
            Counters::add(&counters.upstream_failures);
            debug!("DNS question of {} was not answered: {error}", pod.uid);
            // Silence is what a server that does not answer gives. One that cannot be reached at all is told at once, so that
            // the application asks its next one.
            if error.kind() != io::ErrorKind::TimedOut
                && let Some(bytes) = question.and_then(|question| question.failure())
            {
                answer(&door, client, &bytes);
            }
        }
    }
}

/// A datagram that does not fit into the client's buffer is lost, as any datagram may be.
fn answer(door: &Door, client: SocketAddr, bytes: &[u8]) {
    if let Err(error) = door.socket.try_send_to(bytes, client) {
        debug!("DNS answer to {client} was not sent: {error}");
    }
}

/// The server that was asked through this socket.
fn server(worker: &Worker, door: &Door) -> io::Result<SocketAddr> {
    if let Some(server) = door.server.get() {
        return Ok(*server);
    }
    let local = door.socket.local_addr()?;
    let found = worker.shared.dns_servers.get(door.capture.netns_cookie, local)?;
    // Only somebody who dials the engine's own port comes here without a server.
    let server = found.ok_or(io::ErrorKind::NotFound)?;
    Ok(*door.server.get_or_init(|| server))
}

/// Passes a packet to the server and what it answers back, both as they stand.
async fn forward(worker: &Worker, pod: &Pod, door: &Door, client: SocketAddr, packet: &[u8]) -> io::Result<()> {
    let server = canonical(server(worker, door)?);
    // A socket for each question: its port is as hard to guess as that of the application.
    let socket = worker.sockets.take(pod.id, SocketKind::Datagram, server.ip().into()).await?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    socket.connect(server).await?;
    socket.send(packet).await?;
    let answers = async {
        for _ in 0..MOST_ANSWERS {
            if receive(&socket, door, client, packet).await? {
                break;
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, answers).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Passes one datagram back; whether it carries the number of the question.
async fn receive(socket: &UdpSocket, door: &Door, client: SocketAddr, packet: &[u8]) -> io::Result<bool> {
    loop {
        socket.readable().await?;
        let passed = SCRATCH.with_borrow_mut(|scratch| {
            let length = socket.try_recv(scratch)?;
            let bytes = scratch.get(..length).unwrap_or_default();
            answer(door, client, bytes);
            io::Result::Ok(bytes.get(..2) == packet.get(..2))
        });
        match passed {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}
