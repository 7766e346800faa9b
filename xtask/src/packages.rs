//! Debian and Ubuntu packages: which are missing, and installing them without starting any service.

use crate::{Result, sh};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// A program that tests or the demo run, and the package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("ip", "iproute2"),
    ("curl", "curl"),
    ("nginx", "nginx-light"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("iperf3", "iperf3"),
    ("tcpdump", "tcpdump"),
    ("iptables-save", "iptables"),
    ("nft", "nftables"),
    ("psql", "postgresql-client"),
    ("setpriv", "util-linux"),
    ("dig", "bind9-dnsutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("musl-gcc", "musl-tools"),
    ("python3", "python3-minimal"),
];

/// Asked of `dpkg` and not of the search path: the server's programs lie in a folder of their own.
const BY_PACKAGE: &[(&str, &str)] =
    &[("/usr/lib/postgresql", "postgresql"), ("/usr/share/doc/python3-venv", "python3-venv")];

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the programs of tests and demo that are missing.
///
/// # Errors
/// If a package cannot be installed; without root the text is the line to run.
pub fn install_programs() -> Result<()> {
    let programs = PROGRAMS.iter().filter(|(program, _)| !sh::has_program(program)).map(|(_, package)| *package);
    let folders = BY_PACKAGE.iter().filter(|(folder, _)| !Path::new(folder).exists()).map(|(_, package)| *package);
    let missing: Vec<&str> = programs.chain(folders).collect();
    if missing.is_empty() { Ok(()) } else { install("programs of the tests and the demo", &missing) }
}

/// Whether the package lists know this package.
pub fn available(package: &str) -> bool {
    let known = || {
        sh::output("apt-cache", &["policy", package])
            .is_some_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
    };
    known() || (is_root() && update().is_ok() && known())
}

/// Installs packages by apt, as root; `what` is for the progress line.
///
/// # Errors
/// Without apt or without root, with the exact line to run; or what apt said.
pub fn install(what: &str, packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get update && apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !sh::has_program("apt-get") {
        return Err(format!("{what}: this machine has no apt; install the equivalents of: {}", missing.join(" ")));
    }
    if !is_root() {
        return Err(format!("{what}: missing packages. Run this once, then try again:\n  sudo sh -c '{line}'"));
    }
    sh::step(&format!("installing {what}: {}", missing.join(" ")));
    update()?;
    // A package that is installed must not start its server on the machine: the tests start their own in namespaces.
    let policy = ServicePolicy::forbid()?;
    let result = sh::logged(
        "apt-install",
        Command::new("apt-get")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    );
    drop(policy);
    result.map_err(|error| format!("{error}\nThe line to run by hand: {line}"))
}

fn update() -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    sh::step("reading the package lists (apt-get update)");
    sh::logged("apt-update", Command::new("apt-get").arg("update"))
}

fn installed(package: &str) -> bool {
    sh::output("dpkg-query", &["--show", "--showformat", "${db:Status-Status}", package]).as_deref()
        == Some("installed")
}

/// Whether we may install packages, make namespaces and load kernel programs.
pub fn is_root() -> bool {
    sh::output("id", &["-u"]).as_deref() == Some("0")
}

/// While it lives, package scripts may not start services; a policy that was there before stays.
struct ServicePolicy {
    ours: bool,
}

impl ServicePolicy {
    fn forbid() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let write = || {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n")?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))
        };
        write().map_err(|error| format!("cannot write {POLICY}: {error}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("xtask: cannot remove {POLICY} ({error}); remove it, or services will not start on this machine");
        }
    }
}
