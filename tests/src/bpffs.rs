//! The machine's BPF file system, which the first daemon mounts where nothing has.

use std::path::Path;
use std::process::{Command, Stdio};

/// Where daemons expect it.
const PATH: &str = "/sys/fs/bpf";

/// Unmounts the BPF file system when dropped, if it was not mounted before and nobody keeps a pin in it.
#[derive(Debug)]
pub struct AsItWas(bool);

impl AsItWas {
    /// Remembers whether it is mounted.
    #[must_use]
    pub fn now() -> Self {
        Self(is_mounted())
    }
}

impl Drop for AsItWas {
    fn drop(&mut self) {
        if !self.0 && is_mounted() && !Path::new(PATH).join("causeway").exists() {
            // Whoever opened a file in it meanwhile keeps it, and the mount with it.
            let _ = Command::new("umount").arg(PATH).stderr(Stdio::null()).status();
        }
    }
}

fn is_mounted() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').skip(1).take(2).eq([PATH, "bpf"]))
}
