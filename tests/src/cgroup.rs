//! cgroup v2 folders: every process of a topology lives in one, which is also how all of them are ended.

use crate::{Error, Result, context};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The mount point of cgroup v2 on this machine.
///
/// # Errors
/// If there is none.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(context("/proc/self/mounts"))?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(place))
        })
        .next()
        .ok_or_else(|| Error::from("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup"))
}

/// Creates a folder and those above it.
///
/// # Errors
/// The file system's error with the path.
pub fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(context(path.display()))
}

/// Kills every process in the folder and below, and removes the folders.
///
/// # Errors
/// If a folder still holds processes after five seconds.
pub fn destroy(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1").map_err(context(format!("{}/cgroup.kill", path.display())))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            // A killed process stays in the folder until the kernel has taken it apart.
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(format!("removing {}: {error}", path.display()).into()),
        }
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// The folders directly below the mount whose names begin with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<PathBuf> {
    let Ok(root) = root() else { return Vec::new() };
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path()).collect()
}

/// The processes in one folder, without those below it.
pub fn processes(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// User and system time of the folder and everything below it.
///
/// # Errors
/// If `cpu.stat` cannot be read.
pub fn cpu_time(path: &Path) -> Result<Duration> {
    let file = path.join("cpu.stat");
    let text = fs::read_to_string(&file).map_err(context(file.display()))?;
    let micros = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
        .ok_or_else(|| Error(format!("{} has no usage_usec", file.display())))?;
    Ok(Duration::from_micros(micros))
}
