//! The kernel programs: one object file, built again only when its sources, the lock file or the recipe changed.

mod btf;

use crate::{Result, paths, sh, toolchain};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use toolchain::Kind;

/// Raised when flags below change, so that old objects are not taken for current.
const RECIPE: u32 = 3;

const TARGET: &str = "bpfel-unknown-none";

/// Builds `target/ebpf/causeway-ebpf.o` unless it is current.
///
/// # Errors
/// Without a toolchain, or what the compiler said.
pub fn build() -> Result<()> {
    if is_current() {
        return Ok(());
    }
    let toolchain = match toolchain::find() {
        Some(toolchain) => toolchain,
        None => toolchain::install()?,
    };
    let fingerprint = fingerprint();
    sh::step(&format!("building the kernel programs ({} toolchain)", toolchain.kind.name()));
    // A folder per compiler: their artefacts and flags do not mix.
    let folder = paths::root().join("target").join("ebpf").join(toolchain.kind.name());
    let mut command = toolchain.kind.cargo();
    command
        .args(["build", "--release", "--package", "causeway-ebpf", "--bin", "causeway-ebpf", "--features", "programs"])
        .args(["--target", TARGET])
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(paths::root())
        .env("PATH", search_path(&toolchain.linker))
        // BTF carries the types of the socket-storage maps; the loader cannot create them without it.
        .env("CARGO_ENCODED_RUSTFLAGS", paths::flags(&["-Cdebuginfo=2", "-Clink-arg=--btf"]))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "2");
    if toolchain.kind == Kind::Nightly {
        command.args(["-Z", "build-std=core"]);
    }
    sh::logged("ebpf", &mut command)?;
    let built = folder.join(TARGET).join("release").join("causeway-ebpf");
    let object = paths::ebpf_object();
    let mut bytes = fs::read(&built).map_err(|error| format!("cannot read {}: {error}", built.display()))?;
    btf::order(&mut bytes)?;
    let parent = object.parent().unwrap_or(&object);
    fs::create_dir_all(parent).map_err(|error| format!("cannot create {}: {error}", parent.display()))?;
    write(&object, &bytes)?;
    write(&stamp(), fingerprint.as_bytes())
}

/// The compiler finds the linker by its name, so its folder goes first.
fn search_path(linker: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = linker.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
    std::env::join_paths(folders).unwrap_or(path.clone())
}

/// Whether the object was built from the sources as they are now.
pub fn is_current() -> bool {
    paths::ebpf_object().is_file() && fs::read_to_string(stamp()).is_ok_and(|text| text == fingerprint())
}

fn stamp() -> PathBuf {
    paths::ebpf_object().with_extension("fingerprint")
}

fn fingerprint() -> String {
    let root = paths::root();
    let mut files = vec![root.join("Cargo.lock"), root.join("Cargo.toml")];
    collect(&root.join("dataplane-ebpf"), &mut files);
    files.sort();
    let mut hasher = DefaultHasher::new();
    RECIPE.hash(&mut hasher);
    for file in files {
        file.strip_prefix(&root).unwrap_or(&file).hash(&mut hasher);
        fs::read(&file).unwrap_or_default().hash(&mut hasher);
    }
    format!("{:016x}\n", hasher.finish())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
