//! Entry points: which of another network's answer, one memory per worker, and the sockets of our own.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use tokio::time::Instant;

use crate::{
    decide::{GatewayAddress, GatewayCandidate},
    tunnel::client::Tunnel,
};

/// Length of the accept queue of a gateway's listener.
const BACKLOG: i32 = 8192;
/// How long an address is avoided after its first failure in a row.
const FIRST_EJECTION: Duration = Duration::from_secs(1);
/// The longest time an address is avoided.
const LONGEST_EJECTION: Duration = Duration::from_secs(60);
/// Most addresses remembered.
const MEMORY: usize = 4096;

struct Failures {
    in_a_row: u32,
    until: Instant,
}

/// Failures of next hops, by address as configured.
#[derive(Default)]
pub struct Health {
    failures: RefCell<HashMap<String, Failures>>,
}

impl Health {
    /// Notes that `address` did not answer.
    pub fn failed(&self, address: &str) {
        let mut failures = self.failures.borrow_mut();
        if failures.len() >= MEMORY {
            let now = Instant::now();
            failures.retain(|_, failure| failure.until > now);
        }
        let entry = failures.entry(address.to_owned()).or_insert(Failures { in_a_row: 0, until: Instant::now() });
        let pause = FIRST_EJECTION.saturating_mul(1 << entry.in_a_row.min(6));
        entry.in_a_row += 1;
        entry.until = Instant::now() + pause.min(LONGEST_EJECTION);
    }

    /// Notes that `address` answered.
    pub fn answered(&self, address: &str) {
        if !self.failures.borrow().is_empty() {
            self.failures.borrow_mut().remove(address);
        }
    }

    /// Whether `address` failed a moment ago.
    pub fn is_ejected(&self, address: &str) -> bool {
        self.failures.borrow().get(address).is_some_and(|failure| failure.until > Instant::now())
    }

    /// Candidates in the order in which to try them: those that failed a moment ago come last, none is left out.
    pub fn order<'a>(&self, candidates: &'a [GatewayCandidate]) -> Vec<&'a GatewayCandidate> {
        let mut ordered: Vec<&GatewayCandidate> = candidates.iter().collect();
        ordered.sort_by_key(|candidate| self.is_ejected(&name(&candidate.address)));
        ordered
    }
}

/// A listening socket that shares its address with those of the other workers.
pub(super) fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A number that is always the same for an address.
pub fn number(address: &GatewayAddress) -> u64 {
    let mut hasher = DefaultHasher::new();
    match address {
        GatewayAddress::Ip(address) => address.hash(&mut hasher),
        GatewayAddress::Host(host, port) => (host, port).hash(&mut hasher),
    }
    hasher.finish()
}

/// Whether a tunnel goes through one of these entry points, or through none at all.
pub fn still_named(tunnel: &Tunnel, candidates: &[GatewayCandidate]) -> bool {
    tunnel.entry_point().is_none_or(|own| candidates.iter().any(|candidate| number(&candidate.address) == own))
}

/// The address as text, for logs and as a key.
pub fn name(address: &GatewayAddress) -> String {
    match address {
        GatewayAddress::Ip(address) => address.to_string(),
        GatewayAddress::Host(host, port) => format!("{host}:{port}"),
    }
}
