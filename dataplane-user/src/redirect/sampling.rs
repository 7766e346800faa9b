//! Samples of what the threads of this process do, taken by the kernel (perf_event_open(2)): user registers and a copy of the
//! top of the stack for each. No signal is sent and no system call interrupted, unlike with SIGPROF.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::system::{check, own};

/// Bytes of stack copied for each sample: all that a record has room for. Frames of futures are tens of KiB each.
const STACK_BYTES: u32 = 60 << 10;
/// Sizes of a thread's ring, the first that the limit of locked memory allows. Powers of two.
const RING_BYTES: [usize; 3] = [512 << 10, 256 << 10, 128 << 10];
/// Time between two looks at the rings: five samples of the highest frequency.
const LOOK: Duration = Duration::from_millis(5);
/// Most samples per second.
pub const MAX_FREQUENCY: u32 = 999;

const TYPE_SOFTWARE: u32 = 1;
const COUNT_CPU_CLOCK: u64 = 0;
const SAMPLE_REGS_USER: u64 = 1 << 12;
const SAMPLE_STACK_USER: u64 = 1 << 13;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const FREQUENCY: u64 = 1 << 10;
const RECORD_LOST: u32 = 2;
const RECORD_SAMPLE: u32 = 9;
const CPU_MODE: u16 = 7;
const CPU_MODE_KERNEL: u16 = 1;
/// Where the kernel's and our place in the ring are told (`struct perf_event_mmap_page`).
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

#[cfg(target_arch = "x86_64")]
mod registers {
    /// bp, sp, ip.
    pub const MASK: u64 = 1 << 6 | 1 << 7 | 1 << 8;
    pub const COUNT: usize = 3;
}
#[cfg(target_arch = "aarch64")]
mod registers {
    /// fp, lr, sp, pc.
    pub const MASK: u64 = 0xf << 29;
    pub const COUNT: usize = 4;
}

/// User registers of a sample, in the kernel's order: bp, sp, ip on x86-64; fp, lr, sp, pc on arm64.
pub type Registers = [u64; registers::COUNT];

/// What one thread was doing.
#[derive(Debug)]
pub struct Sample<'a> {
    /// Its registers in user space.
    pub registers: Registers,
    /// The stack from its pointer upwards, as far as it was copied.
    pub stack: &'a [u8],
    /// Whether the kernel worked for it at that moment.
    pub in_kernel: bool,
}

/// `struct perf_event_attr` as of its version 3.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    frequency: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clock: i32,
}

/// The samples of one thread.
struct Ring {
    _event: OwnedFd,
    memory: NonNull<u8>,
    page: usize,
    /// Bytes behind the first page.
    ring: usize,
    record: Vec<u8>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing refers to it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.page + self.ring) };
    }
}

/// Samples every thread of this process but the caller's, `frequency` times in each second it runs, for `duration`. Returns
/// how many samples were lost.
///
/// # Errors
/// The kernel allows no sampling: `EACCES` without CAP_PERFMON where `kernel.perf_event_paranoid` is above 2.
pub fn sample_stacks(frequency: u32, duration: Duration, mut take: impl FnMut(&Sample<'_>)) -> io::Result<u64> {
    let frequency = frequency.clamp(1, MAX_FREQUENCY);
    // SAFETY: no pointer is passed.
    let own_thread = unsafe { libc::gettid() };
    let mut rings = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        let thread = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(thread) = thread.filter(|thread: &libc::pid_t| *thread != own_thread) else { continue };
        match Ring::open(thread, frequency) {
            Ok(ring) => rings.push(ring),
            // It ended a moment ago.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    let (end, mut lost) = (Instant::now() + duration, 0);
    loop {
        let now = Instant::now();
        for ring in &mut rings {
            lost += ring.drain(&mut take);
        }
        if now >= end {
            return Ok(lost);
        }
        std::thread::sleep(LOOK.min(end - now));
    }
}

impl Ring {
    fn open(thread: libc::pid_t, frequency: u32) -> io::Result<Self> {
        let event = match event(thread, frequency, FREQUENCY) {
            // Time in the kernel is then not seen.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                event(thread, frequency, FREQUENCY | EXCLUDE_KERNEL)
            }
            other => other,
        }?;
        // SAFETY: no pointer is passed.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let mut refused = io::Error::other("no memory for samples");
        for ring in RING_BYTES {
            let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            let (anywhere, fd) = (std::ptr::null_mut(), event.as_raw_fd());
            // SAFETY: the kernel chooses an address that is free.
            let memory = unsafe { libc::mmap(anywhere, page + ring, protection, kind, fd, 0) };
            if memory == libc::MAP_FAILED {
                refused = io::Error::last_os_error();
            } else if let Some(memory) = NonNull::new(memory.cast()) {
                return Ok(Self { _event: event, memory, page, ring, record: Vec::new() });
            }
        }
        Err(refused)
    }

    /// One of the two counters of the ring's first page.
    fn counter(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both offsets lie within the first page.
        let place = unsafe { self.memory.add(offset) };
        // SAFETY: the place is aligned to 8 bytes, mapped while `self` lives, and shared with the kernel by atomic access only.
        unsafe { place.cast::<AtomicU64>().as_ref() }
    }

    /// Copies `length` bytes at `position` of the ring to the end of the record.
    fn copy(&mut self, position: u64, length: usize) {
        let from = position as usize % self.ring;
        let first = length.min(self.ring - from);
        for (offset, length) in [(from, first), (0, length - first)] {
            // SAFETY: page and ring are one mapping, and the offset lies within the ring.
            let place = unsafe { self.memory.add(self.page + offset) };
            // SAFETY: offset and length stay within the ring, and the kernel writes nothing before our counter has moved on.
            let bytes = unsafe { std::slice::from_raw_parts(place.as_ptr(), length) };
            self.record.extend_from_slice(bytes);
        }
    }

    /// Takes what has come; returns how many samples were lost.
    fn drain(&mut self, take: &mut impl FnMut(&Sample<'_>)) -> u64 {
        let head = self.counter(DATA_HEAD).load(Ordering::Acquire);
        let mut tail = self.counter(DATA_TAIL).load(Ordering::Relaxed);
        let mut lost = 0;
        while tail < head {
            self.record.clear();
            self.copy(tail, 8);
            let Some((kind, mode, size)) = header(&self.record) else { break };
            // A record is never shorter than its header; anything else would not end.
            if size < 8 || size > self.ring {
                break;
            }
            self.record.clear();
            self.copy(tail, size);
            tail += size as u64;
            match kind {
                RECORD_SAMPLE => {
                    if let Some(sample) = sample(&self.record, mode) {
                        take(&sample);
                    }
                }
                RECORD_LOST => lost += word(&self.record, 16).unwrap_or(0),
                _ => {}
            }
        }
        self.counter(DATA_TAIL).store(tail, Ordering::Release);
        lost
    }
}

fn event(thread: libc::pid_t, frequency: u32, flags: u64) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: COUNT_CPU_CLOCK,
        frequency: frequency.into(),
        sample_type: SAMPLE_REGS_USER | SAMPLE_STACK_USER,
        flags,
        sample_regs_user: registers::MASK,
        sample_stack_user: STACK_BYTES,
        ..Attributes::default()
    };
    /// `PERF_FLAG_FD_CLOEXEC`.
    const CLOSE_ON_EXEC: libc::c_ulong = 8;
    let (any_cpu, no_group) = (-1, -1);
    let pointer = &raw const attributes;
    // SAFETY: the structure says its own size, and the kernel only reads it.
    let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, pointer, thread, any_cpu, no_group, CLOSE_ON_EXEC) };
    Ok(own(check(fd as libc::c_int)?))
}

fn word(record: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*record.get(at..)?.first_chunk()?))
}

/// Kind, mode of the CPU, and size.
fn header(record: &[u8]) -> Option<(u32, u16, usize)> {
    let [k0, k1, k2, k3, m0, m1, s0, s1] = *record.first_chunk()?;
    let size = u16::from_ne_bytes([s0, s1]);
    Some((u32::from_ne_bytes([k0, k1, k2, k3]), u16::from_ne_bytes([m0, m1]) & CPU_MODE, size.into()))
}

/// Reads a sample. One of a thread that has no user space, or is just ending, has no registers.
fn sample(record: &[u8], mode: u16) -> Option<Sample<'_>> {
    if word(record, 8)? == 0 {
        return None;
    }
    let mut registers = Registers::default();
    for (index, register) in registers.iter_mut().enumerate() {
        *register = word(record, 16 + index * 8)?;
    }
    let at = 16 + registers.len() * 8;
    let room = usize::try_from(word(record, at)?).ok()?;
    let copied = if room == 0 { 0 } else { usize::try_from(word(record, at + 8 + room)?).ok()? };
    let stack = record.get(at + 8..at + 8 + copied.min(room))?;
    Some(Sample { registers, stack, in_kernel: mode == CPU_MODE_KERNEL })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_cut_ones_are_not() {
        let mut record = Vec::new();
        record.extend(RECORD_SAMPLE.to_ne_bytes());
        record.extend(CPU_MODE_KERNEL.to_ne_bytes());
        record.extend(0_u16.to_ne_bytes());
        record.extend(2_u64.to_ne_bytes());
        for register in 0..registers::COUNT as u64 {
            record.extend((100 + register).to_ne_bytes());
        }
        record.extend(16_u64.to_ne_bytes());
        record.extend([7; 16]);
        record.extend(9_u64.to_ne_bytes());
        let (kind, mode, _) = header(&record).unwrap_or_default();
        assert_eq!((kind, mode), (RECORD_SAMPLE, CPU_MODE_KERNEL));
        let read = sample(&record, mode);
        assert!(read.is_some_and(|read| read.stack == [7; 9] && read.registers[0] == 100 && read.in_kernel));
        for length in 0..record.len() {
            assert!(sample(&record[..length], mode).is_none(), "{length} bytes");
        }
    }
}
