//! CPU profiles of the running daemon.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    observe::pprof::{Stacks, UnwindRegsNative},
    redirect::{Registers, sample_stacks},
};

/// Whether a profile is being taken; two would measure each other.
static BUSY: AtomicBool = AtomicBool::new(false);

struct Busy;

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.store(false, Relaxed);
    }
}

/// Samples all threads for `duration` and returns the profile. Takes that long, so it wants a thread of its own.
///
/// # Errors
/// Words for the caller.
pub fn take(frequency: u32, duration: Duration) -> Result<Vec<u8>, String> {
    if BUSY.swap(true, Relaxed) {
        return Err("another profile is being taken; wait for its end".to_owned());
    }
    let _busy = Busy;
    let mut stacks = Stacks::new().map_err(|error| format!("the process's own mappings cannot be read: {error}"))?;
    let lost = sample_stacks(frequency, duration, |sample| {
        let (ip, sp, registers) = registers(sample.registers);
        stacks.add(ip, sp, registers, sample.stack, sample.in_kernel);
    })
    .map_err(|error| {
        format!(
            "the kernel allows no sampling: {error}; CAP_PERFMON is needed, or kernel.perf_event_paranoid of 2 or less"
        )
    })?;
    Ok(stacks.profile(frequency, duration, lost))
}

#[cfg(target_arch = "x86_64")]
fn registers([bp, sp, ip]: Registers) -> (u64, u64, UnwindRegsNative) {
    (ip, sp, UnwindRegsNative::new(ip, sp, bp))
}

#[cfg(target_arch = "aarch64")]
fn registers([fp, lr, sp, pc]: Registers) -> (u64, u64, UnwindRegsNative) {
    (pc, sp, UnwindRegsNative::new(lr, sp, fp))
}
