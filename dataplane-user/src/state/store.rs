//! The newest model, for many readers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::Model;

/// Holds the newest snapshot. Readers never wait; each replacement raises the generation.
#[derive(Debug)]
pub struct ModelStore {
    model: ArcSwap<Model>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
}

impl ModelStore {
    /// Starts with a model, as generation 1.
    #[must_use]
    pub fn new(model: Model) -> Self {
        Self { model: ArcSwap::from_pointee(model), generation: AtomicU64::new(1), changed: watch::Sender::new(1) }
    }

    /// The newest snapshot.
    #[must_use]
    pub fn load(&self) -> Arc<Model> {
        self.model.load_full()
    }

    /// Replaces the snapshot, then tells subscribers.
    pub fn replace(&self, model: Model) {
        self.model.store(Arc::new(model));
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.changed.send_replace(generation);
    }

    /// The generation of the newest snapshot.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A receiver that sees every raise of the generation (possibly several as one).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
