//! The daemon's own log on standard error, and its level while it runs.

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// What the log shows when nobody said otherwise.
fn initial() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Starts the log: the level comes from `RUST_LOG`, the form from `LOG_FORMAT` (`json` or text).
pub fn start() {
    let (filter, handle) = reload::Layer::new(initial());
    let lines = fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    let base = tracing_subscriber::registry().with(filter);
    if std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json") {
        base.with(lines.json()).init();
    } else {
        base.with(lines).init();
    }
    // A second start in one process keeps the first log.
    let _ = FILTER.set(handle);
}

/// Directives in force.
#[must_use]
pub fn current() -> String {
    FILTER.get().and_then(|handle| handle.with_current(ToString::to_string).ok()).unwrap_or_default()
}

/// Changes what the log shows: directives such as `debug` or `causeway::tunnel=trace`; `None` goes back to the start.
///
/// # Errors
/// Words for the caller when a directive cannot be read.
pub fn set(directives: Option<&str>) -> Result<(), String> {
    let filter = match directives {
        Some(text) => EnvFilter::try_new(text).map_err(|error| format!("{text:?} is no log level: {error}"))?,
        None => initial(),
    };
    let handle = FILTER.get().ok_or("the log has not been started")?;
    handle.reload(filter).map_err(|error| error.to_string())
}
