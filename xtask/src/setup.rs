//! `cargo xtask setup`: everything that must be on the machine, found or installed; under a second when it is.

use crate::{Result, ebpf, envoy, packages, sh, toolchain};

/// Finds or installs the programs, the eBPF toolchain and Envoy.
///
/// # Errors
/// The first thing that is missing and cannot be installed, with the line to run.
pub fn run() -> Result<()> {
    packages::install_programs()?;
    match toolchain::find() {
        Some(_) => {}
        // With an object already built from these very sources nothing has to be compiled for the kernel.
        None if ebpf::is_current() => {}
        None => {
            let found = toolchain::install()?;
            sh::step(&format!("eBPF compiler: {}", found.kind.name()));
        }
    }
    envoy::install();
    Ok(())
}
