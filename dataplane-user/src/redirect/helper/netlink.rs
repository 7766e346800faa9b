//! The few rtnetlink requests an enrolment needs, written by hand: rules, routes and addresses of the current namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::redirect::system::{check, socket};

/// Kinds of a `local default dev lo` route and the rule that selects its table; both families get the same.
pub(super) const TABLE: u32 = 100;
/// Place of the rule among the others; the rule for local addresses comes first at 0.
const PRIORITY: u32 = 100;
/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const FLAG_REQUEST: u16 = 1;
pub(super) const FLAG_ACK: u16 = 4;
pub(super) const FLAG_EXCLUSIVE: u16 = 0x200;
pub(super) const FLAG_CREATE: u16 = 0x400;
pub(super) const FLAG_REPLACE: u16 = 0x100;
pub(super) const FLAG_DUMP: u16 = 0x300;

/// Address family of a rule or route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Family {
    V4 = libc::AF_INET as u8,
    V6 = libc::AF_INET6 as u8,
}

/// A netlink request under construction: header, fixed part, attributes.
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | FLAG_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }
    pub(super) fn attribute(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }
    /// An attribute whose value is these bytes.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&attribute(kind, value));
        self
    }
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        for (byte, value) in self.0.iter_mut().zip(length.to_ne_bytes()) {
            *byte = value;
        }
        self.0
    }
}

/// An attribute as it lies in a message, with what fills it up to a multiple of four.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend_from_slice(&(length as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Attributes behind the fixed part of a message: kind and value.
pub(super) fn attributes(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    /// Bits of the kind that say how the value is laid out.
    const FLAGS: u16 = 0xc000;
    let mut found = Vec::new();
    while let Some(head) = number(rest, 0) {
        let (length, kind) = ((head & 0xffff) as usize, (head >> 16) as u16);
        let Some(value) = rest.get(4..length) else {
            break;
        };
        found.push((kind & !FLAGS, value));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// A netlink socket of the current namespace.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// For rules, routes and addresses.
    pub(super) fn route() -> io::Result<Self> {
        Ok(Self(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?))
    }

    /// For looking at sockets and closing them.
    pub(super) fn diag() -> io::Result<Self> {
        Ok(Self(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)?))
    }

    /// Adds the rule `fwmark <mark>/<mask> lookup 100`; one that is there already is fine.
    pub(super) fn add_rule(&self, family: Family, mark: u32, mask: u32) -> io::Result<()> {
        let flags = FLAG_ACK | FLAG_CREATE | FLAG_EXCLUSIVE;
        accept(self.acknowledged(rule(RTM_NEWRULE, flags, family, mark, mask)), libc::EEXIST)
    }

    /// Removes that rule; one that is not there is fine.
    pub(super) fn remove_rule(&self, family: Family, mark: u32, mask: u32) -> io::Result<()> {
        accept(self.acknowledged(rule(RTM_DELRULE, FLAG_ACK, family, mark, mask)), libc::ENOENT)
    }

    /// Adds the route `local default dev lo table 100`; one that is there already is fine.
    pub(super) fn add_local_route(&self, family: Family) -> io::Result<()> {
        let flags = FLAG_ACK | FLAG_CREATE | FLAG_EXCLUSIVE;
        accept(self.acknowledged(local_route(RTM_NEWROUTE, flags, family)), libc::EEXIST)
    }

    /// Removes that route; one that is not there is fine.
    pub(super) fn remove_local_route(&self, family: Family) -> io::Result<()> {
        accept(self.acknowledged(local_route(RTM_DELROUTE, FLAG_ACK, family)), libc::ESRCH)
    }

    /// Addresses of global scope on every device but loopback, in the order of the kernel.
    pub(super) fn addresses(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        let request = Request::new(RTM_GETADDR, FLAG_DUMP, &[0; 8]);
        let mut addresses = Vec::new();
        self.dump(request, RTM_NEWADDR, |body| addresses.extend(address_of(body)))?;
        Ok(addresses)
    }

    /// Lists objects: `each` sees the body of every message of type `wanted`.
    pub(super) fn dump(&self, request: Request, wanted: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(&request.finish())?;
        loop {
            let reply = self.receive()?;
            for (kind, body) in messages(&reply) {
                match kind {
                    // A dump that failed says so in its last message.
                    NLMSG_DONE => return error_of(body).map_or(Ok(()), Err),
                    NLMSG_ERROR => {
                        return Err(error_of(body).unwrap_or_else(|| io::Error::other("netlink: empty answer")));
                    }
                    kind if kind == wanted => each(body),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn acknowledged(&self, request: Vec<u8>) -> io::Result<()> {
        self.send(&request)?;
        let reply = self.receive()?;
        for (kind, body) in messages(&reply) {
            if kind == NLMSG_ERROR {
                return error_of(body).map_or(Ok(()), Err);
            }
        }
        Err(io::Error::other("netlink: no acknowledgement"))
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer is valid for the length passed.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        check(sent as libc::c_int).map(drop)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0u8; 32 * 1024];
        // SAFETY: the pointer is valid for the length passed.
        let received = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let length = check(received as libc::c_int)?;
        buffer.truncate(length as usize);
        Ok(buffer)
    }
}

/// Takes one error as success.
pub(super) fn accept(result: io::Result<()>, fine: i32) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(fine) => Ok(()),
        other => other,
    }
}

fn rule(kind: u16, flags: u16, family: Family, mark: u32, mask: u32) -> Vec<u8> {
    const TO_TABLE: u8 = 1;
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    const FRA_FWMASK: u16 = 16;
    // struct fib_rule_hdr: family, dst_len, src_len, tos, table, two reserved, action, flags.
    let fixed = [family as u8, 0, 0, 0, TABLE as u8, 0, 0, TO_TABLE, 0, 0, 0, 0];
    Request::new(kind, flags, &fixed)
        .attribute(FRA_PRIORITY, PRIORITY)
        .attribute(FRA_FWMARK, mark)
        .attribute(FRA_FWMASK, mask)
        .attribute(FRA_TABLE, TABLE)
        .finish()
}

fn local_route(kind: u16, flags: u16, family: Family) -> Vec<u8> {
    const RTA_OIF: u16 = 4;
    const RTA_TABLE: u16 = 15;
    const PROTOCOL_STATIC: u8 = 4;
    const SCOPE_HOST: u8 = 254;
    const TYPE_LOCAL: u8 = 2;
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
    let fixed = [family as u8, 0, 0, 0, TABLE as u8, PROTOCOL_STATIC, SCOPE_HOST, TYPE_LOCAL, 0, 0, 0, 0];
    Request::new(kind, flags, &fixed).attribute(RTA_OIF, LOOPBACK).attribute(RTA_TABLE, TABLE).finish()
}

/// Splits a reply into messages: type and body.
fn messages(reply: &[u8]) -> Vec<(u16, &[u8])> {
    let mut rest = reply;
    let mut found = Vec::new();
    while let Some((length, kind)) = number(rest, 0).zip(number(rest, 4)) {
        let (length, kind) = (length as usize, kind as u16);
        let Some(body) = rest.get(16..length) else {
            break;
        };
        found.push((kind, body));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

pub(super) fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let field: [u8; 4] = bytes.get(offset..offset + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(field))
}

/// The error in an acknowledgement; none if it says success.
fn error_of(body: &[u8]) -> Option<io::Error> {
    match number(body, 0)? as i32 {
        0 => None,
        error => Some(io::Error::from_raw_os_error(-error)),
    }
}

/// Index of the device and address in an `RTM_NEWADDR` body, if it is one a pod is reached by.
fn address_of(body: &[u8]) -> Option<(u32, IpAddr)> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const SCOPE_GLOBAL: u8 = 0;
    // struct ifaddrmsg: family, prefixlen, flags, scope, index.
    let scope = *body.get(3)?;
    let index = number(body, 4)?;
    if index == LOOPBACK || scope != SCOPE_GLOBAL {
        return None;
    }
    let mut address = None;
    for (kind, value) in attributes(body.get(8..)?) {
        // On a point-to-point device IFA_ADDRESS is the peer's and IFA_LOCAL our own.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && address.is_none()) {
            address = parse(value);
        }
    }
    Some((index, address?))
}

pub(super) fn parse(value: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(value).ok().map(IpAddr::from)
}
