//! Counts of durations by range, without a lock.

use std::{
    fmt::{self, Write},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Upper ends of the ranges in microseconds, and as they are written in seconds; a last range has none.
const ENDS: [(u32, &str); 13] = [
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1.0"),
    (5_000_000, "5.0"),
];

/// Counts of durations by range.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; ENDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, micros: u32) {
        let bucket = ENDS.iter().position(|(end, _)| micros <= *end).unwrap_or(ENDS.len());
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.micros.fetch_add(micros.into(), Relaxed);
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.buckets.iter().all(|count| count.load(Relaxed) == 0)
    }

    /// Writes the series of `name` with `labels`, which are written already and not empty.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, text: &mut impl Write, name: &str, labels: &str) -> fmt::Result {
        let mut sum = 0;
        let ends = ENDS.iter().map(|(_, end)| *end).chain(["+Inf"]);
        for (end, count) in ends.zip(&self.buckets) {
            sum += count.load(Relaxed);
            writeln!(text, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}")?;
        }
        let seconds = self.micros.load(Relaxed) as f64 / 1e6;
        write!(text, "{name}_count{{{labels}}} {sum}\n{name}_sum{{{labels}}} {seconds}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_add_up_and_their_ends_belong_to_them() {
        let histogram = Histogram::default();
        assert!(histogram.is_empty());
        for micros in [1, 100, 101, 5_000_001] {
            histogram.observe(micros);
        }
        assert!(!histogram.is_empty());
        let mut text = String::new();
        assert!(histogram.write(&mut text, "x_seconds", "leg=\"resolve\"").is_ok());
        for line in [
            "x_seconds_bucket{leg=\"resolve\",le=\"0.0001\"} 2",
            "x_seconds_bucket{leg=\"resolve\",le=\"0.00025\"} 3",
            "x_seconds_bucket{leg=\"resolve\",le=\"5.0\"} 3",
            "x_seconds_bucket{leg=\"resolve\",le=\"+Inf\"} 4",
            "x_seconds_count{leg=\"resolve\"} 4",
            "x_seconds_sum{leg=\"resolve\"} 5.000203",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in {text}");
        }
    }

    #[test]
    fn ends_are_written_as_what_they_are() {
        for (micros, text) in ENDS {
            assert_eq!(text.parse::<f64>().ok(), Some(f64::from(micros) / 1e6));
        }
    }
}
