//! `--check-clean`: the machine looks after the demo as it looked before.

use super::report::Report;
use crate::{Result, cgroup, netns};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What the demo could leave behind, listed by the tools an operator would use. Other runs may be going on at the same
/// time, so only what carries the number of this process counts, and rules and pins that appear from nowhere.
#[derive(Debug)]
pub struct Inventory {
    rules: BTreeSet<String>,
}

impl Inventory {
    /// Looks around.
    pub fn take() -> Self {
        Self { rules: routing_rules() }
    }
}

/// Compares with the state before.
///
/// # Errors
/// Everything that is new.
pub fn check(before: &Inventory, report: &mut Report) -> Result<()> {
    report.step("check_clean", "Looking for anything left behind");
    let prefix = format!("cw{}x", std::process::id());
    let mut left: Vec<String> = Vec::new();
    left.extend(netns::with_prefix(&prefix).into_iter().map(|name| format!("namespace {name}")));
    left.extend(cgroup::with_prefix(&prefix).into_iter().map(|path| format!("cgroup {}", path.display())));
    left.extend(names_in("/sys/fs/bpf/causeway", &prefix).map(|name| format!("pin {name}")));
    left.extend(names_in(&std::env::temp_dir(), &prefix).map(|name| format!("file {name}")));
    left.extend(routing_rules().difference(&before.rules).map(|rule| format!("rule {rule}")));
    left.extend(processes(&prefix));
    report.fact("left", left.clone());
    if left.is_empty() {
        report.say("No namespace, cgroup, pin, rule, file or process of this run.");
        return Ok(());
    }
    Err(format!("left behind: {}", left.join("; ")).into())
}

fn names_in(folder: impl AsRef<Path>, prefix: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(move |name| name.starts_with(prefix))
}

/// The rules of the machine's own namespace: those of pods have gone with theirs.
fn routing_rules() -> BTreeSet<String> {
    let list = |family: &str| {
        let output = Command::new("ip").args([family, "rule", "show"]).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    [list("-4"), list("-6")].iter().flat_map(|text| text.lines()).map(str::to_owned).collect()
}

/// Processes whose command line or cgroup names this run; the daemon's instance name is in both.
fn processes(prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        // A dead process that its parent (init, by now) has not collected yet holds nothing.
        let status = String::from_utf8_lossy(&read("stat")).into_owned();
        if status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) {
            continue;
        }
        if command.contains(prefix) || groups.contains(&format!("/{prefix}")) {
            found.push(format!("process {pid} ({})", command.trim()));
        }
    }
    found
}
