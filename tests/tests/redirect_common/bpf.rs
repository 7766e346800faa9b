//! The few `bpf` commands the tests need: other people's programs, and maps filled from outside.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const LINK_CREATE: libc::c_long = 28;

fn call(command: libc::c_long, attribute: &mut [u64; 18]) -> io::Result<i32> {
    let size = size_of_val(attribute);
    // SAFETY: the attribute is valid for `size` bytes, and what it points to lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor for the caller.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Opens a pinned object.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attribute = [0; 18];
    attribute[0] = name.as_ptr() as u64;
    call(OBJ_GET, &mut attribute).map(owned)
}

/// Writes an entry of a map.
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attribute = [0; 18];
    attribute[..3].copy_from_slice(&[map.as_raw_fd() as u64, key.as_ptr() as u64, value.as_ptr() as u64]);
    call(MAP_UPDATE, &mut attribute).map(drop)
}

/// Reads an entry of a map.
pub fn look_up(map: &OwnedFd, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attribute = [0; 18];
    attribute[..3].copy_from_slice(&[map.as_raw_fd() as u64, key.as_ptr() as u64, value.as_mut_ptr() as u64]);
    call(MAP_LOOKUP, &mut attribute).map(drop)
}

/// How many entries a map has whose keys are `N` bytes long.
pub fn count<const N: usize>(map: &OwnedFd) -> usize {
    let mut keys: Vec<[u8; N]> = Vec::new();
    loop {
        let previous = keys.last().map_or(0, |key| key.as_ptr() as u64);
        let mut next = [0u8; N];
        let mut attribute = [0; 18];
        attribute[..3].copy_from_slice(&[map.as_raw_fd() as u64, previous, next.as_mut_ptr() as u64]);
        match call(MAP_NEXT_KEY, &mut attribute) {
            Ok(_) => keys.push(next),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return keys.len(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Removes an entry of a map.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attribute = [0; 18];
    attribute[..2].copy_from_slice(&[map.as_raw_fd() as u64, key.as_ptr() as u64]);
    call(MAP_DELETE, &mut attribute).map(drop)
}

/// A connect-time load balancer: connections to `vip` go to `backend`. Both are IPv4 in network byte order.
pub fn load_vip_translator(vip: u32, backend: u32) -> io::Result<OwnedFd> {
    const CGROUP_SOCK_ADDR: u64 = 18;
    const CONNECT4: u64 = 10;
    let instruction = |code: u8, registers: u8, offset: i16, immediate: u32| {
        u64::from(code) | u64::from(registers) << 8 | u64::from(offset as u16) << 16 | u64::from(immediate) << 32
    };
    let program = [
        instruction(0x61, 0x12, 4, 0),       // r2 = context->user_ip4
        instruction(0x56, 0x02, 2, vip),     // if (u32) r2 != vip, skip two
        instruction(0xb4, 0x03, 0, backend), // (u32) r3 = backend
        instruction(0x63, 0x31, 4, 0),       // context->user_ip4 = r3
        instruction(0xb7, 0x00, 0, 1),       // r0 = 1
        instruction(0x95, 0, 0, 0),          // exit
    ];
    let license = c"GPL";
    let mut attribute = [0; 18];
    attribute[0] = CGROUP_SOCK_ADDR | (program.len() as u64) << 32;
    attribute[1] = program.as_ptr() as u64;
    attribute[2] = license.as_ptr() as u64;
    attribute[8] = CONNECT4 << 32; // prog_ifindex and expected_attach_type share the word at byte 64
    call(PROG_LOAD, &mut attribute).map(owned)
}

/// Attaches a connect4 program to a cgroup until the link is dropped.
pub fn attach_connect4(program: BorrowedFd<'_>, cgroup: &Path) -> io::Result<OwnedFd> {
    const CONNECT4: u64 = 10;
    let folder = std::fs::File::open(cgroup)?;
    let mut attribute = [0; 18];
    attribute[0] = program.as_raw_fd() as u64 | (folder.as_raw_fd() as u64) << 32;
    attribute[1] = CONNECT4;
    call(LINK_CREATE, &mut attribute).map(owned)
}
