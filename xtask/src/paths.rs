//! Where things are: everything is relative to the workspace, so a clone works wherever it stands.

use std::path::{Path, PathBuf};

/// The workspace root: the folder above this package.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// Cargo's target folder, honouring `CARGO_TARGET_DIR`.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Where the programs of the one profile in use are.
pub fn release() -> PathBuf {
    target().join("release")
}

/// Tools that setup builds or downloads.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The kernel programs, where the daemon's build script looks for them.
pub fn ebpf_object() -> PathBuf {
    root().join("target").join("ebpf").join("causeway-ebpf.o")
}

/// Compiler flags in the form in which they may hold blanks, with those that keep this machine's folders out of what is
/// built: the same sources give the same bytes wherever they stand.
pub fn flags(own: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cargo"))
    });
    let mut flags: Vec<String> = own.iter().map(|flag| (*flag).to_owned()).collect();
    // The last that fits counts, and the target folder may be outside of the workspace.
    let places = [(cargo, "/cargo"), (Some(root()), "/causeway"), (Some(target()), "/causeway/target")];
    for (from, to) in places {
        flags.extend(from.map(|from| format!("--remap-path-prefix={}={to}", from.display())));
    }
    flags.join("\u{1f}")
}
