//! Recording what crosses a device, by tcpdump into a file.

use crate::pcap::{self, Seen};
use crate::{Error, Place, Proc, Result, process};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A recording in progress.
#[derive(Debug)]
pub struct Capture {
    process: Proc,
    file: PathBuf,
}

impl Capture {
    /// Starts recording whole packets on a device; returns when the recording has begun.
    ///
    /// # Errors
    /// If tcpdump cannot be started or does not know the device.
    pub fn start(place: &Place, device: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = place.scratch.join(format!("capture-{}.pcap", NEXT.fetch_add(1, Ordering::Relaxed)));
        let path = file.to_string_lossy().into_owned();
        // Not promiscuous: of a bridge only what it routes is wanted. 64 MiB of buffer: dropped packets weaken a proof.
        let line = ["tcpdump", "-i", device, "-p", "-n", "-U", "-s", "0", "-B", "65536", "-Z", "root", "-w", &path];
        let mut process = place.spawn(&line)?;
        let begun = process::until(Duration::from_secs(10), || {
            process.stderr().contains("listening on") || !process.is_running()
        });
        if begun.is_err() || !process.is_running() {
            return Err(format!("tcpdump on {device}: {}", process.stderr()).into());
        }
        Ok(Self { process, file })
    }

    /// Ends the recording and reads it, looking for `markers` in every packet.
    ///
    /// # Errors
    /// If tcpdump does not end or the file cannot be read.
    pub fn finish(mut self, markers: &[&[u8]]) -> Result<Seen> {
        // The kernel hands packets over in blocks, the last one after a second at the latest; a signal before would lose it.
        std::thread::sleep(Duration::from_millis(1200));
        self.process.signal(libc::SIGINT)?;
        self.process.wait_status(Duration::from_secs(20))?;
        let mut seen = pcap::scan(&self.file, markers)?;
        seen.dropped = dropped(&self.process.stderr())?;
        let _ = std::fs::remove_file(&self.file);
        Ok(seen)
    }
}

/// What tcpdump says about packets that the kernel could not keep for it.
fn dropped(summary: &str) -> Result<u64> {
    summary
        .lines()
        .find_map(|line| line.strip_suffix(" dropped by kernel")?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| Error(format!("tcpdump gave no summary: {summary}")))
}
