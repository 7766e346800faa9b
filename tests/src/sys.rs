//! The few system calls of the kit that have no safe wrapper.
#![allow(unsafe_code, reason = "setns, signals, resource limits and socket options have no safe wrapper in std")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether the effective user is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Moves the calling thread into a network namespace.
///
/// # Errors
/// The error of `setns`.
pub fn setns_net(namespace: &File) -> io::Result<()> {
    setns_net_raw(namespace.as_raw_fd())
}

/// As [`setns_net`], for a descriptor number: only makes the system call, so it may run between fork and exec.
///
/// # Errors
/// The error of `setns`.
pub fn setns_net_raw(namespace: RawFd) -> io::Result<()> {
    // SAFETY: setns takes no pointers; a wrong descriptor is reported as an error.
    check(unsafe { libc::setns(namespace, libc::CLONE_NEWNET) })
}

/// Writes bytes to a descriptor number; may run between fork and exec.
///
/// # Errors
/// The error of `write`.
pub fn write_raw(descriptor: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live slice.
    let written = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Adds what a child process does between fork and exec: only system calls, no allocation.
pub fn before_exec(command: &mut std::process::Command, step: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    use std::os::unix::process::CommandExt;
    // SAFETY: the callers in this crate pass closures that only make system calls (setns, write).
    unsafe { command.pre_exec(step) };
}

/// Sends a signal to one process that we started.
///
/// # Errors
/// The error of `kill`, for example if the process is gone.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes no pointers.
    check(unsafe { libc::kill(pid, signal) })
}

/// Whether a process of this number exists.
pub fn is_alive(pid: u32) -> bool {
    kill(pid, 0).is_ok()
}

/// Raises the limit of open files to what the kernel allows for this user, at most `wanted`.
///
/// # Errors
/// The error of `setrlimit`.
pub fn raise_open_files(wanted: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
    // SAFETY: the pointer is to a live, initialised rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

/// From now on Ctrl-C and SIGTERM only set a flag, so that guards can clean up; see [`interrupted`].
pub fn catch_interrupts() {
    extern "C" fn remember(_signal: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is allowed in a signal handler.
        unsafe { libc::signal(signal, remember as *const () as libc::sighandler_t) };
    }
}

/// Whether a signal asked the program to end since [`catch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sets an integer socket option.
///
/// # Errors
/// The error of `setsockopt`.
pub fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = u32::try_from(size_of::<i32>()).unwrap_or(4);
    // SAFETY: the pointer is to a live i32 and the length is its size.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) })
}

/// Makes the close of a socket send RST.
///
/// # Errors
/// The error of `setsockopt`.
pub fn reset_on_close(socket: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let length = u32::try_from(size_of::<libc::linger>()).unwrap_or(8);
    // SAFETY: the pointer is to a live linger and the length is its size.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), length)
    })
}

/// The destination a connection had before netfilter redirected it (IPv4).
///
/// # Errors
/// The error of `getsockopt`, for example if nothing redirected it.
pub fn original_destination(socket: BorrowedFd<'_>) -> io::Result<std::net::SocketAddrV4> {
    let mut address =
        libc::sockaddr_in { sin_family: 0, sin_port: 0, sin_addr: libc::in_addr { s_addr: 0 }, sin_zero: [0; 8] };
    let mut length = u32::try_from(size_of::<libc::sockaddr_in>()).unwrap_or(16);
    // SAFETY: both pointers are to live values and the length is the size of the first.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            libc::SO_ORIGINAL_DST,
            (&raw mut address).cast(),
            &raw mut length,
        )
    })?;
    let ip = std::net::Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
    Ok(std::net::SocketAddrV4::new(ip, u16::from_be(address.sin_port)))
}

/// User and system time of all threads of this process.
pub fn cpu_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    std::time::Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
