//! Reuse of tunnels to the next hop: one pool per worker.

use std::{cell::RefCell, collections::HashMap, future::Future, hash::Hash, net::IpAddr, rc::Rc, time::Instant};

use http::HeaderMap;
use tokio::sync::Mutex;

use super::{
    client::{Legs, OpenStream, Tunnel},
    settings::STREAMS_PER_TUNNEL,
};
use crate::hbone::{ConnError, Walk};
use crate::identity::{ExpectedPeer, SpiffeId};

/// What two connections must have in common to share an outer tunnel. The source address is part of it so that a
/// NetworkPolicy on the path keeps its meaning.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OuterKey {
    /// Whose certificate the tunnel presents.
    pub identity: SpiffeId,
    /// The source pod's address.
    pub source: IpAddr,
    /// The next hop.
    pub to: std::net::SocketAddr,
    /// Who the next hop must prove to be.
    pub expected: ExpectedPeer,
}

#[derive(Default)]
struct Entry {
    tunnels: RefCell<Vec<Tunnel>>,
    /// Held while a tunnel is made, so that a burst of connections waits behind one dial.
    dial: Mutex<()>,
}

/// Tunnels by key.
pub struct Pool<K> {
    entries: RefCell<HashMap<K, Rc<Entry>>>,
}

impl<K> Default for Pool<K> {
    fn default() -> Self {
        Self { entries: RefCell::default() }
    }
}

/// Streams a tunnel may carry: what the peer allows, at most what we allow ourselves.
fn room(tunnel: &Tunnel) -> usize {
    tunnel.limit().min(STREAMS_PER_TUNNEL as usize).saturating_sub(tunnel.streams())
}

impl<K: Clone + Eq + Hash> Pool<K> {
    /// A tunnel with room for one more stream whose certificate is still `generation`; made by `dial` if there is none.
    ///
    /// # Errors
    /// The error of `dial`.
    pub async fn tunnel<F, D>(&self, key: &K, generation: u64, dial: D) -> Result<Tunnel, ConnError>
    where
        D: FnOnce() -> F,
        F: Future<Output = Result<Tunnel, ConnError>>,
    {
        let entry = self.entry(key);
        if let Some(tunnel) = pick(&entry, generation) {
            return Ok(tunnel);
        }
        let _dialling = entry.dial.lock().await;
        if let Some(tunnel) = pick(&entry, generation) {
            return Ok(tunnel);
        }
        let tunnel = dial().await?;
        entry.tunnels.borrow_mut().push(tunnel.clone());
        Ok(tunnel)
    }

    /// Opens a stream on a pooled tunnel. A tunnel that died while idle is noticed here: then a fresh one is used, once.
    /// The time of the CONNECT is noted in `walk`, that of a dial is the matter of `dial`.
    ///
    /// # Errors
    /// The error of `dial` or of the CONNECT.
    pub async fn open<F, D>(
        &self,
        key: &K,
        generation: u64,
        dial: D,
        (authority, headers): (&str, &HeaderMap),
        legs: Legs,
        walk: &Walk,
    ) -> Result<(OpenStream, Tunnel), ConnError>
    where
        D: Fn() -> F,
        F: Future<Output = Result<Tunnel, ConnError>>,
    {
        loop {
            let tunnel = self.tunnel(key, generation, &dial).await?;
            let fresh = tunnel.opened() == 0;
            let begin = Instant::now();
            let opened = tunnel.open(authority, headers.clone(), legs).await;
            walk.done(legs.connect, begin);
            match opened {
                Ok(stream) => return Ok((stream, tunnel)),
                Err(_) if !fresh && !tunnel.is_usable() => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn entry(&self, key: &K) -> Rc<Entry> {
        if let Some(entry) = self.entries.borrow().get(key) {
            return entry.clone();
        }
        self.entries.borrow_mut().entry(key.clone()).or_default().clone()
    }

    /// Forgets tunnels that are gone and keys without any; returns the tunnels left.
    pub fn sweep(&self) -> usize {
        let mut left = 0;
        self.entries.borrow_mut().retain(|_, entry| {
            let mut tunnels = entry.tunnels.borrow_mut();
            tunnels.retain(Tunnel::is_usable);
            left += tunnels.len();
            !tunnels.is_empty() || Rc::strong_count(entry) > 1
        });
        left
    }
}

/// The fullest tunnel below three quarters, so that the others may become idle and close; else any with room.
fn pick(entry: &Entry, generation: u64) -> Option<Tunnel> {
    let mut tunnels = entry.tunnels.borrow_mut();
    tunnels.retain(|tunnel| {
        if tunnel.generation() < generation {
            tunnel.retire();
        }
        tunnel.is_usable()
    });
    tunnels
        .iter()
        .filter(|tunnel| room(tunnel) > 0)
        .min_by_key(|tunnel| {
            let room = room(tunnel);
            let spare = room * 4 > tunnel.limit().min(STREAMS_PER_TUNNEL as usize);
            (!spare, room)
        })
        .cloned()
}
