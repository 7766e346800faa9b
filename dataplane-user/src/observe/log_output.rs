//! Where the access log goes: a file that may be rotated or full, or standard output.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::counters::Counters;

/// Bytes that are gathered before they are written.
const GATHER: usize = 64 << 10;
/// How often the file is looked for at its path.
const LOOK: Duration = Duration::from_secs(1);

/// Gathers lines, and counts as dropped those that could not be written.
pub(super) struct Output {
    path: Option<PathBuf>,
    target: Box<dyn Write + Send>,
    /// Device and inode of the file that is written to.
    file: Option<(u64, u64)>,
    gathered: Vec<u8>,
    lines: u64,
    looked: Instant,
    failing: bool,
}

impl Output {
    /// The end of the file at `path`, or standard output.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let (target, file): (Box<dyn Write + Send>, _) = match path {
            Some(path) => {
                let (file, id) = append(path).map_err(|error| {
                    io::Error::new(error.kind(), format!("the access log {}: {error}", path.display()))
                })?;
                (Box::new(file), Some(id))
            }
            None => (Box::new(io::stdout()), None),
        };
        let (path, gathered) = (path.map(Path::to_owned), Vec::with_capacity(GATHER));
        Ok(Self { path, target, file, gathered, lines: 0, looked: Instant::now(), failing: false })
    }

    /// Takes one line.
    pub(super) fn line(&mut self, line: &[u8], counters: &Counters) {
        if self.gathered.len() + line.len() > GATHER {
            self.flush(counters);
        }
        self.gathered.extend_from_slice(line);
        self.lines += 1;
    }

    /// Writes what was gathered.
    pub(super) fn flush(&mut self, counters: &Counters) {
        self.follow();
        if self.gathered.is_empty() {
            return;
        }
        match self.target.write_all(&self.gathered).and_then(|()| self.target.flush()) {
            Ok(()) if std::mem::take(&mut self.failing) => info!("the access log is written again"),
            Ok(()) => {}
            Err(error) => {
                // Some of them may have been written in part; none can be relied on.
                Counters::add_many(&counters.log_dropped, self.lines);
                if !std::mem::replace(&mut self.failing, true) {
                    let place = self.path.as_deref().unwrap_or(Path::new("standard output")).display();
                    warn!("the access log cannot be written to {place}, its lines are dropped and counted: {error}");
                }
            }
        }
        self.gathered.clear();
        self.lines = 0;
    }

    /// Opens the file anew if another one, or none, is at its path: it was rotated.
    fn follow(&mut self) {
        let Some(path) = &self.path else { return };
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let found = path.metadata().ok().map(|found| (found.dev(), found.ino()));
        if found == self.file {
            return;
        }
        // Until it can be opened the old one is written to.
        if let Ok((file, id)) = append(path) {
            self.target = Box::new(file);
            self.file = Some(id);
        }
    }
}

fn append(path: &Path) -> io::Result<(File, (u64, u64))> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let metadata = file.metadata()?;
    Ok((file, (metadata.dev(), metadata.ino())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn a_rotated_file_is_followed_and_lines_that_cannot_be_written_are_counted() {
        let folder = std::env::temp_dir().join(format!("causeway-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, aside) = (folder.join("log"), folder.join("log.1"));
        let counters = Counters::default();
        let mut output = Output::open(Some(&path)).unwrap();
        output.line(b"one\n", &counters);
        output.flush(&counters);
        std::fs::rename(&path, &aside).unwrap();
        output.looked -= LOOK;
        output.line(b"two\n", &counters);
        output.flush(&counters);
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), "one\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(counters.log_dropped.load(Relaxed), 0);
        output.target = Box::new(OpenOptions::new().write(true).open("/dev/full").unwrap());
        output.line(b"three\n", &counters);
        output.line(b"four\n", &counters);
        output.flush(&counters);
        assert_eq!(counters.log_dropped.load(Relaxed), 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
