//! The daemon's own log on standard error, and its level while it runs.

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Levels, least first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Rooms of this daemon, whose names stand for their modules.
const ROOMS: [&str; 12] = [
    "agent", "ctl", "decide", "dns", "gateway", "hbone", "identity", "istio", "observe", "redirect", "state", "tunnel",
];

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// What the log shows when nobody said otherwise.
fn initial() -> EnvFilter {
    let told = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    EnvFilter::try_new(without_answers(&told)).unwrap_or_else(|_| EnvFilter::new(without_answers("")))
}

/// The client of the Kubernetes API logs whole answers that it cannot read, and those may hold keys: only who names it sees
/// its lines.
fn without_answers(directives: &str) -> String {
    let directives = if directives.trim().is_empty() { "info" } else { directives };
    if directives.contains("kube_client") { directives.to_owned() } else { format!("{directives},kube_client=off") }
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

/// Goes back to what the log showed at the start.
///
/// # Errors
/// The log has not been started.
pub fn reset() -> Result<(), String> {
    show(initial())
}

/// Adds to what the log shows, or takes from it: `debug` for everything, `tunnel=trace` for a room of this daemon,
/// `h2=debug` for a library. What is not named stays as it is.
///
/// # Errors
/// Words for the caller when a directive cannot be read.
pub fn add(directives: &str) -> Result<(), String> {
    let text = added(&current(), directives)?;
    show(EnvFilter::try_new(&text).map_err(|error| format!("{directives:?} is no log level: {error}"))?)
}

fn show(filter: EnvFilter) -> Result<(), String> {
    let handle = FILTER.get().ok_or("the log has not been started")?;
    handle.reload(filter).map_err(|error| error.to_string())
}

/// The directives in force with further ones behind them: of two about one scope the later one counts.
fn added(current: &str, directives: &str) -> Result<String, String> {
    let mut all: Vec<String> = current.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect();
    for directive in directives.split(',').map(str::trim) {
        let (scope, level) =
            directive.rsplit_once('=').map_or((None, directive), |(scope, level)| (Some(scope), level));
        if !LEVELS.contains(&level) {
            return Err(format!("{directive:?} is no log level: {level:?} is none of {}", LEVELS.join(", ")));
        }
        all.push(match scope {
            None => level.to_owned(),
            Some(room) if ROOMS.contains(&room) => {
                format!("{}::{room}={level}", module_path!().split(':').next().unwrap_or(""))
            }
            Some(scope) => format!("{scope}={level}"),
        });
    }
    Ok(all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_add_to_those_in_force_and_mistakes_are_refused() {
        for (current, directives, expected) in [
            ("info", "debug", Ok("info,debug")),
            ("info", "tunnel=trace,h2=debug", Ok("info,causeway::tunnel=trace,h2=debug")),
            ("info", "causeway::tunnel::pool=off", Ok("info,causeway::tunnel::pool=off")),
            ("", "warn", Ok("warn")),
            ("info", "inof", Err("\"inof\" is none of")),
            ("info", "tunnel=loud", Err("\"loud\" is none of")),
            ("info", "", Err("\"\" is none of")),
        ] {
            match (added(current, directives), expected) {
                (Ok(text), Ok(expected)) => assert_eq!(text, expected, "{directives}"),
                (Err(error), Err(said)) => assert!(error.contains(said), "{directives}: {error}"),
                (found, _) => panic!("{directives}: {found:?}"),
            }
        }
    }

    #[test]
    fn answers_of_the_api_are_not_logged_unless_somebody_asks_for_them() {
        for (told, expected) in [
            ("", "info,kube_client=off"),
            (" ", "info,kube_client=off"),
            ("debug", "debug,kube_client=off"),
            ("info,kube_client=debug", "info,kube_client=debug"),
        ] {
            assert_eq!(without_answers(told), expected);
        }
    }

    #[test]
    fn of_two_directives_for_everything_the_later_one_counts() {
        let filter = EnvFilter::try_new("info,causeway::tunnel=trace,debug").map(|filter| filter.to_string());
        assert_eq!(filter.ok().as_deref(), Some("causeway::tunnel=trace,debug"));
    }
}
