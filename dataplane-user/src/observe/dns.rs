//! What is counted about DNS.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

/// Upper ends of the ranges of durations that are counted, in microseconds; a last range has none.
pub const DNS_BUCKETS: [u64; 10] = [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000, 5_000_000];

/// Counters of DNS; every worker adds to the same ones.
#[derive(Debug, Default)]
pub struct DnsCounters {
    /// Questions taken from pods.
    pub requests: AtomicU64,
    /// Questions the mesh had the answer to.
    pub answered: AtomicU64,
    /// Questions passed to the server the application asked.
    pub upstream_requests: AtomicU64,
    /// Of those, the ones that got no answer.
    pub upstream_failures: AtomicU64,
    /// Questions refused because the pod's own workload is not in the model.
    pub unknown_workload: AtomicU64,
    /// Questions dropped: too many at once, or not from the pod.
    pub dropped: AtomicU64,
    /// Time the servers took, all answered questions together, in microseconds.
    pub upstream_micros: AtomicU64,
    /// How many of them took up to each of [`DNS_BUCKETS`], and longer.
    pub upstream_buckets: [AtomicU64; DNS_BUCKETS.len() + 1],
}

/// A reading of [`DnsCounters`].
#[derive(Debug, Serialize)]
pub struct DnsReading {
    requests: u64,
    answered: u64,
    upstream_requests: u64,
    upstream_failures: u64,
    unknown_workload: u64,
    dropped: u64,
    upstream_micros: u64,
}

impl DnsCounters {
    /// Counts an answer of a server that took so long.
    pub fn took(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.upstream_micros.fetch_add(micros, Relaxed);
        let bucket = DNS_BUCKETS.iter().position(|end| micros <= *end).unwrap_or(DNS_BUCKETS.len());
        if let Some(count) = self.upstream_buckets.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Writes the metrics under Istio's names.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, text: &mut impl Write) -> std::fmt::Result {
        for (name, help, counter) in [
            ("istio_dns_requests", "DNS questions taken from pods", &self.requests),
            ("istio_dns_upstream_requests", "DNS questions passed to name servers", &self.upstream_requests),
            ("istio_dns_upstream_failures", "DNS questions that name servers did not answer", &self.upstream_failures),
            ("causeway_dns_answered", "DNS questions answered from the mesh model", &self.answered),
            ("causeway_dns_dropped", "DNS questions dropped", &self.dropped),
        ] {
            let value = counter.load(Relaxed);
            write!(text, "# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total {value}\n")?;
        }
        let name = "istio_dns_upstream_request_duration_seconds";
        write!(text, "# HELP {name} Time name servers took.\n# TYPE {name} histogram\n")?;
        let mut sum = 0;
        let ends = DNS_BUCKETS.iter().map(|end| (*end as f64 / 1e6).to_string()).chain([String::from("+Inf")]);
        for (end, bucket) in ends.zip(&self.upstream_buckets) {
            sum += bucket.load(Relaxed);
            writeln!(text, "{name}_bucket{{le=\"{end}\"}} {sum}")?;
        }
        let seconds = self.upstream_micros.load(Relaxed) as f64 / 1e6;
        write!(text, "{name}_count {sum}\n{name}_sum {seconds}\n")
    }

    /// The values now.
    pub fn read(&self) -> DnsReading {
        DnsReading {
            requests: self.requests.load(Relaxed),
            answered: self.answered.load(Relaxed),
            upstream_requests: self.upstream_requests.load(Relaxed),
            upstream_failures: self.upstream_failures.load(Relaxed),
            unknown_workload: self.unknown_workload.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            upstream_micros: self.upstream_micros.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_ranges_that_add_up() {
        let counters = DnsCounters::default();
        for micros in [400, 500, 501, 9_000_000] {
            counters.took(Duration::from_micros(micros));
        }
        let mut text = String::new();
        assert!(counters.write(&mut text).is_ok());
        for line in
            ["{le=\"0.0005\"} 2", "{le=\"0.001\"} 3", "{le=\"5\"} 3", "{le=\"+Inf\"} 4", "_count 4", "_sum 9.001401"]
        {
            assert!(
                text.contains(&format!(
                    "istio_dns_upstream_request_duration_seconds{}",
                    line.replace("{le", "_bucket{le")
                )),
                "{line} is not in {text}"
            );
        }
    }
}
