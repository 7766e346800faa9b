//! Taking a topology away again, and proving that nothing is left.

use super::Topology;
use crate::{Result, cgroup, netns, process, sys};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the names of everything on the machine that belongs to this kit begin with; the process number follows.
pub(super) const PREFIX: &str = "cw";

/// Where daemons pin what must survive them.
const PINS: &str = "/sys/fs/bpf/causeway";

impl Topology {
    /// Ends everything and says what could not be removed.
    ///
    /// # Errors
    /// Everything that a daemon left behind in the kernel although it was asked to remove it, or that resisted removal.
    pub fn close(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let mut left = Vec::new();
        for node in &mut self.nodes {
            if let Some(mut daemon) = node.daemon.take() {
                let _ = daemon.kill();
            }
        }
        // Programs in pods end before redirection is removed, as they do on a node that is drained.
        for node in &self.nodes {
            left.extend(cgroup::destroy(&node.cgroup.join("kubepods")).err().map(|error| error.to_string()));
        }
        for node in &self.nodes {
            let instance = format!("{}{}", self.prefix, node.name);
            if pins(&instance).exists() {
                left.extend(uninstall(&instance));
            }
        }
        for pod in self.pods.iter().filter(|pod| self.enrolled.contains(&pod.data().uid)) {
            left.extend(traces_in(&pod.netns));
        }
        left.extend(remove_by_prefix(&self.prefix));
        if left.is_empty() { Ok(()) } else { Err(format!("left behind: {}", left.join("; ")).into()) }
    }

    /// Leaves everything running and forgets about it; [`stale_cleanup`] of a later run removes it.
    pub fn keep(mut self) {
        self.closed = true;
        for node in &mut self.nodes {
            if let Some(daemon) = node.daemon.take() {
                daemon.keep();
            }
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        if std::thread::panicking() {
            eprintln!("logs of the daemons:\n{}", self.log_tails());
        }
        if let Err(error) = self.take_down() {
            // Failing the test twice would abort the whole suite.
            if std::thread::panicking() { eprintln!("{error}") } else { panic!("{error}") }
        }
    }
}

/// Removes what runs that no longer exist have left: after SIGKILL or a power cut no guard runs.
pub fn stale_cleanup() {
    let own = std::process::id();
    let mut prefixes: Vec<String> = Vec::new();
    let names = netns::with_prefix(PREFIX)
        .into_iter()
        .chain(cgroup::with_prefix(PREFIX).into_iter().filter_map(|path| file_name(&path)))
        .chain(entries(&std::env::temp_dir()))
        .chain(entries(Path::new(PINS)));
    for name in names {
        let Some((pid, prefix)) = owner(&name) else {
            continue;
        };
        if pid != own && !sys::is_alive(pid) && !prefixes.contains(&prefix) {
            prefixes.push(prefix);
        }
    }
    for prefix in prefixes {
        // Daemons that were left running end first: what they hold cannot be uninstalled.
        for folder in cgroup::with_prefix(&prefix) {
            let _ = cgroup::destroy(&folder);
        }
        for instance in entries(Path::new(PINS)).into_iter().filter(|instance| instance.starts_with(&prefix)) {
            let _ = uninstall(&instance);
        }
        for problem in remove_by_prefix(&prefix) {
            eprintln!("cleaning up after an earlier run: {problem}");
        }
    }
}

/// Splits `cw<pid>x<n>-…` into the process number and `cw<pid>x<n>-`.
fn owner(name: &str) -> Option<(u32, String)> {
    let (head, _) = name.split_once('-')?;
    let (pid, number) = head.strip_prefix(PREFIX)?.split_once('x')?;
    number.parse::<u32>().ok()?;
    Some((pid.parse().ok()?, format!("{head}-")))
}

/// Cgroups with their processes, namespaces, pins and files of one topology.
fn remove_by_prefix(prefix: &str) -> Vec<String> {
    let mut left = Vec::new();
    for folder in cgroup::with_prefix(prefix) {
        left.extend(cgroup::destroy(&folder).err().map(|error| error.to_string()));
    }
    for namespace in netns::with_prefix(prefix) {
        left.extend(netns::delete(&namespace).err().map(|error| error.to_string()));
    }
    for name in entries(Path::new(PINS)).into_iter().filter(|name| name.starts_with(prefix)) {
        let path = Path::new(PINS).join(&name);
        left.push(format!("pins in {}", path.display()));
        let _ = std::fs::remove_dir_all(&path);
    }
    for name in entries(&std::env::temp_dir()).into_iter().filter(|name| name.starts_with(prefix)) {
        let path = std::env::temp_dir().join(name);
        if let Err(error) = std::fs::remove_dir_all(&path) {
            left.push(format!("{}: {error}", path.display()));
        }
    }
    left
}

/// `causeway uninstall`, and what it did not manage.
fn uninstall(instance: &str) -> Option<String> {
    let program = match process::own_program("causeway") {
        Ok(program) => program,
        Err(error) => return Some(error.to_string()),
    };
    let done = Command::new(program).args(["uninstall", "--instance", instance]).stdin(Stdio::null()).output();
    match done {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "causeway uninstall --instance {instance}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("causeway uninstall: {error}")),
    }
}

/// Rules, routes and settings of redirection that are still in a pod's namespace.
fn traces_in(namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let output = Command::new("ip").args(["-n", namespace, family, "rule", "show"]).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let marked = text.lines().filter(|line| line.contains("fwmark"));
        found.extend(marked.map(|line| format!("rule in {namespace}: {}", line.trim())));
    }
    for name in ["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"] {
        if netns::read_sysctl(namespace, name).is_ok_and(|value| value != "0") {
            found.push(format!("sysctl {name} in {namespace}"));
        }
    }
    found
}

fn pins(instance: &str) -> PathBuf {
    Path::new(PINS).join(instance)
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_names_of_the_kit_have_an_owner() {
        assert_eq!(owner("cw12x0-c1n1"), Some((12, "cw12x0-".to_owned())));
        for name in ["cw12-c1n1", "cwx0-a", "cow12x0-a", "cw12xa-b", "cw"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
