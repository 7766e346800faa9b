//! The rtnetlink requests behind node ports: devices, their addresses, routes and neighbours of the current namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{
    FLAG_ACK, FLAG_CREATE, FLAG_DUMP, FLAG_EXCLUSIVE, FLAG_REPLACE, Netlink, RTM_GETADDR, RTM_NEWADDR, RTM_NEWROUTE,
    Request, accept, attribute, attributes, number, parse,
};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_DELADDR: u16 = 21;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const IFF_UP: u32 = 1;

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    /// `ARPHRD_*`: 1 is Ethernet.
    pub(super) kind: u16,
    /// Index of the device it is a port of; 0 for none.
    pub(super) master: u32,
    /// Hardware address.
    pub(super) address: Vec<u8>,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) ip: IpAddr,
    pub(super) prefix: u8,
    /// 0 is global.
    pub(super) scope: u8,
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn text(value: &str) -> Vec<u8> {
    [value.as_bytes(), &[0]].concat()
}

/// `struct ifinfomsg`: family, padding, type, index, flags, change.
fn link_head(index: u32, flags: u32) -> Vec<u8> {
    let mut head = vec![0; 4];
    for field in [index, flags, flags] {
        head.extend_from_slice(&field.to_ne_bytes());
    }
    head
}

impl Netlink {
    /// Every device.
    pub(super) fn links(&self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.dump(Request::new(RTM_GETLINK, FLAG_DUMP, &link_head(0, 0)), RTM_NEWLINK, |body| {
            links.extend(link(body));
        })?;
        Ok(links)
    }

    /// Every address of every device.
    pub(super) fn device_addresses(&self) -> io::Result<Vec<Address>> {
        let mut found = Vec::new();
        self.dump(Request::new(RTM_GETADDR, FLAG_DUMP, &[0; 8]), RTM_NEWADDR, |body| {
            found.extend(address(body));
        })?;
        Ok(found)
    }

    /// Devices of the default routes of both families.
    pub(super) fn default_route_devices(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            // struct rtmsg: family, destination length, nine more.
            let mut head = vec![0; 12];
            if let Some(first) = head.first_mut() {
                *first = family as u8;
            }
            self.dump(Request::new(RTM_GETROUTE, FLAG_DUMP, &head), RTM_NEWROUTE, |body| {
                found.extend(route_devices(body));
            })?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// A pair of devices: `name` here, `peer` in `netns`.
    pub(super) fn add_pair(&self, name: &str, peer: &str, netns: BorrowedFd<'_>) -> io::Result<()> {
        const IFLA_IFNAME: u16 = 3;
        const IFLA_LINKINFO: u16 = 18;
        const IFLA_NET_NS_FD: u16 = 28;
        const INFO_KIND: u16 = 1;
        const INFO_DATA: u16 = 2;
        const VETH_INFO_PEER: u16 = 1;
        let mut other = link_head(0, 0);
        other.extend(attribute(IFLA_IFNAME, &text(peer)));
        other.extend(attribute(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes()));
        let data = attribute(VETH_INFO_PEER, &other);
        let info = [attribute(INFO_KIND, &text("veth")), attribute(INFO_DATA, &data)].concat();
        let flags = FLAG_ACK | FLAG_CREATE | FLAG_EXCLUSIVE;
        let request = Request::new(RTM_NEWLINK, flags, &link_head(0, 0))
            .bytes(IFLA_IFNAME, &text(name))
            .bytes(IFLA_LINKINFO, &info);
        self.acknowledged(request.finish())
    }

    /// Takes a device away; one that is gone is fine.
    pub(super) fn remove_link(&self, index: u32) -> io::Result<()> {
        let request = Request::new(RTM_DELLINK, FLAG_ACK, &link_head(index, 0));
        accept(self.acknowledged(request.finish()), libc::ENODEV)
    }

    /// Brings a device up, with this MTU where one is given.
    pub(super) fn set_up(&self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        const IFLA_MTU: u16 = 4;
        let mut request = Request::new(RTM_NEWLINK, FLAG_ACK, &link_head(index, IFF_UP));
        if let Some(mtu) = mtu {
            request = request.attribute(IFLA_MTU, mtu);
        }
        self.acknowledged(request.finish())
    }

    /// Gives a device an address, without asking the link whether anybody has it; one that it has is fine.
    pub(super) fn add_address(&self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        accept(
            self.change_address(RTM_NEWADDR, FLAG_ACK | FLAG_CREATE | FLAG_EXCLUSIVE, index, ip, prefix),
            libc::EEXIST,
        )
    }

    /// Takes an address from a device.
    pub(super) fn remove_address(&self, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        accept(self.change_address(RTM_DELADDR, FLAG_ACK, index, ip, prefix), libc::EADDRNOTAVAIL)
    }

    fn change_address(&self, kind: u16, flags: u16, index: u32, ip: IpAddr, prefix: u8) -> io::Result<()> {
        const IFA_ADDRESS: u16 = 1;
        const IFA_LOCAL: u16 = 2;
        const NO_DUPLICATE_DETECTION: u8 = 2;
        let flag = if ip.is_ipv6() { NO_DUPLICATE_DETECTION } else { 0 };
        let mut head = vec![family(ip), prefix, flag, 0];
        head.extend_from_slice(&index.to_ne_bytes());
        let value = octets(ip);
        let request = Request::new(kind, flags, &head).bytes(IFA_LOCAL, &value).bytes(IFA_ADDRESS, &value);
        self.acknowledged(request.finish())
    }

    /// The default route of the gateway's family.
    pub(super) fn set_default_route(&self, gateway: IpAddr, index: u32) -> io::Result<()> {
        const RTA_OIF: u16 = 4;
        const RTA_GATEWAY: u16 = 5;
        const MAIN: u8 = 254;
        const STATIC: u8 = 4;
        const UNICAST: u8 = 1;
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
        let head = [family(gateway), 0, 0, 0, MAIN, STATIC, 0, UNICAST, 0, 0, 0, 0];
        let request = Request::new(RTM_NEWROUTE, FLAG_ACK | FLAG_CREATE | FLAG_REPLACE, &head)
            .bytes(RTA_GATEWAY, &octets(gateway))
            .attribute(RTA_OIF, index);
        self.acknowledged(request.finish())
    }

    /// A neighbour that is never asked for.
    pub(super) fn set_neighbour(&self, index: u32, ip: IpAddr, hardware: &[u8]) -> io::Result<()> {
        const NDA_DST: u16 = 1;
        const NDA_LLADDR: u16 = 2;
        const PERMANENT: u16 = 0x80;
        // struct ndmsg: family, three of padding, index, state, flags, type.
        let mut head = vec![family(ip), 0, 0, 0];
        head.extend_from_slice(&index.to_ne_bytes());
        head.extend_from_slice(&PERMANENT.to_ne_bytes());
        head.extend_from_slice(&[0, 0]);
        let request = Request::new(RTM_NEWNEIGH, FLAG_ACK | FLAG_CREATE | FLAG_REPLACE, &head)
            .bytes(NDA_DST, &octets(ip))
            .bytes(NDA_LLADDR, hardware);
        self.acknowledged(request.finish())
    }
}

fn link(body: &[u8]) -> Option<Link> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_MASTER: u16 = 10;
    let kind = (number(body, 0)? >> 16) as u16;
    let mut link = Link { index: number(body, 4)?, kind, ..Link::default() };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => link.address = value.to_vec(),
            IFLA_IFNAME => {
                link.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
            }
            IFLA_MTU => link.mtu = number(value, 0)?,
            IFLA_MASTER => link.master = number(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}

fn address(body: &[u8]) -> Option<Address> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    // struct ifaddrmsg: family, prefixlen, flags, scope, index.
    let (prefix, scope, index) = (*body.get(1)?, *body.get(3)?, number(body, 4)?);
    let known = attributes(body.get(8..)?);
    // On a point-to-point device IFA_ADDRESS is the peer's and IFA_LOCAL our own.
    let value = [IFA_LOCAL, IFA_ADDRESS].iter().find_map(|wanted| known.iter().find(|(kind, _)| kind == wanted))?;
    Some(Address { index, ip: parse(value.1)?, prefix, scope })
}

/// Devices of a route, if it is a default route of the main table.
fn route_devices(body: &[u8]) -> Vec<u32> {
    const RTA_OIF: u16 = 4;
    const RTA_MULTIPATH: u16 = 9;
    const MAIN: u8 = 254;
    const UNICAST: u8 = 1;
    if body.get(1) != Some(&0) || body.get(4) != Some(&MAIN) || body.get(7) != Some(&UNICAST) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (kind, value) in attributes(body.get(12..).unwrap_or_default()) {
        match kind {
            RTA_OIF => found.extend(number(value, 0)),
            RTA_MULTIPATH => {
                // struct rtnexthop: length, flags, hops, index, then attributes.
                let mut rest = value;
                while let (Some(head), Some(index)) = (number(rest, 0), number(rest, 4)) {
                    found.push(index);
                    let length = ((head & 0xffff) as usize).max(8);
                    rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    found
}
