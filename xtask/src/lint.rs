//! Rules about the tree that the compiler does not know: which room may import which, how long a file may be, and that the
//! tests behind the promises exist.

use crate::{Result, paths};
use std::fs;
use std::path::{Path, PathBuf};

/// Longer than this, a file holds more than one concern.
const MAX_LINES: usize = 450;

/// Room of `dataplane-user` and the rooms it may import. A room only ever imports rooms above it in this list, so there are
/// no cycles; whatever is not listed is an upward or sideways arrow.
const ARROWS: &[(&str, &[&str])] = &[
    ("hbone", &[]),
    ("identity", &[]),
    ("redirect", &[]),
    ("state", &["identity"]),
    ("decide", &["state", "identity", "hbone"]),
    ("dns", &["state"]),
    ("istio", &["state", "identity"]),
    ("kube", &["state"]),
    ("multicluster", &["identity"]),
    ("tunnel", &["hbone", "identity"]),
    ("observe", &["hbone", "state", "identity", "tunnel"]),
    ("gateway", &["decide", "tunnel", "redirect", "state", "identity", "hbone", "observe"]),
    (
        "agent",
        &["dns", "istio", "kube", "decide", "tunnel", "redirect", "state", "identity", "hbone", "gateway", "observe"],
    ),
    ("ctl", &["agent", "istio", "multicluster", "state", "observe", "identity", "redirect", "kube"]),
];

/// Runs both checks over the tracked folders.
///
/// # Errors
/// Every violation, one per line.
pub fn run() -> Result<()> {
    let root = paths::root();
    let mut files = Vec::new();
    for folder in ["dataplane-ebpf", "dataplane-user", "tests", "xtask"] {
        collect(&root.join(folder), &mut files);
    }
    files.sort();
    let mut found = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let name = file.strip_prefix(&root).unwrap_or(file);
        let lines = text.lines().count();
        if lines > MAX_LINES {
            found.push(format!("{}: {lines} lines, the limit is {MAX_LINES}; split it by concern", name.display()));
        }
        if let Ok(inside) = name.strip_prefix("dataplane-user/src") {
            arrows(name, inside, &text, &mut found);
        }
    }
    promises(&root, &files, &mut found)?;
    if found.is_empty() {
        println!("lint: {} files; arrows, sizes and the tests named in SPECIFICATION.md hold", files.len());
        return Ok(());
    }
    Err(format!("{} violations:\n  {}", found.len(), found.join("\n  ")))
}

/// Every test that SPECIFICATION.md names must exist: a promise may not outlive what keeps it.
fn promises(root: &Path, files: &[PathBuf], found: &mut Vec<String>) -> Result<()> {
    let path = root.join("SPECIFICATION.md");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let mut sources = String::new();
    for file in files {
        sources
            .push_str(&fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?);
    }
    for (number, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        for name in line.split('`').skip(1).step_by(2).filter(|name| looks_like_a_test(name)) {
            if !sources.contains(&format!("fn {name}(")) {
                found.push(format!("SPECIFICATION.md:{}: there is no test {name}", number + 1));
            }
        }
    }
    Ok(())
}

/// Names of tests are sentences; nothing else between backticks has that many underscores.
fn looks_like_a_test(name: &str) -> bool {
    let word = |character: char| character.is_ascii_lowercase() || character.is_ascii_digit() || character == '_';
    name.matches('_').count() >= 3 && name.chars().all(word)
}

fn arrows(name: &Path, inside: &Path, text: &str, found: &mut Vec<String>) {
    let room = inside.components().next().map(|part| part.as_os_str().to_string_lossy().replace(".rs", ""));
    let Some((room, allowed)) = room.and_then(|room| ARROWS.iter().find(|(name, _)| *name == room)) else { return };
    for (line, target) in imports(text) {
        let known = ARROWS.iter().any(|(name, _)| *name == target);
        if known && target != *room && !allowed.contains(&target) {
            found.push(format!("{}:{line}: {room} must not import {target}", name.display()));
        }
    }
}

/// Every name that follows `crate::` in code, alone or at the outermost level of a brace group, with its line.
fn imports(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, key) in text.match_indices("crate::") {
        let start = text.get(..at).unwrap_or_default();
        let line_start = start.rsplit('\n').next().unwrap_or_default();
        if line_start.contains("//") {
            continue;
        }
        let line = start.matches('\n').count() + 1;
        let rest = text.get(at + key.len()..).unwrap_or_default();
        match rest.strip_prefix('{') {
            Some(group) => found.extend(outer_names(group).map(|name| (line, name))),
            None => found.push((line, word(rest))),
        }
    }
    found
}

/// The names at the outermost level of a brace group, up to its closing brace: `a, b::{c, d}, e}` gives `a`, `b`, `e`.
fn outer_names(group: &str) -> impl Iterator<Item = &str> {
    let mut depth = 1_i32;
    group
        .split_inclusive([',', '{', '}'])
        .map_while(move |piece| {
            let outer = depth == 1;
            match piece.chars().last() {
                _ if depth == 0 => return None,
                Some('{') => depth += 1,
                Some('}') => depth -= 1,
                _ => {}
            }
            Some(if outer { word(piece.trim_start()) } else { "" })
        })
        .filter(|name| !name.is_empty())
}

fn word(text: &str) -> &str {
    let end = text.find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ARROWS, imports};

    #[test]
    fn rooms_import_only_rooms_above_them() {
        for (at, (room, allowed)) in ARROWS.iter().enumerate() {
            for target in *allowed {
                let above = ARROWS.iter().take(at).any(|(name, _)| name == target);
                assert!(above, "{room} imports {target}, which stands below it");
            }
        }
    }

    #[test]
    fn imports_are_found_alone_in_groups_and_over_lines_but_not_in_comments() {
        for (code, expected) in [
            ("use crate::state::Model;", &["state"][..]),
            ("use crate::{\n    state::{Model, tunnel},\n    hbone,\n};\nuse x::{decide};", &["state", "hbone"]),
            ("    crate::decide::outbound(x)", &["decide"]),
            ("/// See [`crate::tunnel`]", &[]),
            ("use super::state;", &[]),
        ] {
            let names: Vec<&str> = imports(code).into_iter().map(|(_, name)| name).collect();
            assert_eq!(names, expected, "{code}");
        }
    }
}
