//! The netns tier inside other kernels: a virtual machine without KVM whose user space is an initramfs of this machine's
//! own programs, the daemon and the test binaries.

mod image;
mod package;

use crate::{Result, packages, paths, sh};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Suites that run inside, with the arguments that leave out what needs servers too heavy for an emulated machine.
const SUITES: &[(&str, &str)] = &[
    ("redirect_", ""),
    ("netns_testkit", ""),
    ("netns_cross_cluster", "--skip redis_postgres"),
    ("netns_enrol", ""),
    ("netns_no_plaintext", ""),
];

/// How long a machine may run. Emulated processors are some twenty times slower than real ones.
const LIMIT_SECONDS: &str = "3600";

/// Runs the tier in a kernel of this version and hands every line of its output to `see`.
///
/// # Errors
/// If the kernel or QEMU cannot be had, or the machine does not get to its end.
pub fn run(version: &str, filter: Option<&str>, see: &mut dyn FnMut(&str)) -> Result<()> {
    println!(
        "\n== tier kernels: {version} (left out inside: volumes, bad input, refusals, and servers too heavy for emulation)"
    );
    packages::install("the virtual machine", &["qemu-system-x86", "busybox-static", "xz-utils", "libc-bin"])?;
    let kernel = package::kernel(version)?;
    let suites = test_binaries()?;
    sh::step(&format!("making an initramfs for {}", kernel.release));
    let image = paths::tools().join("kernels").join(format!("{}.cpio", kernel.release));
    image::build(&image, &kernel, &suites, filter)?;
    sh::step("booting (emulated: expect minutes)");
    let mut finished = false;
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", LIMIT_SECONDS, "qemu-system-x86_64"])
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "5120"])
        .args(["-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&image)
        .args(["-append", "console=ttyS0 panic=-1 loglevel=4 mitigations=off rdinit=/init"])
        .stdin(std::process::Stdio::null());
    let status = sh::tee(&mut command, |line| {
        finished |= line == image::LAST_LINE;
        see(line);
    })?;
    let _ = fs::remove_file(&image);
    if finished { Ok(()) } else { Err(format!("the machine did not get to its end ({status})")) }
}

/// A suite that runs inside.
pub struct Suite {
    name: String,
    binary: PathBuf,
    arguments: &'static str,
}

/// Builds the suites and returns where cargo put those that run inside.
fn test_binaries() -> Result<Vec<Suite>> {
    let mut command = sh::cargo_command();
    command.args(["test", "--release", "--workspace", "--tests", "--no-run"]).current_dir(paths::root());
    let output = command.output().map_err(|error| format!("cannot start cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("building the suites:\n{text}"));
    }
    let mut suites = Vec::new();
    for line in text.lines() {
        // `  Executable tests/netns_enrol.rs (target/release/deps/netns_enrol-0123456789abcdef)`
        let Some((source, binary)) =
            line.trim().strip_prefix("Executable tests/").and_then(|rest| rest.split_once(".rs ("))
        else {
            continue;
        };
        let Some((_, arguments)) = SUITES.iter().find(|(prefix, _)| source.starts_with(prefix)) else { continue };
        let binary = paths::root().join(binary.trim_end_matches(')'));
        suites.push(Suite { name: source.to_owned(), binary, arguments });
    }
    if suites.is_empty() { Err(format!("cargo named no test binaries:\n{text}")) } else { Ok(suites) }
}
