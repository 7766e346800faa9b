//! `cargo xtask cluster shell`: where a person with a kubeconfig sits, outside of all nodes.

use super::layout;
use super::{parts, plane};
use crate::{Result, paths};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A shell with kubectl, helm, causeway and a context for each cluster; with words, one that runs this line.
///
/// # Errors
/// The file system's.
pub fn command(words: &[OsString]) -> Result<Command> {
    let programs = programs()?;
    let shell = std::env::var_os("SHELL").filter(|_| words.is_empty()).unwrap_or_else(|| "sh".into());
    let mut command = plane::outside(Path::new(&shell));
    if !words.is_empty() {
        command.arg("-c").arg(words.join(" ".as_ref()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(programs.clone()).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(folders).map_err(|error| format!("PATH: {error}"))?;
    command.env("PATH", path).env("KUBECONFIG", layout::state().join("kubeconfig"));
    for (name, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")] {
        command.env(name, programs.join("helm.d").join(folder));
    }
    command.env("KUBECACHEDIR", programs.join("kubectl.d"));
    Ok(command)
}

/// The folder of the programs.
fn programs() -> Result<PathBuf> {
    let folder = layout::state().join("programs");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    let script = folder.join("kubectl");
    let kube = paths::tools().join("control-plane").join("kube");
    fs::write(&script, format!("#!/bin/sh\nexec '{}' kubectl \"$@\"\n", kube.display())).map_err(failed)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    for (name, target) in [("helm", parts::program("helm")), ("causeway", paths::release().join("causeway"))] {
        let link = folder.join(name);
        if !link.exists() {
            // One that leads nowhere is replaced.
            let _ = fs::remove_file(&link);
            symlink(target, &link).map_err(failed)?;
        }
    }
    Ok(folder)
}
