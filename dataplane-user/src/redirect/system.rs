//! System calls that have no safe wrapper elsewhere, as small safe functions.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Turns the C convention (-1 and errno) into a result.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new socket, close-on-exec.
pub(super) fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed; the result is checked before use.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    Ok(own(fd))
}

/// Takes ownership of a descriptor the kernel has just returned.
pub(super) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass a descriptor that was just created for them, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Sets a socket option whose value is `value` as it lies in memory.
pub(super) fn set_option<T: Copy>(socket: BorrowedFd<'_>, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let pointer = std::ptr::from_ref(value).cast();
    // SAFETY: `pointer` is valid for `length` bytes during the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, length) })?;
    Ok(())
}

/// Reads a socket option into `value`; returns how many bytes the kernel wrote.
pub(super) fn get_option<T: Copy>(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut T) -> io::Result<usize> {
    let mut length = size_of::<T>() as libc::socklen_t;
    let pointer = std::ptr::from_mut(value).cast();
    // SAFETY: `pointer` is valid for `length` bytes during the call; callers choose types for which every bit pattern is a value.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut length) })?;
    Ok(length as usize)
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointer is passed. The namespace of this thread alone changes.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

/// The network namespace of the calling thread.
pub(super) fn current_netns() -> io::Result<OwnedFd> {
    Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into())
}

/// Cookie of the network namespace a socket lives in.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// `SO_NETNS_COOKIE`, since Linux 5.14.
    const NETNS_COOKIE: i32 = 71;
    let mut cookie = 0u64;
    get_option(socket, libc::SOL_SOCKET, NETNS_COOKIE, &mut cookie)?;
    Ok(cookie)
}

/// Runs `action` on a thread of its own inside `netns` and returns its result.
pub(super) fn in_netns<T: Send>(netns: BorrowedFd<'_>, action: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            enter_netns(netns)?;
            action()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread inside the namespace panicked")))
    })
}

/// Watches a descriptor for input on the current runtime.
pub(super) fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: callers pass owners of an open descriptor that keep it until they are dropped.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}

/// Makes `close` reset the connection instead of finishing it.
///
/// # Errors
/// Those of `setsockopt(SO_LINGER)`.
pub fn set_reset_on_close(stream: &tokio::net::TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// What the kernel knows about a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Segments sent and not yet acknowledged.
    pub unacked: u32,
    /// Bytes the peer has acknowledged since the connection was made.
    pub bytes_acked: u64,
    /// Time since data was last received.
    pub last_data_received: Duration,
    /// Segments sent again since the connection was made.
    pub total_retransmits: u32,
}

/// Reads `TCP_INFO` of a socket.
///
/// # Errors
/// Those of `getsockopt`.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    // SAFETY: the structure holds integers only, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    get_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)?;
    Ok(TcpInfo {
        rtt: Duration::from_micros(info.tcpi_rtt.into()),
        unacked: info.tcpi_unacked,
        bytes_acked: info.tcpi_bytes_acked,
        last_data_received: Duration::from_millis(info.tcpi_last_data_recv.into()),
        total_retransmits: info.tcpi_total_retrans,
    })
}

/// Numbers of the CPUs this process may run on, ascending.
///
/// # Errors
/// Those of `sched_getaffinity`.
pub fn online_cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a CPU set is a bit field; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: `set` is valid for the size passed.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) })?;
    let limit = size_of::<libc::cpu_set_t>() * 8;
    // SAFETY: the index stays below the number of bits of the set.
    Ok((0..limit).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// Those of `sched_setaffinity`; `EINVAL` if there is no such CPU.
pub fn pin_thread_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= size_of::<libc::cpu_set_t>() * 8 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: a CPU set is a bit field; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the index was checked against the number of bits of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is valid for the size passed.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) })?;
    Ok(())
}

/// Raises the limit of open descriptors to what the process may have; returns the new limit.
///
/// # Errors
/// Those of `setrlimit`.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid structure for the call to fill.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let wanted = most.unwrap_or(limit.rlim_max).max(limit.rlim_max);
    // Raising the hard limit needs a privilege; without it the hard limit is the best there is.
    let raised = libc::rlimit { rlim_cur: wanted, rlim_max: wanted };
    // SAFETY: `raised` is a valid structure that the call only reads.
    if check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) }).is_ok() {
        return Ok(wanted);
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: as above.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) })?;
    Ok(limit.rlim_max)
}

/// Keeps memory of the size of the engine's buffers in the process instead of returning it to the kernel after every use.
///
/// glibc maps allocations above 128 KiB one by one and gives the top of its heap back as soon as 128 KiB of it are free
/// (mallopt(3)). Buffers of 256 KiB then cost a page fault per 4 KiB carried: half of the throughput of a bulk stream.
/// Up to 16 MiB per thread stay with the process in return. Other C libraries are left as they are.
pub fn keep_buffers() {
    #[cfg(target_env = "gnu")]
    for (option, bytes) in [(libc::M_MMAP_THRESHOLD, MAPPED_BYTES), (libc::M_TRIM_THRESHOLD, KEPT_BYTES)] {
        // SAFETY: both options take a size in bytes and are read under the allocator's own lock.
        let accepted = unsafe { libc::mallopt(option, bytes) };
        if accepted != 1 {
            log_refused(option);
        }
    }
}

/// What the allocator holds, in bytes (mallinfo2(3)); all arenas together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// Taken from the kernel for the arenas.
    pub arenas: u64,
    /// Of that, in use.
    pub used: u64,
    /// Of that, free.
    pub free: u64,
    /// Large allocations, mapped one by one.
    pub mapped: u64,
    /// Number of those.
    pub mappings: u64,
}

/// Asks the allocator; nothing where the C library does not tell.
pub fn heap() -> Option<Heap> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it only reads, under the allocator's own locks.
        let info = unsafe { libc::mallinfo2() };
        let number = |value: libc::size_t| value as u64;
        Some(Heap {
            arenas: number(info.arena),
            used: number(info.uordblks),
            free: number(info.fordblks),
            mapped: number(info.hblkhd),
            mappings: number(info.hblks),
        })
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// Gives memory that is free back to the kernel, also what lies between used pieces. For after a large change: it looks at
/// the whole heap, some milliseconds for a hundred MiB.
pub fn return_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it only releases pages that hold no allocation, under the allocator's own locks.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

/// Allocations from this size on are mapped one by one.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES: libc::c_int = 4 << 20;
/// Free memory at the end of a heap that is not returned.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 16 << 20;

#[cfg(target_env = "gnu")]
fn log_refused(option: libc::c_int) {
    tracing::warn!("the allocator refused option {option}: bulk streams will be slower");
}
