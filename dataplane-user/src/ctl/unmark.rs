//! `causeway unmark`: take back what the Kubernetes API was told of pods, before Causeway is removed from a cluster.

use crate::kube::removal;

/// Removes the annotation from every pod of the cluster.
///
/// # Errors
/// There is no way to the API, or it refuses.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(removal::unmark_all())?;
    println!("the annotation ambient.istio.io/redirection was removed from {done} pods");
    Ok(())
}
