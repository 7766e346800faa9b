//! Ctrl-C and its kin: remembered instead of obeyed, so that whoever is building gets to clean up.

use crate::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on the signals only set a mark.
///
/// # Errors
/// If a handler cannot be set.
pub fn watch() -> Result<()> {
    let mark = ASKED.get_or_init(Arc::default);
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(mark))
            .map_err(|error| format!("cannot watch signal {signal}: {error}"))?;
    }
    Ok(())
}

/// Fails once one of the signals has come.
///
/// # Errors
/// Then.
pub fn check() -> Result<()> {
    match ASKED.get() {
        Some(mark) if mark.load(Ordering::Relaxed) => Err("interrupted".to_owned()),
        _ => Ok(()),
    }
}
