//! Fills the map of recorded connections with entries nobody will ever ask for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::bpf;

/// A full map, and the keys that filled it.
pub struct Filled {
    map: OwnedFd,
    keys: Vec<[u8; 48]>,
}

/// Adds entries until the map takes no more.
pub fn fill(path: &Path) -> Filled {
    let map = bpf::pinned(path).unwrap();
    let mut keys = Vec::new();
    for number in 0..u64::MAX {
        let mut key = [0xff; 48];
        key[..8].copy_from_slice(&number.to_ne_bytes());
        match bpf::update(map.as_fd(), &key, &[0; 24]) {
            Ok(()) => keys.push(key),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::E2BIG), "{error}");
                break;
            }
        }
    }
    assert!(keys.len() > 1000, "the map takes {} entries", keys.len());
    Filled { map, keys }
}

impl Filled {
    /// Removes the entries again.
    pub fn clear(self) {
        for key in &self.keys {
            bpf::delete(self.map.as_fd(), key).unwrap();
        }
    }
}
