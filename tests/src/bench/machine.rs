//! What the figures were measured on, and the time its processors spent.

use crate::{Error, Result, context};
use serde::Serialize;
use std::time::Duration;

/// The machine in the words of the table's caption.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Model of the processor.
    pub processor: String,
    /// Processors available.
    pub processors: usize,
}

/// Reads it from `/proc`.
pub fn describe() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        processor: model.map_or("unknown", |(_, name)| name).trim().to_owned(),
        processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// Time all processors together have not been idle: user, kernel, interrupts and soft interrupts.
///
/// # Errors
/// If `/proc/stat` is not as documented in proc(5).
pub fn busy() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat").map_err(context("/proc/stat"))?;
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu "));
    let fields: Vec<u64> = line.unwrap_or_default().split_whitespace().filter_map(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields.as_slice() else {
        return Err(Error::from("/proc/stat has no line of all processors"));
    };
    // The unit is USER_HZ, which is 100 on every architecture Linux runs eBPF on.
    Ok(Duration::from_millis((user + nice + system + irq + softirq) * 10))
}
