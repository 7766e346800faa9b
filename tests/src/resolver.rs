//! Programs of a pod that look names up as those of a Kubernetes pod do.

use crate::process::Finished;
use crate::{Pod, Result, context};
use std::sync::atomic::{AtomicU32, Ordering};

/// Puts the file named first in the place of `/etc/resolv.conf`, for the rest of the line alone.
const WITH_FILE: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";

/// Runs a program in a pod whose name servers are these, with the search domains a kubelet writes.
///
/// # Errors
/// If it does not start or does not end.
pub fn run(pod: &Pod, servers: &[&str], arguments: &[&str]) -> Result<Finished> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let namespace = pod.data().name.split('/').next().unwrap_or("default");
    let mut text = format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let file = pod.place().scratch.join(format!("resolv-{}.conf", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::write(&file, text).map_err(context(file.display()))?;
    let file = file.to_string_lossy();
    let line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", WITH_FILE, &file];
    pod.run(&[&line[..], arguments].concat())
}

/// As [`run`], for a program that must succeed; returns what it printed, trimmed.
///
/// # Errors
/// Those of [`run`], or what the program complained about.
pub fn run_ok(pod: &Pod, servers: &[&str], arguments: &[&str]) -> Result<String> {
    let done = run(pod, servers, arguments)?;
    if done.status.success() {
        return Ok(done.stdout.trim().to_owned());
    }
    Err(format!("{}: {}: {}{}", arguments.join(" "), done.status, done.stdout, done.stderr).into())
}
