//! The table: medians with their range, and ratios to plain TCP taken round by round.

use super::machine::Machine;
use super::{Results, Round};
use std::fmt::Write;

/// A row: its caption, how to read it from a round, digits, and whether it is also shown as a ratio.
type Row = (&'static str, fn(&Round) -> f64, usize, bool);

const ROWS: &[Row] = &[
    ("one stream, Gbit/s", |round| round.stream_gbit_per_s, 2, true),
    ("64 connections ping-pong, round trips/s", |round| round.ping_pong_per_s, 0, true),
    ("ping-pong p50, µs", |round| round.ping_pong_p50_us, 0, false),
    ("ping-pong p99, µs", |round| round.ping_pong_p99_us, 0, false),
    ("new connections/s", |round| round.connections_per_s, 0, true),
    ("CPU-s per GiB, whole machine", |round| round.machine_cpu_s_per_gib, 2, true),
    ("CPU-s per GiB, proxies", |round| round.proxy_cpu_s_per_gib, 2, false),
    ("connect() to a listener in the pod, median µs", |round| round.connect_p50_us, 1, true),
    ("the fastest of them, µs", |round| round.connect_min_us, 1, false),
];

/// Contenders of ours, and what takes the same path with ztunnel.
const COUNTERPARTS: &[(&str, &str)] = &[("single", "ztunnel"), ("nested", "ztunnel-nested")];

/// The results as a Markdown table with a caption; the first contender is what the ratios are to.
pub fn markdown(machine: &Machine, results: &[Results]) -> String {
    let rounds = results.first().map_or(0, |first| first.rounds.len());
    let mut text = format!(
        "Median of {rounds} interleaved rounds (smallest–largest). Linux {}, {} × {}. Ratios are to {} of the same round.\n\n",
        machine.kernel,
        machine.processors,
        machine.processor,
        results.first().map_or("", |first| first.name)
    );
    let names: Vec<&str> = results.iter().map(|results| results.name).collect();
    let _ = writeln!(text, "| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for (caption, read, digits, ratio) in ROWS {
        let cells: Vec<String> =
            results.iter().map(|results| spread(results.rounds.iter().map(read).collect(), *digits)).collect();
        let _ = writeln!(text, "| {caption} | {} |", cells.join(" | "));
        let Some(first) = results.first().filter(|_| *ratio) else { continue };
        let cells: Vec<String> = results
            .iter()
            .map(|results| {
                let pairs = results.rounds.iter().zip(&first.rounds);
                spread(pairs.map(|(own, first)| read(own) / read(first)).collect(), 3)
            })
            .collect();
        let _ = writeln!(text, "| … of {} | {} |", first.name, cells.join(" | "));
        if let Some(cells) = of_counterparts(results, *read) {
            let _ = writeln!(text, "| … of ztunnel's | {} |", cells.join(" | "));
        }
    }
    for results in results {
        let _ = writeln!(text, "\n{}: {}.", results.name, results.path);
    }
    text
}

/// Ratios to what does the same with ztunnel in place of Causeway; nothing where it was not measured.
fn of_counterparts(results: &[Results], read: fn(&Round) -> f64) -> Option<Vec<String>> {
    let rounds = |name: &str| results.iter().find(|results| results.name == name).map(|results| &results.rounds);
    let pairs: Vec<Option<String>> = results
        .iter()
        .map(|results| {
            let counterpart = COUNTERPARTS.iter().find(|(own, _)| *own == results.name)?.1;
            let pairs = results.rounds.iter().zip(rounds(counterpart)?);
            Some(spread(pairs.map(|(own, other)| read(own) / read(other)).collect(), 3))
        })
        .collect();
    let any = pairs.iter().any(Option::is_some);
    any.then(|| pairs.into_iter().map(Option::unwrap_or_default).collect())
}

/// The median with the range in brackets.
pub(super) fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else { return "-".to_owned() };
    let middle = values.get(values.len() / 2).unwrap_or(low);
    if values.len() == 1 {
        return format!("{middle:.digits$}");
    }
    format!("{middle:.digits$} ({low:.digits$}–{high:.digits$})")
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_cell_has_the_median_and_the_range() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0], 1), "2.0 (1.0–3.0)");
        assert_eq!(spread(vec![3.0], 0), "3");
        assert_eq!(spread(vec![], 0), "-");
    }
}
