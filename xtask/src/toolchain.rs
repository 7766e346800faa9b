//! The two compilers that can make the kernel programs, and which of them this machine has.

use crate::{Result, packages, paths, sh};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest compiler that builds this workspace.
const RUSTC_FLOOR: (u32, u32) = (1, 95);

/// The linker release that knows the LLVM versions of both compilers.
const BPF_LINKER: &str = "0.13.0";

/// Where Debian's `rustc-web` lives; `rustup` may put another `rustc` in front of it on the search path.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Debian's prebuilt `core` for eBPF.
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none";

/// A compiler for the eBPF target with the linker that fits its LLVM.
pub struct Toolchain {
    /// Which of the two it is.
    pub kind: Kind,
    /// The `bpf-linker` to use.
    pub linker: PathBuf,
}

/// Where the compiler comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Debian and Ubuntu packages `rustc-web` and `libstd-rust-web-dev-bpf`: `core` is prebuilt.
    Debian,
    /// `rustup` nightly with `rust-src`: `core` is built from source.
    Nightly,
}

/// Refuses a compiler that cannot build the workspace before cargo fails on the first new feature.
///
/// # Errors
/// Without a `rustc`, or with one below the floor; the text says how to get a newer one.
pub fn check_rustc() -> Result<()> {
    let (major, minor) = RUSTC_FLOOR;
    let remedy = format!(
        "Causeway needs rustc {major}.{minor} or newer: `rustup update stable` (https://rustup.rs), or on Debian and Ubuntu `apt-get install cargo-web rustc-web`"
    );
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let Some(text) = sh::output(&compiler, &["--version"]) else {
        return Err(format!("no working `{compiler}` found. {remedy}"));
    };
    match version(&text) {
        Some(found) if found >= RUSTC_FLOOR => Ok(()),
        _ => Err(format!("found \"{text}\". {remedy}")),
    }
}

/// The two leading numbers in a text such as `rustc 1.95.0 (… )` or `LLVM version: 22.1.8`.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn llvm_major(verbose_version: &str) -> Option<u32> {
    let line = verbose_version.lines().find(|line| line.starts_with("LLVM version"))?;
    version(line).map(|(major, _)| major)
}

/// The compiler to use, complete with its linker; `None` if something is missing.
pub fn find() -> Option<Toolchain> {
    [Kind::Debian, Kind::Nightly].into_iter().filter(|kind| wanted(*kind)).find_map(|kind| {
        let llvm = kind.llvm()?;
        linker(llvm).map(|linker| Toolchain { kind, linker })
    })
}

/// Installs what is missing for one of the two compilers.
///
/// # Errors
/// If neither can be had, with the lines to run by hand.
pub fn install() -> Result<Toolchain> {
    let kind = match [Kind::Debian, Kind::Nightly].into_iter().find(|kind| wanted(*kind) && kind.llvm().is_some()) {
        Some(kind) => kind,
        None => install_compiler()?,
    };
    let llvm = kind.llvm().ok_or("the eBPF compiler was installed but does not run; see target/tools/log")?;
    let linker = match linker(llvm) {
        Some(linker) => linker,
        None => install_linker(llvm)?,
    };
    Ok(Toolchain { kind, linker })
}

fn install_compiler() -> Result<Kind> {
    let names = ["rustc-web", "libstd-rust-web-dev-bpf"];
    if wanted(Kind::Debian) && packages::available("libstd-rust-web-dev-bpf") {
        packages::install("the eBPF compiler", &names)?;
        return Ok(Kind::Debian);
    }
    if wanted(Kind::Nightly) && sh::has_program("rustup") {
        sh::step("installing a nightly compiler with its library sources by rustup");
        let args = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        sh::logged("rustup-nightly", Command::new("rustup").args(args))?;
        return Ok(Kind::Nightly);
    }
    Err(format!(
        "no compiler for eBPF. Either of these gives one:\n  apt-get install {}\n  rustup toolchain install nightly --component rust-src   (https://rustup.rs)",
        names.join(" ")
    ))
}

fn install_linker(llvm: u32) -> Result<PathBuf> {
    let dev = format!("llvm-{llvm}-dev");
    let libraries = [dev.as_str(), "g++", "zlib1g-dev", "libzstd-dev", "libxml2-dev"];
    packages::install("the libraries of bpf-linker", &libraries).map_err(|error| {
        format!(
            "{error}
Or put a released bpf-linker {BPF_LINKER} on the search path: cargo binstall bpf-linker"
        )
    })?;
    let folder = linker_folder(llvm);
    sh::step(&format!("building bpf-linker {BPF_LINKER} for LLVM {llvm} (about two minutes, once)"));
    let feature = format!("llvm-{llvm}");
    let mut command = sh::cargo_command();
    command
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--no-default-features",
            "--features",
            &feature,
        ])
        .arg("--root")
        .arg(&folder)
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR");
    sh::logged("bpf-linker", &mut command)?;
    linker(llvm).ok_or_else(|| format!("bpf-linker was built into {} but does not run", folder.display()))
}

fn linker_folder(llvm: u32) -> PathBuf {
    paths::tools().join(format!("bpf-linker-{BPF_LINKER}-llvm{llvm}"))
}

/// The linker that setup built, else one on the search path: releases of `bpf-linker` carry the newest LLVM, which reads
/// what older compilers write.
fn linker(llvm: u32) -> Option<PathBuf> {
    let own = linker_folder(llvm).join("bin").join("bpf-linker");
    if own.is_file() {
        return Some(own);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("bpf-linker")).find(|file| file.is_file())
}

/// `CAUSEWAY_EBPF_TOOLCHAIN=debian|nightly` limits the choice to one of the two.
fn wanted(kind: Kind) -> bool {
    match std::env::var("CAUSEWAY_EBPF_TOOLCHAIN") {
        Ok(name) if !name.is_empty() => name.eq_ignore_ascii_case(kind.name()),
        _ => true,
    }
}

impl Kind {
    /// The word for messages and for `CAUSEWAY_EBPF_TOOLCHAIN`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Debian => "debian",
            Kind::Nightly => "nightly",
        }
    }

    /// The compiler's LLVM, if the compiler is there with what eBPF needs.
    fn llvm(self) -> Option<u32> {
        match self {
            Kind::Debian => {
                Path::new(DEBIAN_CORE).is_dir().then_some(())?;
                llvm_major(&sh::output(DEBIAN_RUSTC, &["-vV"])?)
            }
            Kind::Nightly => {
                let sysroot = sh::output("rustc", &["+nightly", "--print", "sysroot"])?;
                Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir().then_some(())?;
                llvm_major(&sh::output("rustc", &["+nightly", "-vV"])?)
            }
        }
    }

    /// A cargo command set up for this compiler, without arguments.
    pub fn cargo(self) -> Command {
        let mut command = match self {
            Kind::Debian => {
                let mut command = sh::cargo_command();
                // aya-ebpf uses unstable features of `core`; Debian's compiler is a stable release.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Kind::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
                command
            }
        };
        // Flags for the host compiler mean nothing to this target.
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTC_WRAPPER");
        command
    }
}
