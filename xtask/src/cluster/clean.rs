//! The end of clusters. What there is to remove is read from the kernel, so that it works whatever happened before.

use super::{cgroups, layout};
use crate::{Result, sh};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long what was killed may be seen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends every process of the clusters and removes everything that was made for them.
///
/// # Errors
/// What is left.
pub fn down(keep_logs: bool) -> Result<()> {
    let killed = cgroups::destroy_all();
    for name in namespaces() {
        // With its last process gone, a namespace takes its links with it.
        let _ = sh::output("ip", &["netns", "delete", &name]);
    }
    let state = layout::state();
    if keep_logs {
        forget_all_but_logs(&state);
    } else if let Err(error) = fs::remove_dir_all(&state)
        && state.exists()
    {
        return Err(format!("cannot remove {}: {error}", state.display()));
    }
    killed?;
    // A killed process is seen for a moment after its folder has gone.
    let end = Instant::now() + PATIENCE;
    let mut left = leftovers();
    while !left.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        left = leftovers();
    }
    if left.is_empty() { Ok(()) } else { Err(format!("left behind:\n  {}", left.join("\n  "))) }
}

/// Everything of ours that the kernel knows: processes, cgroups, namespaces, links, mounts.
pub fn leftovers() -> Vec<String> {
    let prefix = format!("{}-", layout::tag());
    let mut found: Vec<String> = cgroups::ours().iter().map(|folder| format!("cgroup {}", folder.display())).collect();
    found.extend(namespaces().iter().map(|name| format!("network namespace {name}")));
    let links = sh::output("ip", &["-o", "link"]).unwrap_or_default();
    found.extend(links.lines().filter(|line| line.contains(&prefix)).map(|line| format!("link {line}")));
    let state = layout::state().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = mounts.lines().filter(|line| line.contains(&prefix) || line.contains(&state));
    found.extend(ours.map(|line| format!("mount {line}")));
    found.extend(processes(&prefix, &state));
    found
}

/// Processes in a cgroup of ours or started from a file of ours; the kernel's own record of a cgroup outlives the folder.
fn processes(prefix: &str, state: &str) -> Vec<String> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = pids.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own);
    let ours = numbers.filter_map(|pid| {
        let read = |file: &str| fs::read(Path::new("/proc").join(&pid).join(file)).unwrap_or_default();
        let group = String::from_utf8_lossy(&read("cgroup")).contains(&format!("/{prefix}"));
        // One that waits for its parent to take notice of its end has nothing left of its own.
        if String::from_utf8_lossy(&read("status")).contains("\nState:\tZ") {
            return None;
        }
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        // Somebody who reads a log is no part of the cluster.
        let started = line.contains(state) && line.contains("nsenter");
        (group || started).then(|| format!("process {pid} {}", line.trim()))
    });
    ours.collect()
}

fn namespaces() -> Vec<String> {
    let prefix = format!("{}-", layout::tag());
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(&prefix)).collect()
}

fn forget_all_but_logs(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && path.file_name().is_some_and(|name| is_ours(&name.to_string_lossy())) {
            forget_all_but_logs(&path);
        } else if is_folder {
            let _ = fs::remove_dir_all(&path);
        } else if path.extension().is_none_or(|extension| extension != "log") {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Folders that hold logs at their top: of clusters and of nodes.
fn is_ours(name: &str) -> bool {
    name.starts_with("cluster") || layout::Node::parse(name).is_some()
}
