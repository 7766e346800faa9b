//! `cargo xtask setup`: everything that must be on the machine, found or installed; under a second when it is.

use crate::{Result, cluster, control_plane, ebpf, envoy, packages, sh, toolchain};

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

/// What only one tier needs, and what therefore has to be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Extra {
    /// etcd, kube-apiserver and istiod: Go and some minutes, once
    ControlPlane,
    /// Clusters with kubelets: the above, containerd, Helm and images, once
    Kubernetes,
}

/// Installs what was asked for.
///
/// # Errors
/// What is missing and cannot be had.
pub fn extras(with: &[Extra]) -> Result<()> {
    if with.contains(&Extra::ControlPlane) {
        control_plane::install()?;
    }
    if with.contains(&Extra::Kubernetes) {
        cluster::install()?;
    }
    Ok(())
}
