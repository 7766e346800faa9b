//! A running `causeway node`, and asking it through its admin socket.

use crate::{Error, Place, Proc, Result, cgroup, context, process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// How a daemon is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The name under which it pins what must survive it.
    pub instance: String,
    /// Its model file.
    pub model: PathBuf,
    /// The cgroup folder of its node.
    pub cgroup_root: PathBuf,
    /// The cgroup folder of its pods.
    pub pods_cgroup: PathBuf,
    /// Where its admin socket is.
    pub run_dir: PathBuf,
    /// The number of workers; without it the daemon chooses.
    pub workers: Option<usize>,
    /// Variables beside those of this process.
    pub environment: Vec<(String, String)>,
}

/// A daemon; dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    process: Proc,
    place: Place,
    settings: Settings,
    log: PathBuf,
}

impl Daemon {
    /// Starts it in the namespace and cgroup of its node.
    ///
    /// # Errors
    /// If the program is not built or cannot be started.
    pub fn start(place: &Place, settings: Settings) -> Result<Self> {
        process::own_program("causeway")?;
        std::fs::create_dir_all(&settings.run_dir).map_err(context(settings.run_dir.display()))?;
        let log = place.scratch.join(format!("{}.log", settings.instance));
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut line = vec![
            "causeway".to_owned(),
            "node".to_owned(),
            "--model".to_owned(),
            text(&settings.model),
            "--instance".to_owned(),
            settings.instance.clone(),
            "--cgroup-root".to_owned(),
            text(&settings.cgroup_root),
            "--pods-cgroup".to_owned(),
            text(&settings.pods_cgroup),
            "--run-dir".to_owned(),
            text(&settings.run_dir),
            "--log-file".to_owned(),
            text(&log),
        ];
        if let Some(workers) = settings.workers {
            line.extend(["--workers".to_owned(), workers.to_string()]);
        }
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut command = place.command(&line)?;
        command.envs(settings.environment.iter().cloned());
        let process = place.spawn_command(command, Stdio::null())?;
        Ok(Self { process, place: place.clone(), settings, log })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The name of its state in the kernel.
    pub fn instance(&self) -> &str {
        &self.settings.instance
    }

    /// The file it logs to.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.settings.run_dir.join(format!("{}.sock", self.settings.instance))
    }

    /// Asks for something by name and returns the answer.
    ///
    /// # Errors
    /// If it does not answer with one line of JSON.
    pub fn get(&self, what: &str) -> Result<Value> {
        let path = self.socket();
        let shown = || path.display().to_string();
        let stream = UnixStream::connect(&path).map_err(context(shown()))?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(context(shown()))?;
        let mut writer = &stream;
        writeln!(writer, "{}", serde_json::json!({ "get": what })).map_err(context(shown()))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).map_err(context(shown()))?;
        serde_json::from_str(&line).map_err(context(format!("answer of {}: {line:?}", path.display())))
    }

    /// Its status.
    ///
    /// # Errors
    /// As [`Daemon::get`].
    pub fn status(&self) -> Result<Value> {
        self.get("status")
    }

    /// One of its counters; 0 for one that it does not know.
    ///
    /// # Errors
    /// As [`Daemon::get`].
    pub fn counter(&self, name: &str) -> Result<u64> {
        let status = self.status()?;
        Ok(status.pointer(&format!("/counters/{name}")).and_then(Value::as_u64).unwrap_or(0))
    }

    /// Waits until it is ready and has enrolled these workloads.
    ///
    /// # Errors
    /// After `limit`, or when it has ended; the text has the end of its log.
    pub fn wait_ready(&mut self, workloads: &[String], limit: Duration) -> Result<()> {
        let mut last = String::new();
        let ready = process::until(limit, || {
            if !self.process.is_running() {
                return true;
            }
            match self.status() {
                Ok(status) => {
                    last = status.to_string();
                    status.get("ready").and_then(Value::as_bool) == Some(true)
                        && workloads.iter().all(|uid| state_of(&status, uid) == Some("Enrolled"))
                }
                Err(error) => {
                    last = error.to_string();
                    false
                }
            }
        });
        if ready.is_ok() && self.process.is_running() {
            return Ok(());
        }
        let ended = if self.process.is_running() { "is not ready" } else { "has ended" };
        Err(Error(format!("{} {ended}; last answer: {last}\n{}", self.settings.instance, self.log_tail(40))))
    }

    /// Resident memory of the daemon and its helper together, in KiB.
    pub fn rss_kib(&self) -> u64 {
        cgroup::processes(&self.place.cgroup).into_iter().map(rss_kib).sum()
    }

    /// Resident memory of the daemon process alone, in KiB.
    pub fn own_rss_kib(&self) -> u64 {
        rss_kib(self.pid())
    }

    /// CPU time of everything in the node's system cgroup so far.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn cpu_time(&self) -> Result<Duration> {
        cgroup::cpu_time(&self.place.cgroup)
    }

    /// Everything it has logged, access log lines among it.
    pub fn log(&self) -> String {
        let file = std::fs::read(&self.log).unwrap_or_default();
        format!("{}{}", String::from_utf8_lossy(&file), self.process.stderr())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// Waits until its log contains `text`.
    ///
    /// # Errors
    /// After ten seconds, with the end of the log.
    pub fn wait_for_log(&self, text: &str) -> Result<()> {
        process::until(Duration::from_secs(10), || self.log().contains(text))
            .map_err(|_| Error(format!("the log never says {text:?}:\n{}", self.log_tail(40))))
    }

    /// Waits for a line of the access log that has all of these texts in it, and returns the last such line.
    ///
    /// # Errors
    /// After ten seconds, with the end of the log.
    pub fn wait_for_line(&self, texts: &[&str]) -> Result<String> {
        let mut found = None;
        let _ = process::until(Duration::from_secs(10), || {
            found = self.log().lines().rfind(|line| texts.iter().all(|text| line.contains(text))).map(str::to_owned);
            found.is_some()
        });
        found.ok_or_else(|| Error(format!("no line of the log has {texts:?}:\n{}", self.log_tail(40))))
    }

    /// Sends a signal to the daemon process.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        self.process.signal(signal)
    }

    /// SIGKILL to the daemon process only, and waits until it and its helper are gone.
    ///
    /// # Errors
    /// If the helper outlives it.
    pub fn kill(&mut self) -> Result<()> {
        // An error means that it has already ended.
        let _ = self.process.signal(libc::SIGKILL);
        self.process.wait_status(Duration::from_secs(5))?;
        let folder = self.place.cgroup.clone();
        process::until(Duration::from_secs(5), || cgroup::processes(&folder).is_empty())
            .map_err(|_| Error(format!("processes are left in {}", folder.display())))
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// If it takes longer than its drain time, or ends with a failure.
    pub fn terminate(&mut self) -> Result<()> {
        self.process.signal(libc::SIGTERM)?;
        let status = self.process.wait_status(Duration::from_secs(40))?;
        if status.success() { Ok(()) } else { Err(format!("after SIGTERM: {status}\n{}", self.log_tail(20)).into()) }
    }

    /// Lets it run on after this handle is gone.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

/// The state a status answer gives for a workload.
pub fn state_of<'a>(status: &'a Value, uid: &str) -> Option<&'a str> {
    let pods = status.get("pods")?.as_array()?;
    let pod = pods.iter().find(|pod| pod.get("uid").and_then(Value::as_str) == Some(uid))?;
    pod.get("state")?.as_str()
}

fn rss_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// The value of `key=` in a line of the access log.
pub fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!("{key}="))?;
    rest.split([' ', '\t']).next()
}
