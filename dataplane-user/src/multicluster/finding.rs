//! What is wrong, in the four parts that let somebody repair it.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Will become an error, or surprises somebody.
    Warning,
    /// Connections fail, or a link would not work.
    Error,
}

/// One thing that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check that found it.
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    #[serde(rename = "what")]
    pub what: String,
    /// The cluster and the object.
    #[serde(rename = "where")]
    pub place: String,
    /// What follows from it.
    pub why: String,
    /// The command that repairs it.
    pub repair: String,
}

impl Finding {
    /// An error.
    pub fn error(check: &'static str, what: impl Into<String>, place: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Error,
            what: what.into(),
            place: place.into(),
            why: String::new(),
            repair: String::new(),
        }
    }

    /// A warning.
    pub fn warning(check: &'static str, what: impl Into<String>, place: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(check, what, place) }
    }

    /// What follows from it.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }

    /// The command that repairs it.
    #[must_use]
    pub fn repair(mut self, repair: impl Into<String>) -> Self {
        self.repair = repair.into();
        self
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        writeln!(f, "{} {severity}: {}", self.check, printable(&self.what))?;
        for (name, text) in [("where", &self.place), ("why", &self.why), ("repair", &self.repair)] {
            if !text.is_empty() {
                writeln!(f, "  {name:<7}{}", printable(text))?;
            }
        }
        Ok(())
    }
}

/// What API servers say comes from others, and shall neither move a cursor nor end a line of a command.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_others_say_moves_the_cursor_or_ends_a_line() {
        let finding = Finding::error("names", "a\u{1b}[31mb", "c\nd").why("e\r").repair("f\ng");
        let text = finding.to_string();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.chars().all(|letter| letter == '\n' || !letter.is_control()), "{text:?}");
    }
}
