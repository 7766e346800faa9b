//! What clusters are made of: packages of the distribution, programs built with Go, images without a container engine.
//! All of it is made once, and again only when its version changes.

use super::{node, store};
use crate::{Result, control_plane, packages, paths, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const COMMAND: &str = "cargo xtask setup --with kubernetes";

/// A program of the distribution and its package.
const PACKAGES: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("mmdebstrap", "mmdebstrap"),
    ("conntrack", "conntrack"),
    ("openssl", "openssl"),
];
const NETWORK_PLUGINS: (&str, &str) = ("/usr/lib/cni/bridge", "containernetworking-plugins");

/// The release of the clusters' DNS.
pub const COREDNS: &str = "v1.15.0";

/// Programs that Go builds from a published module: name, what to install, release.
const MODULES: &[(&str, &str, &str)] =
    &[("coredns", "github.com/coredns/coredns", COREDNS), ("helm", "helm.sh/helm/v3/cmd/helm", "v3.22.0")];

/// Why no cluster can run here, if none can.
pub fn missing() -> Option<String> {
    if let Some(reason) = control_plane::missing() {
        return Some(reason.replace("--with control-plane", "--with kubernetes"));
    }
    let absent = || {
        let program = PACKAGES.iter().find(|(program, _)| !sh::has_program(program)).map(|(program, _)| *program);
        program.or_else(|| (!Path::new(NETWORK_PLUGINS.0).is_file()).then_some(NETWORK_PLUGINS.0))
    };
    let unbuilt = || MODULES.iter().find(|(name, _, version)| !is_current(name, version)).map(|(name, _, _)| *name);
    let images = || (!store::is_current()).then_some("the store of images");
    absent().or_else(unbuilt).or_else(images).map(|what| format!("{what} is missing: {COMMAND}"))
}

/// Installs and builds what is missing.
///
/// # Errors
/// The first part that cannot be had.
pub fn install() -> Result<()> {
    let programs = PACKAGES.iter().filter(|(program, _)| !sh::has_program(program)).map(|(_, package)| *package);
    let plugins = (!Path::new(NETWORK_PLUGINS.0).is_file()).then_some(NETWORK_PLUGINS.1);
    let wanted: Vec<&str> = programs.chain(plugins).collect();
    if !wanted.is_empty() {
        packages::install("what nodes of a cluster run", &wanted)?;
    }
    control_plane::install()?;
    fs::create_dir_all(folder()).map_err(|error| format!("cannot create {}: {error}", folder().display()))?;
    for (name, module, version) in MODULES {
        if !is_current(name, version) {
            build(name, module, version)?;
        }
    }
    if store::is_current() { Ok(()) } else { store::make() }
}

/// A data file of the istio module.
pub fn data(name: &str) -> PathBuf {
    control_plane::folder().join(name)
}

/// A program that Go built.
pub fn program(name: &str) -> PathBuf {
    folder().join(name)
}

fn folder() -> PathBuf {
    paths::tools().join("cluster")
}

fn stamp(name: &str) -> PathBuf {
    folder().join(format!("{name}.version"))
}

fn is_current(name: &str, version: &str) -> bool {
    program(name).is_file() && fs::read_to_string(stamp(name)).is_ok_and(|built| built == version)
}

fn build(name: &str, module: &str, version: &str) -> Result<()> {
    sh::step(&format!("building {name} {version} with Go: some minutes, once"));
    let mut command = Command::new(control_plane::go()?);
    command.args(["install", "-trimpath", "-ldflags", "-s -w", &format!("{module}@{version}")]);
    // Without C in it a program is static, so that an image needs to hold nothing else.
    command.env("GOBIN", folder()).env("CGO_ENABLED", "0").current_dir(folder());
    sh::logged(&format!("go-{name}"), &mut command)?;
    node::write(&stamp(name), version)
}
