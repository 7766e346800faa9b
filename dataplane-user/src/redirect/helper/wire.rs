//! Messages between the daemon and the helper: one packet each, little-endian fields behind a tag, descriptors beside it.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::redirect::system::own;

/// Longest packet, in bytes.
pub(crate) const PACKET_LENGTH: usize = 4096;
/// Most descriptors in one packet; the kernel's own limit is 253.
pub(crate) const MAX_FDS: usize = 64;

/// Tags of packets; the field layout stands with each.
pub(crate) mod tag {
    /// Daemon to helper: a descriptor, the worker channel to serve from now on.
    pub const CHANNEL: u8 = 1;
    /// Daemon to helper: pod, workers; the namespace as descriptor.
    pub const OPEN: u8 = 2;
    /// Helper to daemon: one worker's listeners as descriptors, outbound, plaintext, HBONE.
    pub const LISTENERS: u8 = 3;
    /// Helper to daemon: saved sysctls, then addresses; the last answer to `OPEN`.
    pub const OPENED: u8 = 4;
    /// Daemon to helper: saved sysctls; the namespace as descriptor.
    pub const UNDO: u8 = 5;
    /// Daemon to helper: pod; no more sockets for it.
    pub const FORGET: u8 = 6;
    /// Daemon to helper: the namespace as descriptor; reset the connections that are open past the engine.
    pub const CLOSE_EXISTING: u8 = 11;
    /// Daemon to helper: an address, then ports as numbers; the namespace as descriptor. Asks for one DNS socket for each port,
    /// bound to it where it is free.
    pub const DNS: u8 = 12;
    /// Helper to daemon: DNS sockets as descriptors.
    pub const DNS_SOCKETS: u8 = 13;
    /// Daemon to helper: what [`entry::Wanted`](super::super::entry::Wanted) writes; the node's namespace as descriptor.
    pub const ENTRY: u8 = 14;
    /// Helper to daemon: index of the device, number of uplinks, name and index of each, addresses; the entry's namespace as
    /// descriptor.
    pub const ENTRY_OPENED: u8 = 15;
    /// Daemon to helper: index of a device; its namespace and a program as descriptors.
    pub const ATTACH: u8 = 16;
    /// Helper to daemon: the link as descriptor.
    pub const ATTACHED: u8 = 17;
    /// Daemon to helper: port, workers; a namespace as descriptor.
    pub const LISTEN: u8 = 18;
    /// Helper to daemon: how many listeners follow after these; these as descriptors.
    pub const LISTENING: u8 = 19;
    /// Daemon to helper: name of the instance whose entry is to be removed.
    pub const ENTRY_CLOSE: u8 = 20;
    /// Daemon to helper: family; the namespace as descriptor. Asks for one socket of the kind `Upstream`.
    pub const SOCKET: u8 = 21;
    /// Helper to daemon: that socket as descriptor.
    pub const ONE_SOCKET: u8 = 22;
    /// Helper to daemon: done.
    pub const DONE: u8 = 7;
    /// Helper to daemon: errno, then what was tried as text.
    pub const FAILED: u8 = 8;
    /// Worker to helper: pod, kind, family, count.
    pub const SOCKETS: u8 = 9;
    /// Helper to worker: pod, kind, family, errno; the sockets as descriptors.
    pub const BATCH: u8 = 10;
}

/// Builds one packet.
#[derive(Debug)]
pub(crate) struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    /// A packet with this tag and no fields yet.
    pub fn new(tag: u8) -> Self {
        Self { bytes: vec![tag] }
    }
    /// Appends a byte.
    pub fn u8(mut self, value: u8) -> Self {
        self.bytes.push(value);
        self
    }
    /// Appends a number.
    pub fn u32(mut self, value: u32) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// Appends a signed number.
    pub fn i32(mut self, value: i32) -> Self {
        self.bytes.extend_from_slice(&value.to_le_bytes());
        self
    }
    /// Appends bytes as they are; only the last field may be of variable length.
    pub fn bytes(mut self, value: &[u8]) -> Self {
        let room = PACKET_LENGTH.saturating_sub(self.bytes.len());
        self.bytes.extend(value.iter().take(room));
        self
    }
    /// Appends an address: its length of 4 or 16, then that many bytes.
    pub fn address(self, address: std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V4(v4) => self.u8(4).bytes(&v4.octets()),
            std::net::IpAddr::V6(v6) => self.u8(16).bytes(&v6.octets()),
        }
    }
    /// Appends a text of up to 255 bytes: its length, then its bytes.
    pub fn text(self, value: &str) -> Self {
        let bytes = value.as_bytes();
        let bytes = bytes.get(..255).unwrap_or(bytes);
        self.u8(bytes.len() as u8).bytes(bytes)
    }
    /// Sends the packet with descriptors beside it.
    pub fn send(&self, channel: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(channel, &self.bytes, fds)
    }
}

/// Reads the fields of one packet in order.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte, the tag.
    pub fn new(packet: &'a [u8]) -> Self {
        Self { rest: packet }
    }
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (field, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "packet too short"))?;
        self.rest = rest;
        Ok(*field)
    }
    /// The next byte.
    pub fn u8(&mut self) -> io::Result<u8> {
        self.take::<1>().map(|[byte]| byte)
    }
    /// The next number.
    pub fn u32(&mut self) -> io::Result<u32> {
        self.take().map(u32::from_le_bytes)
    }
    /// The next signed number.
    pub fn i32(&mut self) -> io::Result<i32> {
        self.take().map(i32::from_le_bytes)
    }
    /// The next address: a length of 4 or 16, then that many bytes. Nothing at the end of the packet.
    pub fn address(&mut self) -> io::Result<Option<std::net::IpAddr>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        match self.u8()? {
            4 => Ok(Some(std::net::IpAddr::from(self.take::<4>()?))),
            16 => Ok(Some(std::net::IpAddr::from(self.take::<16>()?))),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "address of unknown length")),
        }
    }
    /// Every address up to the end of the packet.
    pub fn addresses(&mut self) -> io::Result<Vec<std::net::IpAddr>> {
        let mut found = Vec::new();
        while let Some(address) = self.address()? {
            found.push(address);
        }
        Ok(found)
    }
    /// The next text.
    pub fn text(&mut self) -> io::Result<String> {
        let length = usize::from(self.u8()?);
        let short = || io::Error::new(io::ErrorKind::InvalidData, "packet too short");
        let (text, rest) = self.rest.split_at_checked(length).ok_or_else(short)?;
        self.rest = rest;
        String::from_utf8(text.to_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
    /// Everything that is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Room for a control message with [`MAX_FDS`] descriptors, aligned as the kernel wants it.
#[repr(C, align(8))]
struct ControlBuffer([u8; 512]);

const _: () = assert!(size_of::<ControlBuffer>() >= 16 + MAX_FDS * size_of::<RawFd>());

fn send(channel: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
    }
    let mut control = ControlBuffer([0; 512]);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the structure holds integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let payload = size_of_val(fds) as u32 / size_of::<BorrowedFd<'_>>() as u32 * size_of::<RawFd>() as u32;
        header.msg_control = (&raw mut control).cast();
        // SAFETY: a computation on its argument only.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as _;
        // SAFETY: `msg_control` points to a buffer larger than one header.
        let message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // C libraries differ in what they pad the header with.
        // SAFETY: the structure holds integers, for which zero is a value.
        let mut head: libc::cmsghdr = unsafe { zeroed() };
        // SAFETY: a computation on its argument only.
        head.cmsg_len = unsafe { libc::CMSG_LEN(payload) } as _;
        head.cmsg_level = libc::SOL_SOCKET;
        head.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: `message` lies in `control`, which is aligned and large enough.
        unsafe { message.write(head) };
        // SAFETY: as above; the data part follows the header.
        let data = unsafe { libc::CMSG_DATA(message) };
        for (index, fd) in fds.iter().enumerate() {
            // SAFETY: the buffer has room for MAX_FDS descriptors, checked above.
            let slot = unsafe { data.cast::<RawFd>().add(index) };
            // SAFETY: as above; the data part may be unaligned for wider types.
            unsafe { slot.write_unaligned(fd.as_raw_fd()) };
        }
    }
    loop {
        // SAFETY: the header points to buffers that live until the call returns.
        let sent = unsafe { libc::sendmsg(channel.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one packet into `buffer`; returns its length and the descriptors beside it. Length 0 means the other side is gone.
pub(crate) fn receive(channel: BorrowedFd<'_>, buffer: &mut [u8; PACKET_LENGTH]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = ControlBuffer([0; 512]);
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the structure holds integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<ControlBuffer>() as _;
    let received = loop {
        // SAFETY: the header points to buffers that live until the call returns.
        let received = unsafe { libc::recvmsg(channel.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if received >= 0 {
            break received as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let fds = received_fds(&header);
    if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet was cut short"));
    }
    Ok((received, fds))
}

/// Takes ownership of the descriptors in a received header.
fn received_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control buffer the header points to.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: `message` is a header inside the control buffer.
        let head = unsafe { message.read_unaligned() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: a computation on its argument only.
            let overhead = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (head.cmsg_len as usize).saturating_sub(overhead) / size_of::<RawFd>();
            // SAFETY: the data part follows the header.
            let data = unsafe { libc::CMSG_DATA(message) };
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptors.
                let slot = unsafe { data.cast::<RawFd>().add(index) };
                // SAFETY: as above; the data part may be unaligned.
                let fd = unsafe { slot.read_unaligned() };
                fds.push(own(fd));
            }
        }
        // SAFETY: both pointers belong to the same control buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    fds
}

/// A connected pair of packet channels.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `fds` has room for the two descriptors.
    crate::redirect::system::check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    let [left, right] = fds;
    Ok((own(left), own(right)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn packets_carry_fields_and_descriptors() {
        let (left, right) = pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        Packet::new(tag::OPEN)
            .u32(7)
            .u8(3)
            .i32(-5)
            .bytes(b"tail")
            .send(left.as_fd(), &[reader.as_fd(), writer.as_fd()])
            .unwrap();
        let mut buffer = [0; PACKET_LENGTH];
        let (length, mut fds) = receive(right.as_fd(), &mut buffer).unwrap();
        let mut fields = Reader::new(&buffer[..length]);
        assert_eq!((fields.u8().unwrap(), fields.u32().unwrap(), fields.u8().unwrap()), (tag::OPEN, 7, 3));
        assert_eq!((fields.i32().unwrap(), fields.rest()), (-5, &b"tail"[..]));
        assert!(fields.u32().is_ok() && fields.u8().is_err(), "four bytes were left");
        assert_eq!(fds.len(), 2);
        let mut other_writer = std::fs::File::from(fds.pop().unwrap());
        let mut other_reader = std::fs::File::from(fds.pop().unwrap());
        let mut byte = [0];
        writer.write_all(b"a").unwrap();
        other_reader.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"a");
        other_writer.write_all(b"b").unwrap();
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        drop(left);
        assert_eq!(receive(right.as_fd(), &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn as_many_descriptors_as_promised_fit() {
        let (left, right) = pair().unwrap();
        let fds = vec![left.as_fd(); MAX_FDS];
        Packet::new(tag::BATCH).send(left.as_fd(), &fds).unwrap();
        let mut buffer = [0; PACKET_LENGTH];
        assert_eq!(receive(right.as_fd(), &mut buffer).unwrap().1.len(), MAX_FDS);
        let fds = vec![left.as_fd(); MAX_FDS + 1];
        assert!(Packet::new(tag::BATCH).send(left.as_fd(), &fds).is_err());
    }
}
