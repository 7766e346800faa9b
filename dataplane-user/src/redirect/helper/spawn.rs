//! Starts the helper process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use super::control::Control;
use super::wire;
use crate::redirect::sockets::SocketChannel;
use crate::redirect::system::check;

/// How the helper is started. Start it before any other thread exists, so that it inherits nothing but its channel.
#[derive(Debug)]
pub struct Spawn {
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
    workers: usize,
}

impl Spawn {
    /// This executable again, as `netns-helper --fd N`, with channels for `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self { program: None, arguments: vec!["netns-helper".into(), "--fd".into()], workers }
    }

    /// Another executable and other arguments; the number of the descriptor is appended as the last one.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>, arguments: impl IntoIterator<Item = OsString>) -> Self {
        self.program = Some(program.into());
        self.arguments = arguments.into_iter().collect();
        self
    }

    /// Starts the process and hands it the workers' channels.
    ///
    /// # Errors
    /// If a channel cannot be made or the process not be started.
    pub fn start(self) -> io::Result<Helper> {
        let program = match self.program {
            Some(program) => program,
            None => std::env::current_exe()?,
        };
        let (ours, theirs) = wire::pair()?;
        let inherited = theirs.as_raw_fd();
        let mut command = Command::new(program);
        command.args(self.arguments).arg(inherited.to_string());
        let keep_open = move || {
            // SAFETY: no pointer is passed. Only the child's copy loses its close-on-exec flag.
            check(unsafe { libc::fcntl(inherited, libc::F_SETFD, 0) }).map(drop)
        };
        // SAFETY: the closure only makes one system call, which is allowed between fork and exec.
        unsafe { command.pre_exec(keep_open) };
        let child = command.spawn()?;
        drop(theirs);
        let control = Control::new(ours);
        let mut channels = Vec::with_capacity(self.workers);
        for _ in 0..self.workers {
            let (ours, theirs) = wire::pair()?;
            control.add_channel(theirs.as_fd())?;
            channels.push(SocketChannel(ours));
        }
        Ok(Helper { control, channels, child })
    }
}

/// A running helper process. Dropping it closes the control channel, which ends the process.
#[derive(Debug)]
pub struct Helper {
    pub(in crate::redirect) control: Control,
    channels: Vec<SocketChannel>,
    child: Child,
}

impl Helper {
    /// The workers' channels, in worker order; empty on a second call.
    pub fn take_channels(&mut self) -> Vec<SocketChannel> {
        std::mem::take(&mut self.channels)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(in crate::redirect) fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.child.try_wait()
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.control.close();
        // The helper ends as soon as it sees the end of the channel; workers' channels do not hold it.
        let _ = self.child.wait();
    }
}
