//! Closing the connections that were open before a pod was enrolled. Runs on a thread inside its namespace.

use std::io;
use std::net::IpAddr;

use causeway_ebpf::abi::{DELIVERY_MARK, MARK_MASK, UPSTREAM_MARK};

use super::netlink::{FLAG_ACK, FLAG_DUMP, Netlink, Request, number};
use super::podnet::StepError;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Length of `struct inet_diag_sockid`: ports, addresses, device, cookie.
const ID_LENGTH: usize = 48;
/// Length of `struct inet_diag_msg` before its attributes.
const MESSAGE_LENGTH: usize = 72;

/// A connection as the kernel lists it.
struct Connection {
    family: u8,
    /// `struct inet_diag_sockid`, as the kernel wants it back.
    id: [u8; ID_LENGTH],
    mark: u32,
}

/// Resets every TCP connection of the current namespace that goes past the engine: not those within the pod (redirected ones
/// are of that kind), and not those of the engine, which carry its marks.
pub(super) fn close_existing() -> Result<(), StepError> {
    let failed = |source: io::Error| {
        let action = match source.raw_os_error() {
            Some(libc::ENOENT) => {
                "listing open connections (load the kernel module tcp_diag, or enrol with existing: keep)"
            }
            Some(libc::EOPNOTSUPP) => {
                "closing open connections (the kernel lacks CONFIG_INET_DIAG_DESTROY; enrol with existing: keep)"
            }
            _ => "closing open connections",
        };
        StepError { action: action.to_owned(), source }
    };
    let netlink = Netlink::diag().map_err(failed)?;
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut open = Vec::new();
        let listed = netlink.dump(list_request(family), SOCK_DIAG_BY_FAMILY, |body| open.extend(parse(body)));
        listed.map_err(failed)?;
        for connection in open.iter().filter(|connection| connection.is_past_the_engine()) {
            let request = request(SOCK_DESTROY, FLAG_ACK, connection.family, 0, &connection.id);
            match netlink.acknowledged(request.finish()) {
                // It ended by itself meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other.map_err(failed)?,
            }
        }
    }
    Ok(())
}

fn list_request(family: u8) -> Request {
    /// Every state but LISTEN (10), CLOSE (7), TIME_WAIT (6) and NEW_SYN_RECV (12).
    const STATES: u32 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11);
    request(SOCK_DIAG_BY_FAMILY, FLAG_DUMP, family, STATES, &[0; ID_LENGTH])
}

/// `struct inet_diag_req_v2`.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID_LENGTH]) -> Request {
    let mut fixed = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    fixed.extend_from_slice(&states.to_ne_bytes());
    fixed.extend_from_slice(id);
    Request::new(kind, flags, &fixed)
}

fn parse(body: &[u8]) -> Option<Connection> {
    const MARK: u32 = 15;
    let family = *body.first()?;
    let id = *body.get(4..)?.first_chunk::<ID_LENGTH>()?;
    let mut mark = 0;
    let mut rest = body.get(MESSAGE_LENGTH..)?;
    while let Some(head) = number(rest, 0) {
        let length = (head & 0xffff) as usize;
        if head >> 16 == MARK {
            mark = number(rest, 4)?;
        }
        if length < 4 {
            break;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Connection { family, id, mark })
}

impl Connection {
    fn is_past_the_engine(&self) -> bool {
        let (Some(source), Some(destination)) = (self.address(4), self.address(20)) else { return false };
        let ours = [UPSTREAM_MARK, DELIVERY_MARK].contains(&(self.mark & MARK_MASK));
        !ours && source != destination && !source.is_loopback() && !destination.is_loopback()
    }

    /// The address at an offset of the id.
    fn address(&self, offset: usize) -> Option<IpAddr> {
        if i32::from(self.family) == libc::AF_INET {
            return Some(IpAddr::from(*self.id.get(offset..)?.first_chunk::<4>()?));
        }
        Some(IpAddr::from(*self.id.get(offset..)?.first_chunk::<16>()?).to_canonical())
    }
}
