//! Metrics as text, for what is counted without the registry.

use std::fmt::{Display, Write};

/// What a family of metrics is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Appends a family of metrics: its samples with their labels, which are written already and may be empty.
pub fn family<V: Display>(
    text: &mut String,
    kind: Kind,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, V)>,
) {
    let (word, end) = match kind {
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge => ("gauge", ""),
    };
    // Writing into a String cannot fail.
    let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} {word}\n");
    for (labels, value) in samples {
        let _ = match labels.as_str() {
            "" => writeln!(text, "{name}{end} {value}"),
            labels => writeln!(text, "{name}{end}{{{labels}}} {value}"),
        };
    }
}

/// A family with one sample that has no labels.
pub fn single(text: &mut String, kind: Kind, name: &str, help: &str, value: impl Display) {
    family(text, kind, name, help, [(String::new(), value)]);
}

/// One label as it stands between braces.
#[must_use]
pub fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", super::labels::escaped(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_what_scrapers_read() {
        let mut text = String::new();
        family(&mut text, Kind::Counter, "a", "What", [(label("x", "\"1\""), 3), (String::new(), 4)]);
        single(&mut text, Kind::Gauge, "b", "What else", 0.5);
        let wanted = "# HELP a What.\n# TYPE a counter\na_total{x=\"\\\"1\\\"\"} 3\na_total 4\n\
                      # HELP b What else.\n# TYPE b gauge\nb 0.5\n";
        assert_eq!(text, wanted);
    }
}
