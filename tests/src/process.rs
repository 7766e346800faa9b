//! Running programs inside a namespace and a cgroup, with everything they print kept.

use crate::{Error, Result, context, netns, sys};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long [`Place::run`] waits before it gives up and kills the program.
pub const RUN_LIMIT: Duration = Duration::from_secs(120);

/// Where programs run: a network namespace and a cgroup folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The name of the network namespace.
    pub netns: String,
    /// The cgroup folder.
    pub cgroup: PathBuf,
    /// Where the output of programs goes.
    pub scratch: PathBuf,
}

/// A program that ended by itself.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// A running program; dropping it kills it.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Place {
    /// A command that will run here. Its output still has to be directed; [`Place::spawn`] does all of it.
    ///
    /// # Errors
    /// If the namespace or the cgroup does not exist.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let (program, rest) = arguments.split_first().ok_or("no program given")?;
        let mut command = Command::new(resolve(program));
        command.args(rest).stdin(Stdio::null());
        let namespace_path = netns::path(&self.netns);
        let namespace = File::open(&namespace_path).map_err(context(namespace_path.display()))?;
        let procs = self.cgroup.join("cgroup.procs");
        let cgroup = OpenOptions::new().write(true).open(&procs).map_err(context(procs.display()))?;
        sys::before_exec(&mut command, move || {
            sys::write_raw(cgroup.as_raw_fd(), b"0")?;
            sys::setns_net_raw(namespace.as_raw_fd())
        });
        // A group of its own: Ctrl-C at the terminal reaches only us, and we take everything down in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(command)
    }

    /// Starts a program here; its output goes to files, see [`Proc::stdout`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Proc> {
        self.spawn_command(self.command(arguments)?, Stdio::null())
    }

    /// As [`Place::spawn`], with a pipe to the program's standard input that closes with [`Proc::close_input`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_with_input(&self, arguments: &[&str]) -> Result<Proc> {
        self.spawn_command(self.command(arguments)?, Stdio::piped())
    }

    /// Starts a prepared command.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn_command(&self, mut command: Command, input: Stdio) -> Result<Proc> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = Path::new(command.get_program()).file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let stem = format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (stdout, stderr) = (self.scratch.join(format!("{stem}.out")), self.scratch.join(format!("{stem}.err")));
        let create = |path: &Path| File::create(path).map_err(context(path.display()));
        command.stdin(input).stdout(create(&stdout)?).stderr(create(&stderr)?);
        let child = command.spawn().map_err(context(format!("starting {name} in {}", self.netns)))?;
        Ok(Proc { child, name, stdout, stderr })
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// If it cannot be started, or runs longer than [`RUN_LIMIT`]. A failure exit is not an error here.
    pub fn run(&self, arguments: &[&str]) -> Result<Finished> {
        self.spawn(arguments)?.wait(RUN_LIMIT)
    }

    /// Runs a program that must succeed and returns what it printed, trimmed.
    ///
    /// # Errors
    /// As [`Place::run`], and if its exit code is not zero.
    pub fn run_ok(&self, arguments: &[&str]) -> Result<String> {
        let done = self.run(arguments)?;
        if done.status.success() {
            return Ok(done.stdout.trim().to_owned());
        }
        let line = arguments.join(" ");
        Err(format!("{line} in {}: {}\n{}{}", self.netns, done.status, done.stdout, done.stderr).into())
    }
}

impl Proc {
    /// The process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it has complained about so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Closes its standard input, which the programs of the kit take as the sign to finish.
    pub fn close_input(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Lets it run on after this handle is gone.
    pub fn keep(self) {
        std::mem::forget(self);
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::kill(self.pid(), signal).map_err(context(format!("signal {signal} to {}", self.name)))
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// If it takes longer than `limit` (it is killed then), or Ctrl-C was pressed.
    pub fn wait(mut self, limit: Duration) -> Result<Finished> {
        let status = self.wait_status(limit)?;
        Ok(Finished { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Waits for the end of the process and keeps the handle.
    ///
    /// # Errors
    /// As [`Proc::wait`].
    pub fn wait_status(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().map_err(context(&self.name))? {
                return Ok(status);
            }
            if sys::interrupted() {
                return Err("interrupted".into());
            }
            if Instant::now() >= deadline {
                let text = format!(
                    "{} still runs after {} s; it printed:\n{}{}",
                    self.name,
                    limit.as_secs(),
                    self.stdout(),
                    self.stderr()
                );
                return Err(Error(text));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Waits until its standard output contains `text` and returns the output.
    ///
    /// # Errors
    /// If it ends before, or `limit` passes.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let mut last = String::new();
        let found = until(limit, || {
            last = self.stdout();
            last.contains(text) || !self.is_running()
        });
        last = self.stdout();
        if found.is_ok() && last.contains(text) {
            return Ok(last);
        }
        Err(format!("{} never printed {text:?}; it printed:\n{last}{}", self.name, self.stderr()).into())
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        if self.is_running() {
            // Nothing to do about an error: it means that the process has just ended.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Asks every few milliseconds until the answer is yes.
///
/// # Errors
/// After `limit`, or if Ctrl-C was pressed.
pub fn until(limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ready() {
        if sys::interrupted() {
            return Err("interrupted".into());
        }
        if Instant::now() >= deadline {
            return Err(format!("not so within {} s", limit.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The path of one of our own programs, which cargo puts beside the running one or one folder above it.
///
/// # Errors
/// If it was not built.
pub fn own_program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().map_err(context("the path of the running program"))?;
    let found = here.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error(format!("{name} is not built: run `cargo xtask build`")))
}

/// Our own programs by their bare names, everything else by the search path.
fn resolve(program: &str) -> OsString {
    match program {
        "causeway" | "testkit-peer" => own_program(program).map_or_else(|_| program.into(), PathBuf::into_os_string),
        _ => program.into(),
    }
}

fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
