//! Notices a changed model file.

use std::fs::{self, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::ModelError;

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// Two writes within one tick of the kernel's clock carry the same time; a file this young is compared by content.
const YOUNG: Duration = Duration::from_secs(2);
/// A larger file is a mistake.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a model file.
///
/// # Errors
/// If it cannot be read, is no regular file, is too large or is not UTF-8.
pub fn read(path: &Path) -> Result<String, ModelError> {
    let unreadable = |reason: String| {
        ModelError::unreadable(path, &format!("cannot be read: {reason}"), "check the path and its permissions")
    };
    // Opening a pipe or a device must not wait for its other end.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| unreadable(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is no regular file".to_owned()));
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(unreadable(format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// Polls one file. Polling sees every way of replacing a file (rewrite, rename, symbolic links of a ConfigMap) on every
/// file system.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    stamp: Option<Stamp>,
    content: String,
    failing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    device: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            device: metadata.dev(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_young(&self) -> bool {
        let changed = Duration::from_secs(self.changed.0.max(0).unsigned_abs());
        SystemTime::UNIX_EPOCH
            .checked_add(changed)
            .and_then(|at| SystemTime::now().duration_since(at).ok())
            .is_none_or(|age| age < YOUNG)
    }
}

impl Watch {
    /// Watches a file whose present content is known.
    #[must_use]
    pub fn new(path: &Path, content: String) -> Self {
        Self { path: path.to_owned(), stamp: None, content, failing: false }
    }

    /// Looks once: the content if it differs from the last one reported or is readable again, or the error if the file has
    /// become unreadable (reported once). Blocks for as long as reading the file takes.
    pub fn poll(&mut self) -> Option<Result<String, ModelError>> {
        let stamp = fs::metadata(&self.path).ok().map(|m| Stamp::of(&m));
        if stamp.is_some() && stamp == self.stamp && stamp.as_ref().is_some_and(|s| !s.is_young()) {
            return None;
        }
        match read(&self.path) {
            Ok(content) => {
                self.stamp = stamp;
                let failed = std::mem::take(&mut self.failing);
                if content == self.content && !failed {
                    return None;
                }
                self.content.clone_from(&content);
                Some(Ok(content))
            }
            Err(error) => {
                self.stamp = None;
                let first = !std::mem::replace(&mut self.failing, true);
                first.then_some(Err(error))
            }
        }
    }

    /// Waits for the next change.
    ///
    /// # Errors
    /// If the file has become unreadable; waiting again waits for the next readable content.
    pub async fn changed(&mut self) -> Result<String, ModelError> {
        loop {
            if let Some(change) = self.poll() {
                return change;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}
