//! A node's cgroups: one folder in every hierarchy of this machine, which is also how everything in a node is ended.

use super::layout::{self, Node};
use crate::{Result, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel may take to take killed processes apart.
const PATIENCE: Duration = Duration::from_secs(20);

/// One hierarchy of version 1 as it is mounted.
pub struct Hierarchy {
    /// Where.
    pub path: PathBuf,
    /// With which controllers, as `mount -o` takes them.
    pub controllers: String,
}

/// Where cgroup version 2 is mounted.
///
/// # Errors
/// If it is not.
pub fn unified() -> Result<PathBuf> {
    let found = mounts().into_iter().find(|(_, kind, _)| kind == "cgroup2").map(|(path, _, _)| path);
    found.ok_or_else(|| "no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup".to_owned())
}

/// The hierarchies of version 1; none on a machine that has version 2 alone.
pub fn hierarchies() -> Vec<Hierarchy> {
    let old = mounts().into_iter().filter(|(_, kind, _)| kind == "cgroup");
    old.map(|(path, _, options)| Hierarchy { path, controllers: controllers(&options) }).collect()
}

/// The part of the mount options that names controllers.
fn controllers(options: &str) -> String {
    let general = ["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr", "clone_children"];
    let kept: Vec<&str> = options
        .split(',')
        .filter(|option| !general.contains(option) && !option.starts_with("release_agent="))
        .collect();
    // A named hierarchy has no controller, which has to be said when it is mounted again.
    if kept.iter().any(|option| option.starts_with("name=")) {
        return format!("none,{}", kept.join(","));
    }
    kept.join(",")
}

fn mounts() -> Vec<(PathBuf, String, String)> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let row = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        Some((PathBuf::from(fields.next()?), fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

/// Creates the folders of a node.
///
/// # Errors
/// The file system's.
pub fn create(node: Node) -> Result<()> {
    let make =
        |path: &Path| fs::create_dir_all(path).map_err(|error| format!("cannot create {}: {error}", path.display()));
    make(&unified()?.join(node.unit()).join("system").join("init"))?;
    for hierarchy in hierarchies() {
        let folder = hierarchy.path.join(node.unit());
        make(&folder)?;
        // Nothing can join a folder of cpuset before it has processors and memory.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(hierarchy.path.join(file)) {
                let path = folder.join(file);
                fs::write(&path, all).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// The files into which a process writes its id to belong to a daemon of a node.
///
/// # Errors
/// If the daemon's folder cannot be made.
pub fn joins(node: Node, daemon: &str) -> Result<Vec<PathBuf>> {
    let own = of(node, daemon)?;
    fs::create_dir_all(&own).map_err(|error| format!("cannot create {}: {error}", own.display()))?;
    let old = hierarchies().into_iter().map(|hierarchy| hierarchy.path.join(node.unit()));
    Ok(std::iter::once(own).chain(old).map(|folder| folder.join("cgroup.procs")).collect())
}

/// The folder of a daemon.
///
/// # Errors
/// Without cgroup version 2.
pub fn of(node: Node, daemon: &str) -> Result<PathBuf> {
    Ok(unified()?.join(node.unit()).join("system").join(daemon))
}

/// Whether processes of a daemon live.
pub fn is_alive(node: Node, daemon: &str) -> bool {
    let events = of(node, daemon).map(|folder| fs::read_to_string(folder.join("cgroup.events")).unwrap_or_default());
    events.is_ok_and(|text| text.contains("populated 1"))
}

/// The processes in a folder, without those below it.
pub fn processes(folder: &Path) -> Vec<u32> {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Every folder of ours at the top of any hierarchy.
pub fn ours() -> Vec<PathBuf> {
    let prefix = format!("{}-", layout::tag());
    let roots = unified().into_iter().chain(hierarchies().into_iter().map(|hierarchy| hierarchy.path));
    let entries = roots.flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten());
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|entry| entry.path()).collect()
}

/// Kills everything in our folders and removes them.
///
/// # Errors
/// The folders that are still there after a while, with the processes in them.
pub fn destroy_all() -> Result<()> {
    let folders = ours();
    for folder in &folders {
        // The file is there in version 2 alone, and everything of ours is in both.
        let _ = fs::write(folder.join("cgroup.kill"), "1");
    }
    let end = Instant::now() + PATIENCE;
    let mut left = folders;
    loop {
        left.retain(|folder| remove(folder).is_err());
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let names: Vec<String> = left.iter().map(|folder| folder.display().to_string()).collect();
    let who = sh::output("sh", &["-c", &format!("cat $(find {} -name cgroup.procs)", names.join(" "))]);
    let who = who.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    Err(format!("cgroups cannot be removed: {} (processes: {who})", names.join(", ")))
}

fn remove(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::controllers;

    #[test]
    fn mount_options_are_read_as_controllers() {
        for (options, expected) in [
            ("rw,relatime,cpu", "cpu"),
            ("rw,nosuid,nodev,noexec,relatime,cpu,cpuacct", "cpu,cpuacct"),
            ("rw,nosuid,nodev,noexec,relatime,xattr,name=systemd", "none,name=systemd"),
        ] {
            assert_eq!(controllers(options), expected);
        }
    }
}
