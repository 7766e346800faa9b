//! Real Kubernetes clusters, as `cargo xtask cluster` makes them. The suites of the tier share two of them; whoever started
//! the tier takes them down.

pub mod clients;
pub mod deployed;
pub mod linked;

use crate::{Error, Result, context, process};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// How long something in a cluster may take that involves starting a pod.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clusters that are up.
#[derive(Debug)]
pub struct Clusters {
    /// They are taken down at the end.
    of_its_own: bool,
}

impl Drop for Clusters {
    fn drop(&mut self) {
        if self.of_its_own
            && let Err(error) = cluster(&["down"]).and_then(output)
            && !std::thread::panicking()
        {
            panic!("the clusters cannot be taken down: {error}");
        }
    }
}

impl Clusters {
    /// Two clusters of two nodes each, made now if they are not there.
    ///
    /// # Errors
    /// Why they cannot be made.
    pub fn two() -> Result<Self> {
        output(cluster(&["up", "--clusters", "2", "--nodes", "2"])?)?;
        Ok(Self { of_its_own: false })
    }

    /// The clusters that are up, whatever their number; else two.
    ///
    /// # Errors
    /// Why they cannot be made.
    pub fn any() -> Result<Self> {
        if output(cluster(&["status"])?).is_ok() { Ok(Self { of_its_own: false }) } else { Self::two() }
    }

    /// One cluster of two nodes whose kube-proxy works in this mode, for one test: others are taken down before, and it after.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn with_proxy(mode: &str) -> Result<Self> {
        output(cluster(&["down"])?)?;
        output(cluster(&["up", "--clusters", "1", "--nodes", "2", "--proxy-mode", mode])?)?;
        Ok(Self { of_its_own: true })
    }

    /// Helm for a cluster.
    ///
    /// # Errors
    /// What it said.
    pub fn helm(&self, number: u8, words: &[&str]) -> Result<String> {
        let number = number.to_string();
        output(cluster(&[&["helm", number.as_str(), "--"], words].concat())?)
    }

    /// kubectl for a cluster, from 1 on.
    ///
    /// # Errors
    /// What it said.
    pub fn kubectl(&self, number: u8, words: &[&str]) -> Result<String> {
        let number = number.to_string();
        output(cluster(&[&["kubectl", number.as_str(), "--"], words].concat())?)
    }

    /// Creates what a YAML text says, or changes it.
    ///
    /// # Errors
    /// What the API server said.
    pub fn apply(&self, number: u8, yaml: &str) -> Result<()> {
        let number = number.to_string();
        let words = ["kubectl", number.as_str(), "--", "apply", "--server-side", "--force-conflicts", "-f", "-"];
        let mut command = cluster(&words)?;
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(context("kubectl"))?;
        let mut input = child.stdin.take().ok_or("kubectl has no input")?;
        input.write_all(yaml.as_bytes()).map_err(context("kubectl"))?;
        drop(input);
        let done = child.wait_with_output().map_err(context("kubectl"))?;
        if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned().into()) }
    }

    /// A program in the namespaces of a node such as `c1n2`, or outside of all as `wan`.
    ///
    /// # Errors
    /// What it said.
    pub fn exec(&self, place: &str, words: &[&str]) -> Result<String> {
        output(cluster(&[&["exec", place, "--"], words].concat())?)
    }

    /// As [`Clusters::exec`], without waiting for its end. Its output is lost.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, place: &str, words: &[&str]) -> Result<Child> {
        let mut command = cluster(&[&["exec", place, "--"], words].concat())?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(context("xtask"))
    }

    /// A line of shell of somebody with kubectl, helm, causeway and a context for each cluster, whatever becomes of it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn try_shell(&self, line: &str) -> Result<Output> {
        cluster(&["shell", "--", line])?.stdin(Stdio::null()).output().map_err(context("xtask"))
    }

    /// As [`Clusters::try_shell`], and what it printed; it must succeed.
    ///
    /// # Errors
    /// What it said.
    pub fn shell(&self, line: &str) -> Result<String> {
        output(cluster(&["shell", "--", line])?)
    }

    /// What names of these clusters begin with in the kernel.
    ///
    /// # Errors
    /// If xtask was not built.
    pub fn tag(&self) -> Result<String> {
        Ok(output(cluster(&["tag"])?)?.trim().to_owned())
    }

    /// Makes an image archive known to the nodes of a cluster.
    ///
    /// # Errors
    /// What the container runtime said.
    pub fn load(&self, number: u8, archive: &Path) -> Result<()> {
        let mut command = cluster(&["load", &number.to_string()])?;
        command.arg(archive);
        output(command).map(drop)
    }

    /// A program in a pod, given as `namespace/name`.
    ///
    /// # Errors
    /// What it said.
    pub fn in_pod(&self, number: u8, pod: &str, words: &[&str]) -> Result<String> {
        let (namespace, name) = pod.split_once('/').ok_or("a pod is namespace/name")?;
        self.kubectl(number, &[&["-n", namespace, "exec", name, "--"], words].concat())
    }

    /// Waits until all pods of a namespace are ready.
    ///
    /// # Errors
    /// Which are not, and what happened to them.
    pub fn wait_ready(&self, number: u8, namespace: &str) -> Result<()> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        let words = ["-n", namespace, "wait", "--for=condition=Ready", "pods", "--all", &limit];
        self.kubectl(number, &words).map(drop).map_err(|error| {
            let events = self.kubectl(number, &["-n", namespace, "get", "pods,events", "-o", "wide"]);
            Error(format!("{error}\n{}", events.unwrap_or_default()))
        })
    }

    /// A field of an object, by kubectl's JSONPath.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn field(&self, number: u8, namespace: &str, object: &str, path: &str) -> Result<String> {
        self.kubectl(number, &["-n", namespace, "get", object, "-o", &format!("jsonpath={path}")])
    }

    /// Deletes a namespace and waits until it is gone; one that is not there is no error.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn delete_namespace(&self, number: u8, namespace: &str) -> Result<()> {
        let limit = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(number, &["delete", "namespace", namespace, "--ignore-not-found", &limit]).map(drop)
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn until(&self, what: &str, holds: impl FnMut() -> bool) -> Result<()> {
        process::until(PATIENCE, holds).map_err(|error| Error(format!("{what}: {error}")))
    }
}

/// A command of `cargo xtask cluster`.
///
/// # Errors
/// If xtask was not built.
pub fn cluster(words: &[&str]) -> Result<Command> {
    xtask(&[&["cluster"], words].concat())
}

/// A command of `cargo xtask`.
///
/// # Errors
/// If xtask was not built.
pub fn xtask(words: &[&str]) -> Result<Command> {
    let program = match std::env::var_os("CAUSEWAY_XTASK") {
        Some(path) => PathBuf::from(path),
        None => {
            let here = std::env::current_exe().map_err(context("the path of the running program"))?;
            let found = here.ancestors().map(|folder| folder.join("xtask")).find(|path| path.is_file());
            found.ok_or("xtask is not built: cargo build --release --package xtask")?
        }
    };
    let mut command = Command::new(program);
    command.args(words);
    Ok(command)
}

/// Runs a command to its end.
///
/// # Errors
/// If it fails, with what it wrote.
pub fn output(mut command: Command) -> Result<String> {
    let done = command.stdin(Stdio::null()).output().map_err(context("xtask"))?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(text);
    }
    Err(format!("{command:?}: {}\n{text}{}", done.status, String::from_utf8_lossy(&done.stderr)).into())
}
