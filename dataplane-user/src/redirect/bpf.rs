//! The `bpf` system call where aya has no function for it: links that outlive their loader, by pin.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::system::own;

const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// Where a program is attached, by the kernel's numbers (`enum bpf_attach_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum AttachType {
    InetEgress = 1,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Peername4 = 29,
    Peername6 = 30,
    Sockname4 = 31,
    Sockname6 = 32,
    SkLookup = 36,
    /// Arrivals at a device, since Linux 6.6.
    TcxIngress = 46,
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkTarget {
    /// Id of the cgroup, inode of the network namespace or index of the device; 0 when that is gone.
    pub(super) id: u64,
    /// Id of the program.
    pub(super) program: u32,
}

/// The attribute union of the call; commands use its head.
#[repr(C, align(8))]
struct Attribute([u32; 32]);

impl Attribute {
    fn new(fields: &[u32]) -> Self {
        let mut words = [0; 32];
        for (word, field) in words.iter_mut().zip(fields) {
            *word = *field;
        }
        Self(words)
    }
}

fn call(command: libc::c_long, attribute: &mut Attribute) -> io::Result<i32> {
    let size = size_of::<Attribute>();
    // SAFETY: the attribute is valid for `size` bytes, and what it points to lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Both halves of a pointer as fields.
fn pointer<T>(pointer: *const T) -> [u32; 2] {
    let address = pointer as u64;
    let low = address as u32;
    let high = (address >> 32) as u32;
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "path with a zero byte"))
}

/// Makes `object` reachable under `path` on a BPF file system.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = text(path)?;
    let [low, high] = pointer(name.as_ptr());
    call(OBJ_PIN, &mut Attribute::new(&[low, high, object.as_raw_fd() as u32])).map(drop)
}

/// Opens the object pinned under `path`.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = text(path)?;
    let [low, high] = pointer(name.as_ptr());
    call(OBJ_GET, &mut Attribute::new(&[low, high])).map(own)
}

/// Attaches `program` to a cgroup or network namespace.
pub(super) fn link(program: BorrowedFd<'_>, target: BorrowedFd<'_>, kind: AttachType) -> io::Result<OwnedFd> {
    let fields = [program.as_raw_fd() as u32, target.as_raw_fd() as u32, kind as u32, 0];
    call(LINK_CREATE, &mut Attribute::new(&fields)).map(own)
}

/// Attaches `program` to what arrives at a device of the current namespace, before the programs that are there.
pub(super) fn device_link(program: BorrowedFd<'_>, device: u32) -> io::Result<OwnedFd> {
    /// `BPF_F_BEFORE`: with no other program named, the first place.
    const FIRST: u32 = 1 << 3;
    let fields = [program.as_raw_fd() as u32, device, AttachType::TcxIngress as u32, FIRST];
    call(LINK_CREATE, &mut Attribute::new(&fields)).map(own)
}

/// Replaces the program of a link. No connection sees the link without a program.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_UPDATE, &mut Attribute::new(&[link.as_raw_fd() as u32, program.as_raw_fd() as u32])).map(drop)
}

/// Detaches a link at once, also where others still hold it.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(LINK_DETACH, &mut Attribute::new(&[link.as_raw_fd() as u32])).map(drop)
}

/// What a cgroup or namespace link is attached to.
pub(super) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    const TYPE_CGROUP: u32 = 3;
    // struct bpf_link_info: type, id, prog_id, padding, then cgroup_id (64 bits), netns_ino or ifindex (32 bits).
    let mut info = [0u32; 32];
    let [low, high] = pointer(info.as_mut_ptr());
    let length = size_of_val(&info) as u32;
    call(OBJ_GET_INFO_BY_FD, &mut Attribute::new(&[link.as_raw_fd() as u32, length, low, high]))?;
    let [kind, _id, program, _pad, first, second, ..] = info;
    let id = if kind == TYPE_CGROUP {
        if cfg!(target_endian = "little") {
            u64::from(second) << 32 | u64::from(first)
        } else {
            u64::from(first) << 32 | u64::from(second)
        }
    } else {
        u64::from(first)
    };
    Ok(LinkTarget { id, program })
}
