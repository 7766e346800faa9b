//! A stream of bytes that both ends can compute, so that every byte can be compared at its place.

use crate::{Error, Result};

/// The bytes of one direction of one connection.
#[derive(Debug, Clone)]
pub struct Pattern {
    seed: u64,
    position: u64,
}

impl Pattern {
    /// The stream with this seed, at its beginning.
    pub fn new(seed: u64) -> Self {
        Self { seed, position: 0 }
    }

    /// How many bytes were taken so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Fills a buffer with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let inside = usize::try_from(self.position % 8).unwrap_or(0);
            let word = self.word(self.position / 8);
            let take = rest.len().min(8 - inside);
            let (now, later) = rest.split_at_mut(take);
            now.iter_mut().zip(word.iter().skip(inside)).for_each(|(to, from)| *to = *from);
            self.position += take as u64;
            rest = later;
        }
    }

    /// Compares bytes with the next ones of the stream.
    ///
    /// # Errors
    /// With the place of the first difference.
    pub fn check(&mut self, bytes: &[u8], scratch: &mut Vec<u8>) -> Result<()> {
        let start = self.position;
        scratch.resize(bytes.len(), 0);
        self.fill(scratch);
        if scratch == bytes {
            return Ok(());
        }
        let at = scratch.iter().zip(bytes).position(|(wanted, got)| wanted != got).unwrap_or(0);
        Err(Error(format!("byte {} differs from what was sent", start + at as u64)))
    }

    fn word(&self, index: u64) -> [u8; 8] {
        // The finaliser of splitmix64: neighbouring indexes give unrelated words.
        let mut x = self.seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::Pattern;

    #[test]
    fn pieces_of_any_size_make_the_same_stream() {
        let mut whole = vec![0; 1000];
        Pattern::new(7).fill(&mut whole);
        let mut pieces = Pattern::new(7);
        let mut scratch = Vec::new();
        for piece in whole.chunks(13) {
            pieces.check(piece, &mut scratch).unwrap();
        }
    }

    #[test]
    fn a_changed_byte_is_found_at_its_place() {
        let mut bytes = vec![0; 64];
        Pattern::new(1).fill(&mut bytes);
        if let Some(byte) = bytes.get_mut(33) {
            *byte ^= 1;
        }
        let error = Pattern::new(1).check(&bytes, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("byte 33 "), "{error}");
    }
}
