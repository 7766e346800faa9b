//! `causeway uninstall`: remove every trace of an instance from the kernel.

use std::path::PathBuf;

use crate::redirect;

/// Which instance.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the kernel state, as the daemon was given.
    #[arg(long, default_value = "node")]
    instance: String,
    /// Where the BPF file system is mounted.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// The node's own proc file system, mounted for writing.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    proc: PathBuf,
}

/// Removes pins, links, rules and sysctl changes.
///
/// # Errors
/// Something could not be removed: what, and why.
pub fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let left = redirect::uninstall(&args.bpffs, &args.instance, &args.proc)?;
    if left.is_empty() {
        println!("nothing of instance {} is left in the kernel", args.instance);
        return Ok(());
    }
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    Err(format!("left behind: {}", left.join("; ")).into())
}
