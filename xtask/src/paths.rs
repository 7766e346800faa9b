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
