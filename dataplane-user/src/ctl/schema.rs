//! `causeway schema`: the JSON schema of the model file.

use std::error::Error;
use std::io::Write as _;

use crate::state::file;

/// Print the JSON schema of the model file.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// If the output cannot be written.
pub fn run(_args: Args) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &file::schema())?;
    writeln!(out)?;
    Ok(())
}
