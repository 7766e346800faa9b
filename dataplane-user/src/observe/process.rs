//! What the kernel counts of this process (proc(5)).

use std::fs;

use super::text::{Kind, single};

/// Ticks of a second in files of /proc: fixed by the kernel's interface.
const TICKS: f64 = 100.0;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number behind `key` in a file of lines.
fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// Field `number` of /proc/self/stat, counted as in its manual. The name before may hold blanks and ends with the last bracket.
fn stat(text: &str, number: usize) -> Option<f64> {
    text.rsplit(')').next()?.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

/// Resident memory.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    number(&read("/proc/self/status"), "VmRSS:").map(|kib| kib * 1024)
}

/// Appends the metrics that every Prometheus client names alike. What the kernel does not tell is left out.
pub fn write(text: &mut String) {
    let (own, status, limits) = (read("/proc/self/stat"), read("/proc/self/status"), read("/proc/self/limits"));
    let mut gauge = |name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            single(text, Kind::Gauge, name, help, value);
        }
    };
    let open = fs::read_dir("/proc/self/fd").ok().map(|folder| folder.count() as f64);
    gauge("process_open_fds", "Open file descriptors", open);
    let most = number(&limits, "Max open files").map(|most| most as f64);
    gauge("process_max_fds", "Most file descriptors", most);
    let resident = resident_bytes().map(|bytes| bytes as f64);
    gauge("process_resident_memory_bytes", "Resident memory", resident);
    let threads = number(&status, "Threads:").map(|threads| threads as f64);
    gauge("process_threads", "Threads", threads);
    let boot = number(&read("/proc/stat"), "btime ").map(|boot| boot as f64);
    let start = boot.zip(stat(&own, 22)).map(|(boot, ticks)| boot + ticks / TICKS);
    gauge("process_start_time_seconds", "Start, in seconds since 1970", start);
    if let Some((user, system)) = stat(&own, 14).zip(stat(&own, 15)) {
        single(text, Kind::Counter, "process_cpu_seconds", "CPU time", (user + system) / TICKS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_as_in_the_manual_whatever_the_name_is() {
        let line = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 3 0 9000 1 2";
        assert_eq!((stat(line, 14), stat(line, 15), stat(line, 22)), (Some(150.0), Some(50.0), Some(9000.0)));
        assert_eq!(stat("", 14), None);
    }

    #[test]
    fn this_process_has_all_of_them() {
        let mut text = String::new();
        write(&mut text);
        for name in
            ["open_fds", "max_fds", "resident_memory_bytes", "threads", "start_time_seconds", "cpu_seconds_total"]
        {
            let name = format!("process_{name} ");
            let value =
                text.lines().find_map(|line| line.strip_prefix(&name)).and_then(|value| value.parse::<f64>().ok());
            assert!(value.is_some_and(|value| value >= 0.0), "{name} in {text}");
        }
    }
}
