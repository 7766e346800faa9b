//! Named network namespaces, as `ip netns` keeps them.

use crate::{Result, context, sys};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where named namespaces are mounted.
pub const FOLDER: &str = "/run/netns";

/// The path of a named namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Creates a namespace and brings its loopback up.
///
/// # Errors
/// What `ip` said.
pub fn create(name: &str) -> Result<()> {
    ip(&["netns", "add", name])?;
    batch(Some(name), "link set lo up")
}

/// Deletes a namespace; with it go its interfaces, routes and rules.
///
/// # Errors
/// What `ip` said.
pub fn delete(name: &str) -> Result<()> {
    ip(&["netns", "del", name])
}

/// The names of all namespaces that begin with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

/// Runs `ip` with these arguments.
///
/// # Errors
/// What `ip` said.
pub fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(context("cannot start ip (package iproute2)"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {}: {}", arguments.join(" "), said.trim()).into())
}

/// Runs several `ip` commands, one per line, inside a namespace (or outside without one).
///
/// # Errors
/// What `ip` said about the first line that failed.
pub fn batch(namespace: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(context("cannot start ip (package iproute2)"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(lines.as_bytes()).map_err(context("writing to ip -batch"))?;
    }
    let output = child.wait_with_output().map_err(context("ip -batch"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let place = namespace.unwrap_or("the machine's namespace");
    Err(format!("ip -batch in {place}: {}\nthe lines were:\n{lines}", said.trim()).into())
}

/// Runs a closure on a thread inside a namespace. The thread stays in the cgroup of this process, so redirection of a
/// pod does not see it: use [`crate::Place::run`] for that.
///
/// # Errors
/// If the namespace does not exist or the thread panicked.
pub fn within<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let path = path(name);
    let file = File::open(&path).map_err(context(path.display()))?;
    let thread = std::thread::spawn(move || sys::setns_net(&file).map(|()| work()));
    match thread.join() {
        Ok(result) => result.map_err(context(format!("entering {name}"))),
        Err(_) => Err(format!("the thread inside {name} panicked").into()),
    }
}

/// Writes a sysctl of a namespace; `key` is the path below `/proc/sys`, for example `net/ipv4/ip_forward`.
///
/// # Errors
/// If the namespace or the key does not exist.
pub fn sysctl(name: &str, key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(key);
    let value = value.to_owned();
    let shown = format!("{} in {name}", path.display());
    within(name, move || fs::write(path, value))?.map_err(context(shown))
}

/// Reads a sysctl of a namespace.
///
/// # Errors
/// If the namespace or the key does not exist.
pub fn read_sysctl(name: &str, key: &str) -> Result<String> {
    let path = Path::new("/proc/sys").join(key);
    let shown = format!("{} in {name}", path.display());
    let text = within(name, move || fs::read_to_string(path))?.map_err(context(shown))?;
    Ok(text.trim().to_owned())
}
