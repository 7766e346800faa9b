//! Programs by hook, and what they share.
//!
//! A program function never has the name of its ELF section: the linker would see the symbol twice.

mod dns;
mod entry;
mod entry_dial;
mod hold;
mod inbound;
mod maps;
mod outbound;
mod peername;
mod sockets;

use causeway_ebpf::abi::Config;
use causeway_ebpf::counter::Counter;

/// Reads a context field. Volatile, because the compiler otherwise merges neighbouring accesses or selects between two field
/// addresses, and the verifier accepts only constant offsets of the context with the field's own size.
#[inline(always)]
fn field<T: Copy>(pointer: *const T) -> T {
    unsafe { core::ptr::read_volatile(pointer) }
}

/// Reads four words of an IPv6 address field.
#[inline(always)]
fn words(pointer: *const [u32; 4]) -> [u32; 4] {
    let first: *const u32 = pointer.cast();
    unsafe { [field(first), field(first.add(1)), field(first.add(2)), field(first.add(3))] }
}

/// Writes a context field, volatile for the same reason as [`field`].
#[inline(always)]
fn set_field<T: Copy>(pointer: *mut T, value: T) {
    unsafe { core::ptr::write_volatile(pointer, value) }
}

/// Adds one to `counter` and returns the new value of this CPU.
#[inline(always)]
fn count(counter: Counter) -> u64 {
    match maps::COUNTERS.get_ptr_mut(counter as u32) {
        Some(cell) => unsafe {
            *cell += 1;
            *cell
        },
        None => 0,
    }
}

/// Counts a failure and says whether it is worth a log line: the first of its kind on a CPU, then one in 1,024.
#[inline(always)]
fn count_failure(counter: Counter) -> bool {
    count(counter) & 1023 == 1
}

/// The configuration, or nothing before user space has written one of this layout.
#[inline(always)]
fn config() -> Option<Config> {
    let config = maps::CONFIG.get(0)?;
    if config.layout == u32::from(causeway_ebpf::abi::LAYOUT_VERSION) { Some(*config) } else { None }
}
