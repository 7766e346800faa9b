//! Random numbers for spreading load and for trace ids. Nothing secret is made from them.

use std::{
    cell::Cell,
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
};

/// A xorshift generator (Marsaglia 2003, 64 bits, shifts 13, 7, 17), seeded by the operating system.
pub struct Random(Cell<u64>);

impl Default for Random {
    fn default() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Self(Cell::new(seed | 1))
    }
}

impl Random {
    /// The next number.
    pub fn next(&self) -> u64 {
        let mut value = self.0.get();
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
        self.0.set(value);
        value
    }

    /// Bytes for a trace id and a span id.
    pub fn trace_bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for part in bytes.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_ne_bytes());
        }
        bytes
    }
}
