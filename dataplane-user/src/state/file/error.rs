//! What is wrong with a model file, where, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};

/// Most problems shown at once.
const SHOWN: usize = 20;

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Line from 1, 0 when unknown.
    pub line: usize,
    /// Column from 1, 0 when unknown.
    pub column: usize,
    /// The field, as `workloads[3].workloadIps[0]`; empty for the whole file.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
}

/// Everything that is wrong with a model file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelError {
    /// The file.
    pub file: PathBuf,
    /// The problems, at least one.
    pub problems: Vec<Problem>,
}

impl ModelError {
    /// A file that cannot be read at all.
    pub(super) fn unreadable(file: &Path, reason: &str, remedy: &str) -> Self {
        Self {
            file: file.to_owned(),
            problems: vec![Problem {
                line: 0,
                column: 0,
                field: String::new(),
                message: reason.to_owned(),
                remedy: remedy.to_owned(),
            }],
        }
    }

    /// What the YAML reader says, taken apart: its texts read `field: message at line L column C`.
    pub(super) fn syntax(file: &Path, error: &serde_yaml_ng::Error) -> Self {
        let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
        let text = error.to_string();
        let text = text.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&text);
        let (field, message) = match text.split_once(": ") {
            Some((field, message)) if is_field(field) => (field, message),
            _ => ("", text),
        };
        let remedy = if message.starts_with("unknown field") || message.starts_with("unknown variant") {
            "remove it or correct its spelling (names are camelCase; \"causeway schema\" lists all)"
        } else if message.starts_with("missing field") {
            "add it (\"causeway schema\" describes every field)"
        } else if message.starts_with("invalid") {
            "write a value of the expected kind (\"causeway schema\" describes every field)"
        } else {
            "correct the YAML at this place"
        };
        Self {
            file: file.to_owned(),
            problems: vec![Problem {
                line,
                column,
                field: field.to_owned(),
                message: message.to_owned(),
                remedy: remedy.to_owned(),
            }],
        }
    }
}

/// Whether a text is a path into the file rather than the begin of a sentence.
fn is_field(text: &str) -> bool {
    !text.is_empty() && !text.contains([' ', '`', '"'])
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}", self.file.display())?;
            if problem.line > 0 {
                write!(f, ":{}:{}", problem.line, problem.column)?;
            }
            if !problem.field.is_empty() {
                write!(f, ": {}", problem.field)?;
            }
            write!(f, ": {}", problem.message)?;
            if !problem.remedy.is_empty() {
                write!(f, "; {}", problem.remedy)?;
            }
        }
        if self.problems.len() > SHOWN {
            write!(f, "\n… and {} more", self.problems.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl std::error::Error for ModelError {}
