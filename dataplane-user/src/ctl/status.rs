//! `causeway status`: ask a running daemon how it is.

use std::path::PathBuf;

use crate::observe::admin::{self, Topic};

/// Which daemon, and how to show it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's admin socket.
    #[arg(long, value_name = "FILE", default_value = "/run/causeway/node.sock")]
    socket: PathBuf,
    /// List certificates instead of pods and counters.
    #[arg(long)]
    certificates: bool,
}

/// Prints the answer as indented JSON.
///
/// # Errors
/// Nobody answers on the socket.
pub fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let topic = if args.certificates { Topic::Certificates } else { Topic::Status };
    let answer = admin::ask(&args.socket, topic).map_err(|error| {
        format!(
            "no daemon answers on {}: {error}; is it running, and is this its run directory?",
            args.socket.display()
        )
    })?;
    println!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(())
}
