//! The engine's own namespace, where connections to node ports are accepted: a pair of devices, the node's addresses on its
//! loopback, and a way back. It has a name below /run/netns, so that it outlives the daemon: what arrives while none runs is
//! refused there instead of passed.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::links::{Address, Link};
use super::netlink::Netlink;
use super::podnet::{Choice, StepError, listen, raise_sysctl, step};
use super::serve::inside;
use super::wire::{Packet, Reader};
use crate::redirect::netns::is_netns;
use crate::redirect::system::{check, current_netns, in_netns};

/// Addresses of the node's end and of the other, in ranges that nobody routes.
pub(in crate::redirect) const NODE4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 77, 1));
pub(in crate::redirect) const ENTRY4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 77, 2));
const PREFIX4: u8 = 30;
pub(in crate::redirect) const NODE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfdca, 0xc5e, 0x77, 0, 0, 0, 0, 1));
pub(in crate::redirect) const ENTRY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfdca, 0xc5e, 0x77, 0, 0, 0, 0, 2));
const PREFIX6: u8 = 126;
/// Name of the device inside the namespace.
const INSIDE: &str = "node";
/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;
const ETHERNET: u16 = 1;
const NETNS_FOLDER: &str = "/run/netns";
const SOMAXCONN: &str = "/proc/sys/net/core/somaxconn";
const BACKLOG: i32 = 8192;

/// What is asked for.
#[derive(Debug)]
pub(in crate::redirect) struct Wanted {
    /// Name of the daemon's instance.
    pub(in crate::redirect) instance: String,
    /// Names of uplinks; empty means those of the default routes.
    pub(in crate::redirect) uplinks: Vec<String>,
    /// Addresses of the node; empty means those of the uplinks, and of `internal` those that it has.
    pub(in crate::redirect) addresses: Vec<IpAddr>,
    /// Addresses whose devices are uplinks too where none is named.
    pub(in crate::redirect) internal: Vec<IpAddr>,
}

impl Wanted {
    pub(super) fn write(&self, packet: Packet) -> Packet {
        let mut packet = packet.text(&self.instance).u8(self.uplinks.len() as u8);
        for uplink in &self.uplinks {
            packet = packet.text(uplink);
        }
        packet = packet.u8(self.internal.len() as u8);
        self.internal.iter().chain(&self.addresses).fold(packet, |packet, address| packet.address(*address))
    }

    pub(super) fn read(fields: &mut Reader<'_>) -> io::Result<Self> {
        let instance = fields.text()?;
        let uplinks = (0..fields.u8()?).map(|_| fields.text()).collect::<io::Result<_>>()?;
        let count = usize::from(fields.u8()?);
        let mut internal = fields.addresses()?;
        let addresses = internal.split_off(count.min(internal.len()));
        Ok(Self { instance, uplinks, addresses, internal })
    }
}

/// What there is then.
#[derive(Debug)]
pub(in crate::redirect) struct Opened {
    /// The namespace.
    pub(in crate::redirect) netns: OwnedFd,
    /// Index of the node's end of the pair.
    pub(in crate::redirect) device: u32,
    /// Names and indexes of the uplinks.
    pub(in crate::redirect) uplinks: Vec<(String, u32)>,
    /// Addresses of the node.
    pub(in crate::redirect) addresses: Vec<IpAddr>,
}

/// Where the namespace of an instance is.
fn path(instance: &str) -> PathBuf {
    Path::new(NETNS_FOLDER).join(format!("causeway-{instance}"))
}

/// Name of the node's end of the pair: the same for an instance whenever it is made, and another for another instance.
fn device_name(instance: &str) -> String {
    let hash = instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("causeway{hash:07x}").chars().take(15).collect()
}

/// Brings namespace, devices, addresses and routes to what is wanted, whatever is there of it already.
pub(super) fn open(wanted: &Wanted, node: BorrowedFd<'_>, home: BorrowedFd<'_>) -> Result<Opened, StepError> {
    let (uplinks, addresses, links) = inside(node, home, || {
        let netlink = route()?;
        let links = step("listing devices", netlink.links())?;
        let all = step("listing addresses", netlink.device_addresses())?;
        let uplinks = uplinks(wanted, &netlink, &links, &all)?;
        let addresses =
            if wanted.addresses.is_empty() { own(wanted, &all, &uplinks) } else { wanted.addresses.clone() };
        Ok((uplinks, addresses, links))
    })?;
    if addresses.is_empty() {
        return refuse("the uplinks have no address of global scope; name the node's under entry.addresses");
    }
    let (netns, fresh) = namespace(&wanted.instance)?;
    let name = device_name(&wanted.instance);
    // Packets that are too large for an uplink must not leave here whole.
    let mtu = uplinks.iter().map(|uplink| uplink.mtu).min();
    let v6 = addresses.iter().any(IpAddr::is_ipv6);
    let known = links.iter().find(|link| link.name == name).map(|link| link.index);
    let here = inside(node, home, || {
        let netlink = route()?;
        let known = match known {
            // Its other end went with the namespace that was there before.
            Some(index) if fresh => {
                step("removing a device that an earlier daemon left", netlink.remove_link(index))?;
                None
            }
            known => known,
        };
        if known.is_none() {
            let made = netlink.add_pair(&name, INSIDE, netns.as_fd());
            step(format!("adding the pair of devices {name}"), made)?;
        }
        let link = device(&netlink, &name)?;
        ready(&netlink, &link, mtu, v6, (NODE4, NODE6))?;
        Ok(link)
    })?;
    inside(netns.as_fd(), home, || furnish(&here, mtu, v6, &addresses))?;
    Ok(Opened {
        netns,
        device: here.index,
        uplinks: uplinks.into_iter().map(|uplink| (uplink.name, uplink.index)).collect(),
        addresses,
    })
}

fn refuse<T>(why: impl Into<String>) -> Result<T, StepError> {
    Err(StepError { action: why.into(), source: io::Error::from_raw_os_error(libc::EINVAL) })
}

fn route() -> Result<Netlink, StepError> {
    step("opening a netlink socket", Netlink::route())
}

fn device(netlink: &Netlink, name: &str) -> Result<Link, StepError> {
    let found = netlink.links().and_then(|links| {
        links.into_iter().find(|link| link.name == name).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    });
    step(format!("looking for the device {name}"), found)
}

/// The devices that connections come in by, each checked.
fn uplinks(wanted: &Wanted, netlink: &Netlink, links: &[Link], all: &[Address]) -> Result<Vec<Link>, StepError> {
    let found: Vec<Link> = if wanted.uplinks.is_empty() {
        let indexes = step("listing routes", netlink.default_route_devices())?;
        // An internal address on a device that is no uplink, as one of loopback that routers know, comes in by another.
        let has =
            |link: &Link| all.iter().any(|found| found.index == link.index && wanted.internal.contains(&found.ip));
        let meant = |link: &&Link| indexes.contains(&link.index) || (has(link) && unfit(link, links).is_none());
        links.iter().filter(meant).cloned().collect()
    } else {
        let mut found = Vec::new();
        for name in &wanted.uplinks {
            match links.iter().find(|link| link.name == *name) {
                Some(link) => found.push(link.clone()),
                None => return refuse(format!("there is no device {name}; correct entry.uplinks")),
            }
        }
        found
    };
    if found.is_empty() {
        return refuse(
            "the node has no default route or internal address that would tell its uplinks; name them under entry.uplinks",
        );
    }
    for link in &found {
        if let Some(why) = unfit(link, links) {
            return refuse(format!("{} cannot be an uplink: {why}", link.name));
        }
    }
    Ok(found)
}

/// Why a device cannot be an uplink.
fn unfit(link: &Link, links: &[Link]) -> Option<String> {
    if link.kind != ETHERNET {
        return Some(format!("it carries no Ethernet frames (hardware type {})", link.kind));
    }
    if link.master != 0 {
        let master = links.iter().find(|other| other.index == link.master);
        let name = master.map_or("another device", |master| master.name.as_str());
        return Some(format!("it is a port of {name}; name that instead"));
    }
    None
}

/// Addresses of global scope of these devices, and internal ones on any.
fn own(wanted: &Wanted, all: &[Address], uplinks: &[Link]) -> Vec<IpAddr> {
    let of_uplink = |found: &Address| found.scope == 0 && uplinks.iter().any(|uplink| uplink.index == found.index);
    all.iter().filter(|found| of_uplink(found) || wanted.internal.contains(&found.ip)).map(|found| found.ip).collect()
}

/// The namespace of an instance, and whether it was made just now.
fn namespace(instance: &str) -> Result<(OwnedFd, bool), StepError> {
    let path = path(instance);
    if let Ok(file) = File::open(&path)
        && is_netns(&file)
    {
        return Ok((file.into(), false));
    }
    let made = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no pointer is passed. The namespace of this thread alone changes.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
            current_netns()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
    });
    let netns = step("making a network namespace (needs CAP_SYS_ADMIN)", made)?;
    step(format!("naming the network namespace {}", path.display()), name(&netns, &path))?;
    Ok((netns, true))
}

/// Gives a namespace a name that keeps it alive.
fn name(netns: &OwnedFd, path: &Path) -> io::Result<()> {
    fs::create_dir_all(NETNS_FOLDER)?;
    File::create(path)?;
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    let source = std::ffi::CString::new(source).map_err(io::Error::other)?;
    let target = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let nothing = std::ptr::null();
    // SAFETY: the pointers are strings that live until the call returns; a bind mount needs neither type nor data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), nothing, libc::MS_BIND, nothing.cast()) })?;
    Ok(())
}

/// Addresses of one end of the pair, then up.
fn ready(
    netlink: &Netlink,
    link: &Link,
    mtu: Option<u32>,
    v6: bool,
    (ip4, ip6): (IpAddr, IpAddr),
) -> Result<(), StepError> {
    step(format!("bringing {} up", link.name), netlink.set_up(link.index, mtu))?;
    for (ip, prefix) in [(ip4, PREFIX4), (ip6, PREFIX6)] {
        if ip.is_ipv4() || v6 {
            step(format!("adding {ip} to {}", link.name), netlink.add_address(link.index, ip, prefix))?;
        }
    }
    Ok(())
}

/// What is inside the namespace. `there` is the node's end of the pair.
fn furnish(there: &Link, mtu: Option<u32>, v6: bool, addresses: &[IpAddr]) -> Result<(), StepError> {
    // A container may see these files read-only; then the kernel's own values have to do.
    let _ = raise_sysctl(Path::new(SOMAXCONN), BACKLOG);
    let netlink = route()?;
    step("bringing the loopback up", netlink.set_up(LOOPBACK, None))?;
    let link = device(&netlink, INSIDE)?;
    ready(&netlink, &link, mtu, v6, (ENTRY4, ENTRY6))?;
    for gateway in [NODE4, NODE6] {
        if gateway.is_ipv4() || v6 {
            let neighbour = netlink.set_neighbour(link.index, gateway, &there.address);
            step(format!("adding the neighbour {gateway}"), neighbour)?;
            step(format!("adding the route by {gateway}"), netlink.set_default_route(gateway, link.index))?;
        }
    }
    let all = step("listing addresses", netlink.device_addresses())?;
    for stale in all.iter().filter(|found| found.index == LOOPBACK && !found.ip.is_loopback()) {
        if !addresses.contains(&stale.ip) {
            let removed = netlink.remove_address(LOOPBACK, stale.ip, stale.prefix);
            step(format!("removing {} from the loopback", stale.ip), removed)?;
        }
    }
    for ip in addresses {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        step(format!("adding {ip} to the loopback"), netlink.add_address(LOOPBACK, *ip, prefix))?;
    }
    Ok(())
}

/// Listeners of all workers on `port` of every address of the current namespace.
pub(super) fn listeners(port: u16, workers: usize) -> Result<Vec<OwnedFd>, StepError> {
    step(format!("opening listeners on node port {port}"), listen(port, workers, Choice::Named, None))
}

/// Removes the namespace of an instance and all that is in it; nothing there is fine.
pub(in crate::redirect) fn close(instance: &str) -> Result<(), StepError> {
    let path = path(instance);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return step(format!("opening {}", path.display()), Err(error)),
    };
    if is_netns(&file) {
        // The namespace goes some time after its last user; its devices must be gone when this returns.
        let removed = in_netns(file.as_fd(), || {
            let netlink = Netlink::route()?;
            let inside = netlink.links()?.into_iter().find(|link| link.name == INSIDE);
            inside.map_or(Ok(()), |link| netlink.remove_link(link.index))
        });
        step("removing the pair of devices", removed)?;
        drop(file);
        let target = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other);
        let target = step("naming the network namespace", target)?;
        // SAFETY: the pointer is a string that lives until the call returns.
        let unmounted = check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) });
        step(format!("unmounting {}", path.display()), unmounted)?;
    }
    step(format!("removing {}", path.display()), fs::remove_file(&path))
}

/// Whether there is a namespace of an instance.
pub(in crate::redirect) fn exists(instance: &str) -> bool {
    path(instance).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_a_device_and_differ_by_instance() {
        let (one, other) = (device_name("node"), device_name("node-b"));
        assert!(one.len() <= 15 && other.len() <= 15 && one != other, "{one} {other}");
    }

    #[test]
    fn only_ethernet_devices_of_their_own_are_uplinks() {
        let bond = Link { index: 2, name: "bond0".into(), kind: ETHERNET, ..Link::default() };
        let port = Link { index: 3, name: "eth0".into(), kind: ETHERNET, master: 2, ..Link::default() };
        let tunnel = Link { index: 4, name: "wg0".into(), kind: 65534, ..Link::default() };
        let all = [bond.clone(), port.clone(), tunnel.clone()];
        assert_eq!(unfit(&bond, &all), None);
        assert!(unfit(&port, &all).is_some_and(|why| why.contains("port of bond0")));
        assert!(unfit(&tunnel, &all).is_some_and(|why| why.contains("no Ethernet frames")));
    }
}
