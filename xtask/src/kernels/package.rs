//! Getting a kernel: Debian's cloud image package, unpacked and not installed.

use crate::{Result, paths, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel to boot.
pub struct Kernel {
    /// Its release, for example `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// The compressed image.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// The newest kernel of this version that the package lists have.
///
/// # Errors
/// If there is none, or it cannot be downloaded.
pub fn kernel(version: &str) -> Result<Kernel> {
    let name = newest(version)?;
    let release = name.trim_start_matches("linux-image-").to_owned();
    let folder = paths::tools().join("kernels").join(&release);
    let image = folder.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        sh::step(&format!("downloading {name}"));
        sh::logged("kernel-download", Command::new("apt-get").args(["download", &name]).current_dir(&folder))?;
        let package = find(&folder, ".deb").ok_or("apt-get download left no package")?;
        sh::logged("kernel-unpack", Command::new("dpkg-deb").arg("-x").arg(&package).arg(&folder))?;
        let _ = fs::remove_file(package);
    }
    let modules = [folder.join("lib/modules").join(&release), folder.join("usr/lib/modules").join(&release)];
    let modules = modules.into_iter().find(|path| path.is_dir()).ok_or_else(|| format!("{name} has no modules"))?;
    Ok(Kernel { release, image, modules })
}

fn newest(version: &str) -> Result<String> {
    let prefix = format!("linux-image-{version}.");
    let list = || sh::output("apt-cache", &["pkgnames", &prefix]).unwrap_or_default();
    let mut text = list();
    if text.is_empty() {
        sh::logged("apt-update", Command::new("apt-get").arg("update"))?;
        text = list();
    }
    let names = text.lines().filter(|name| name.ends_with("-cloud-amd64"));
    names
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
        .ok_or_else(|| format!("no package {prefix}*-cloud-amd64 in the package lists (Debian 12 has 6.1 and 6.12)"))
}

/// The numbers in a name, so that 6.1.0-56 comes after 6.1.0-9.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn find(folder: &Path, suffix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(suffix))
}
