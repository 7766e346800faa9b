//! Certificates and handshakes, in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod files;
mod handshakes;
mod remote;
mod revocation;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

/// A folder of its own that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("causeway-identity-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A root with intermediates for the given clusters.
fn authority(trust_domain: &str, clusters: &[&str]) -> Folder {
    let folder = Folder::new();
    let clusters: Vec<String> = clusters.iter().map(ToString::to_string).collect();
    ca::create(&folder.0, trust_domain, &clusters).unwrap();
    folder
}

fn config(directory: PathBuf, trust_domain: &str) -> StoreConfig {
    StoreConfig {
        source: CertificateSource::Directory(directory),
        trust_domain: trust_domain.to_owned(),
        ttl: Duration::from_secs(24 * 3600),
        revocation: None,
    }
}

fn store(directory: PathBuf, trust_domain: &str) -> Arc<CertificateStore> {
    CertificateStore::open(config(directory, trust_domain)).unwrap()
}

fn id(trust_domain: &str, account: &str) -> SpiffeId {
    SpiffeId::new(trust_domain, "default", account).unwrap()
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}
