//! `causeway ca`: a root and one intermediate per cluster.

use std::error::Error;
use std::path::PathBuf;

use crate::identity::ca;

/// Make a root certificate and one intermediate per cluster, in the layout of Istio's `cacerts` secret.
///
/// What exists is checked and used again, so clusters can be added later.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write to: root-cert.pem and root-key.pem, and below it one folder per cluster.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Trust domain of all of them.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// Name of a cluster; may be repeated.
    #[arg(long, value_name = "NAME", required = true)]
    cluster: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// If a file cannot be written or what exists does not fit.
pub fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let created = ca::create(&args.out, &args.trust_domain, &args.cluster)?;
    let root = if created.new_root { "made" } else { "kept" };
    println!("{root} root of {} in {}", args.trust_domain, args.out.display());
    for directory in &created.made {
        println!("made intermediate in {}", directory.display());
    }
    for directory in &created.kept {
        println!("kept intermediate in {} (checked: signed by its root, valid)", directory.display());
    }
    Ok(())
}
