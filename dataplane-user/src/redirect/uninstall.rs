//! Removal of everything an instance left in the kernel, without the daemon.

use std::os::fd::AsFd;
use std::path::Path;

use super::error::{EnrolError, LoadError};
use super::helper::{entry, undo};
use super::maps::pinned_records;
use super::netns;
use super::pins::Pins;
use super::record;
use super::system::in_netns;

/// Removes every pin, rule, route and sysctl change of `instance`, and what it set up for node ports. Connections are passed from then on. Returns what could not
/// be undone inside a pod's namespace; everything else is gone then too.
///
/// # Errors
/// [`LoadError::Config`] while a daemon of that instance is running; [`LoadError::Io`] if a pin cannot be removed.
pub fn uninstall(bpffs: &Path, instance: &str, proc: &Path) -> Result<Vec<EnrolError>, LoadError> {
    let Some(pins) = Pins::existing(bpffs, instance)? else {
        return Ok(Vec::new());
    };
    // Records of another layout version cannot be read; their pins are removed all the same.
    let records = if pins.map("RECORDS").exists() { pinned_records(&pins.map("RECORDS"))? } else { Vec::new() };
    pins.remove()?;
    let mut failures = Vec::new();
    if let Err(error) = entry::close(instance) {
        let (uid, action) = (String::from("node ports"), error.action);
        failures.push(EnrolError::Step { uid, action, source: error.source });
    }
    for (_cookie, kept) in records {
        let Some(netns) = netns::find(proc, &record::path(&kept), kept.inode) else {
            continue;
        };
        let undone = in_netns(netns.as_fd(), || Ok(undo(record::saved(&kept), proc)));
        let (action, source) = match undone {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => (error.action, error.source),
            Err(error) => (String::from("entering its network namespace"), error),
        };
        failures.push(EnrolError::Step { uid: record::uid(&kept), action, source });
    }
    Ok(failures)
}
