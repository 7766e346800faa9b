//! The kernel programs. Every file below `programs` serves one hook and has three parts: gather the context, ask
//! [`causeway_ebpf::decide`] for the verdict, apply it.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "contexts are raw pointers of the kernel; the verifier proves every access")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "every block has that one contract with the verifier")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "context fields are read in groups under that proof")]

mod programs;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
