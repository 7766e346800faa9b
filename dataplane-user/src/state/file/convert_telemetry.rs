//! The keys `log` and `traces` of the key `causeway`.

use super::locate::Place;
use super::{Problems, raw_node as raw};
use crate::state::{Lines, LogConfig, LogFormat, Share, Telemetry, Traces};

/// The port collectors take OTLP over HTTP on.
const COLLECTOR_PORT: u16 = 4318;
/// The path they take spans on.
const TRACES_PATH: &str = "/v1/traces";

pub(super) fn telemetry(raw: &raw::Node, place: &Place, problems: &mut Problems) -> Telemetry {
    let log = LogConfig {
        format: raw.log.format.map(|format| match format {
            raw::LogFormat::Text => LogFormat::Text,
            raw::LogFormat::Json => LogFormat::Json,
        }),
        sample: share(raw.log.sample, &place.key("log").key("sample"), problems),
        connections: lines(raw.log.connections),
        namespaces: raw.log.namespaces.iter().map(|(name, which)| (name.as_str().into(), lines(*which))).collect(),
    };
    let traces = raw.traces.as_ref().and_then(|traces| spans(traces, &place.key("traces"), problems));
    Telemetry { log, traces }
}

fn lines(raw: raw::Lines) -> Lines {
    match raw {
        raw::Lines::Off => Lines::Off,
        raw::Lines::Errors => Lines::Errors,
        raw::Lines::All => Lines::All,
    }
}

fn share(number: f64, place: &Place, problems: &mut Problems) -> Share {
    Share::new(number).unwrap_or_else(|| {
        problems.add(place, format!("{number} is no share"), "write a number from 0 (none) to 1 (all)");
        Share::ALL
    })
}

fn spans(raw: &raw::Traces, place: &Place, problems: &mut Problems) -> Option<Traces> {
    let sample = share(raw.sample, &place.key("sample"), problems);
    let Some(rest) = raw.endpoint.strip_prefix("http://") else {
        problems.add(
            &place.key("endpoint"),
            format!("{:?} does not begin with http://", raw.endpoint),
            "write the address of a collector on this node that takes OTLP over HTTP, as http://127.0.0.1:4318",
        );
        return None;
    };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let parsed = authority.parse::<http::uri::Authority>().ok().filter(|parsed| !parsed.host().is_empty());
    let Some(parsed) = parsed else {
        problems.add(
            &place.key("endpoint"),
            format!("{authority:?} is no host and port"),
            "write it as http://127.0.0.1:4318",
        );
        return None;
    };
    let path = path.trim_end_matches('/');
    Some(Traces {
        collector: format!("{}:{}", parsed.host(), parsed.port_u16().unwrap_or(COLLECTOR_PORT)),
        path: if path.ends_with(TRACES_PATH) { path.to_owned() } else { format!("{path}{TRACES_PATH}") },
        sample,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn addresses_of_collectors_get_their_port_and_path() {
        for (endpoint, collector, path) in [
            ("http://127.0.0.1", "127.0.0.1:4318", "/v1/traces"),
            ("http://otel.local:80/", "otel.local:80", "/v1/traces"),
            ("http://[::1]:4318/v1/traces", "[::1]:4318", "/v1/traces"),
            ("http://otel/tenant/", "otel:4318", "/tenant/v1/traces"),
        ] {
            let raw = raw::Traces { endpoint: endpoint.to_owned(), sample: 0.5 };
            let spans = spans(&raw, &Place::root(), &mut Problems::default()).unwrap();
            assert_eq!((spans.collector.as_str(), spans.path.as_str()), (collector, path), "{endpoint}");
            assert_eq!(Some(spans.sample), Share::new(0.5));
        }
    }
}
