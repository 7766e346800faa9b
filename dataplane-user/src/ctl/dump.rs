//! `causeway dump`: all a running daemon knows.

use std::{error::Error, io::Write as _, path::PathBuf};

use super::show;
use crate::observe::admin::Topic;

/// Which daemon, and which part of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The daemon's admin socket.
    #[arg(long, value_name = "FILE", default_value = "/run/causeway/node.sock")]
    socket: PathBuf,
    /// Only this part, as workloads, services, policies, certificates, workloadState or config.
    #[arg(value_name = "PART")]
    part: Option<String>,
}

/// Prints the document.
///
/// # Errors
/// Nobody answers on the socket, or there is no such part.
pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let answer = show::ask(&args.socket, Topic::ConfigDump)?;
    let shown = match &args.part {
        None => &answer,
        Some(part) => answer.get(part).ok_or_else(|| {
            let parts = answer.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
            format!("there is no part {part:?}; there are {}", parts.collect::<Vec<_>>().join(", "))
        })?,
    };
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, shown)?;
    writeln!(out)?;
    Ok(())
}
