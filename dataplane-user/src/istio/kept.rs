//! Files that Kubernetes replaces under a running process: tokens, root bundles, revocation lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing::{info, warn};

/// A text file that is read anew on every use. While it cannot be read, or is empty, its last good text is used; that is
/// logged once when it begins and once when it ends.
#[derive(Debug)]
pub struct KeptFile {
    what: &'static str,
    path: PathBuf,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    text: Option<String>,
    failing: bool,
}

impl KeptFile {
    /// A file, with a word for what it holds (for the log).
    #[must_use]
    pub fn new(what: &'static str, path: impl Into<PathBuf>) -> Self {
        Self { what, path: path.into(), last: Mutex::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text now, or the last good one.
    ///
    /// # Errors
    /// If it has never been readable: what, where and what to do.
    pub fn read(&self) -> Result<String, String> {
        let read = fs::read_to_string(&self.path).map_err(|error| error.to_string());
        let good = read.and_then(|text| if text.trim().is_empty() { Err("it is empty".to_owned()) } else { Ok(text) });
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (good, &last.text) {
            (Ok(text), _) => {
                if last.failing {
                    info!("{} {} can be read again", self.what, self.path.display());
                }
                *last = Last { text: Some(text.clone()), failing: false };
                Ok(text)
            }
            (Err(reason), Some(text)) => {
                let text = text.clone();
                if !last.failing {
                    warn!("{} {}: {reason}; the last good one stays in use", self.what, self.path.display());
                }
                last.failing = true;
                Ok(text)
            }
            (Err(reason), None) => Err(format!(
                "{} {}: {reason}; it must exist before the control plane can be asked (is the volume mounted?)",
                self.what,
                self.path.display()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn a_vanished_or_emptied_file_keeps_its_last_good_text() {
        let path = std::env::temp_dir().join(format!("causeway-kept-{}", std::process::id()));
        let file = KeptFile::new("token", &path);
        assert!(file.read().unwrap_err().contains("token"), "never there: an error that names it");
        fs::write(&path, "one").unwrap();
        assert_eq!(file.read().unwrap(), "one");
        fs::write(&path, "two").unwrap();
        assert_eq!(file.read().unwrap(), "two", "read anew each time");
        fs::write(&path, " \n").unwrap();
        assert_eq!(file.read().unwrap(), "two", "empty is not good");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.read().unwrap(), "two", "vanished");
        fs::write(&path, "three").unwrap();
        assert_eq!(file.read().unwrap(), "three");
        fs::remove_file(&path).unwrap();
    }
}
