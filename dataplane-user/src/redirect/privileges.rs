//! What each process keeps of its privileges once it has started (capabilities(7)).

use std::io;

use super::system::check;

const NET_ADMIN: u32 = 12;
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// A process of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Loads and attaches programs, opens namespace files of other users' processes, marks sockets. Never enters a namespace.
    Engine,
    /// A gateway that has no programs. Takes profiles where it was let; everything else it does, anybody may.
    Gateway,
    /// Enters namespaces, opens sockets there, writes rules and the namespace's sysctl values. Never touches a program.
    NetnsHelper,
}

impl Role {
    /// The capabilities of the role as a bit set.
    #[must_use]
    pub fn capabilities(self) -> u64 {
        let kept: &[u32] = match self {
            Role::Engine => &[NET_ADMIN, SYS_PTRACE, PERFMON, BPF],
            Role::Gateway => &[PERFMON],
            Role::NetnsHelper => &[NET_ADMIN, SYS_ADMIN],
        };
        kept.iter().fold(0, |set, bit| set | 1 << bit)
    }
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: the kernel takes two, low half first.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, for 64 bits.
const VERSION: u32 = 0x2008_0522;

/// Gives up every capability that `role` does not need, for this thread and those it starts, for good.
///
/// # Errors
/// Those of `capget` and `capset`; the process must not go on then.
pub fn keep_only(role: Role) -> io::Result<()> {
    let wanted = role.capabilities();
    let mut header = Header { version: VERSION, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: the header names version 3, for which the kernel fills two data structures.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } as libc::c_int)?;
    for (half, wanted) in data.iter_mut().zip([wanted as u32, (wanted >> 32) as u32]) {
        half.permitted &= wanted;
        half.effective &= wanted;
        half.inheritable = 0;
    }
    // SAFETY: no pointer is passed. A program started by mistake must not get back what was given up.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: as for capget; the kernel only reads.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } as libc::c_int)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_helper_may_enter_namespaces_and_only_the_engine_loads_programs() {
        let has = |role: Role, bit: u32| role.capabilities() >> bit & 1 == 1;
        assert!(has(Role::NetnsHelper, SYS_ADMIN) && !has(Role::Engine, SYS_ADMIN));
        assert!(has(Role::Engine, BPF) && !has(Role::NetnsHelper, BPF));
    }
}
