//! Node ports: taking their connections at the uplinks, and handing out listeners in the namespace they arrive in.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use causeway_ebpf::abi::{EntryFlow, NodePort, node_port_state};

use super::error::LoadError;
use super::helper::StepError;
use super::helper::entry::{ENTRY4, ENTRY6, NODE4, NODE6, Opened, Wanted, exists};
use super::maps::{Plain, in_map};
use super::object;
use super::original::words;
use super::pins::remove_link;
use super::redirector::Redirector;

/// First kernel with programs at devices as links (tcx).
const FLOOR: &str = "6.6";
/// What the pins of links at uplinks begin with; the index of the device follows.
const UPLINK_PIN: &str = "entry_uplink-";

/// Where connections to node ports come in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryConfig {
    /// The node's network namespace, if it is not the daemon's own.
    pub netns: Option<PathBuf>,
    /// Names of the devices they arrive at; empty means those of the default routes.
    pub uplinks: Vec<String>,
    /// Addresses of the node they are for; empty means those of the uplinks, and of `internal` those that it has.
    pub addresses: Vec<IpAddr>,
    /// Addresses whose devices are uplinks too where none is named.
    pub internal: Vec<IpAddr>,
}

/// What there is for node ports.
#[derive(Debug)]
pub(super) struct Entry {
    netns: OwnedFd,
    addresses: Vec<IpAddr>,
}

impl Redirector {
    /// Gets everything ready for node ports, or brings it to what is wanted now; returns the node's addresses. Connections to
    /// node ports that were taken go on.
    ///
    /// # Errors
    /// [`LoadError::Entry`] with the step and its reason (a device that cannot be an uplink among them),
    /// [`LoadError::Attach`] where the kernel has no tcx.
    pub fn open_entry(&mut self, config: &EntryConfig) -> Result<Vec<IpAddr>, LoadError> {
        let path = config.netns.clone().unwrap_or_else(|| PathBuf::from("/proc/self/ns/net"));
        let node: OwnedFd = File::open(&path)
            .map_err(|source| LoadError::Io { action: "opening the node's network namespace", path, source })?
            .into();
        let wanted = Wanted {
            instance: self.config.instance.clone(),
            uplinks: config.uplinks.clone(),
            addresses: config.addresses.clone(),
            internal: config.internal.clone(),
        };
        let opened = self.helper.control.entry(&wanted, node.as_fd()).map_err(failed)?;
        let attached = self.attach_entry(&opened, &node);
        if let Err(error) = attached {
            // What was taken before stays taken; what is new must not be half there.
            if self.entry.is_none() {
                let _ = self.close_entry();
            }
            return Err(error);
        }
        let addresses = opened.addresses.clone();
        let before = self.entry.replace(Entry { netns: opened.netns, addresses: opened.addresses });
        if let Some(before) = before {
            self.withdraw(|port| {
                let is = |addresses: &[IpAddr]| addresses.iter().any(|address| words(*address) == port.addr);
                is(&before.addresses) && !is(&addresses)
            })?;
        }
        Ok(addresses)
    }

    /// Fills what the programs look at, then puts them in place: what answers before what sends.
    fn attach_entry(&mut self, opened: &Opened, node: &OwnedFd) -> Result<(), LoadError> {
        self.maps.entry_device.set(0, opened.device, 0).map_err(in_map("ENTRY_DEVICE"))?;
        let v6 = opened.addresses.iter().any(IpAddr::is_ipv6);
        for (index, address) in [(0, words(ENTRY4)), (1, if v6 { words(ENTRY6) } else { [0; 4] })] {
            self.maps.entry_local.set(index, address, 0).map_err(in_map("ENTRY_LOCAL"))?;
        }
        self.attach_device("entry_return", "entry_return".into(), opened.device, "the entry's device", node)?;
        for (name, index) in &opened.uplinks {
            self.attach_device("entry_uplink", format!("{UPLINK_PIN}{index}"), *index, name, node)?;
        }
        let wanted = |pin: &str| {
            let index = pin.strip_prefix(UPLINK_PIN).and_then(|index| index.parse::<u32>().ok());
            index.is_none_or(|index| opened.uplinks.iter().any(|(_, uplink)| *uplink == index))
        };
        self.detach_entry(|pin| !wanted(pin))?;
        object::attach_dial(&self.loaded, &self.pins, &self.config.cgroup_root)
    }

    fn attach_device(
        &self,
        program: &'static str,
        pin: String,
        device: u32,
        name: &str,
        node: &OwnedFd,
    ) -> Result<(), LoadError> {
        let failed = |source| LoadError::Attach { program, target: Path::new(name).to_owned(), floor: FLOOR, source };
        let attach = |program: std::os::fd::BorrowedFd<'_>| {
            let link = self.helper.control.attach(device, node.as_fd(), program);
            link.map_err(|error| error.source)
        };
        object::attach_device(&self.loaded, program, &self.pins.link(&pin), device, attach)?.map_err(failed)
    }

    /// Takes links of node ports away whose pins are meant.
    fn detach_entry(&self, meant: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        for name in self.pins.links().into_iter().filter(|name| name.starts_with("entry_") && meant(name)) {
            let path = self.pins.link(&name);
            remove_link(&path).map_err(|source| LoadError::Io { action: "detaching", path, source })?;
        }
        Ok(())
    }

    /// Removes everything of node ports; connections to them pass from then on. Also what an earlier daemon left.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn close_entry(&mut self) -> Result<(), LoadError> {
        self.detach_entry(|_| true)?;
        self.withdraw(|_| true)?;
        self.maps.entry_device.set(0, 0, 0).map_err(in_map("ENTRY_DEVICE"))?;
        self.entry = None;
        if exists(&self.config.instance) {
            self.helper.control.entry_close(&self.config.instance).map_err(failed)?;
        }
        Ok(())
    }

    /// Listeners on a node port, one for each worker. Nothing arrives at them before [`take_node_port`](Self::take_node_port).
    ///
    /// # Errors
    /// [`LoadError::Entry`] if they cannot be opened.
    pub fn node_port_listeners(&self, port: u16) -> Result<Vec<TcpListener>, LoadError> {
        let entry = self.entry.as_ref().ok_or_else(closed)?;
        self.helper.control.listen(port, self.config.workers, entry.netns.as_fd()).map_err(failed)
    }

    /// Takes new connections to a port of the node's addresses, of the families that are asked for.
    ///
    /// # Errors
    /// [`LoadError::Map`] if there are too many.
    pub fn take_node_port(&mut self, port: u16, family: impl Fn(IpAddr) -> bool) -> Result<(), LoadError> {
        let entry = self.entry.as_ref().ok_or_else(closed)?;
        for address in &entry.addresses {
            let key = Plain(NodePort { addr: words(*address), port, pad: 0 });
            if family(*address) {
                self.maps.node_ports.insert(key, node_port_state::OPEN, 0).map_err(in_map("NODE_PORTS"))?;
            } else {
                let _ = self.maps.node_ports.remove(&key);
            }
        }
        Ok(())
    }

    /// Lets new connections to a port pass; those that were taken go on.
    ///
    /// # Errors
    /// [`LoadError::Map`] if the map cannot be written.
    pub fn stop_node_port(&mut self, port: u16) -> Result<(), LoadError> {
        for key in self.keys(|key| key.port == port) {
            self.maps.node_ports.insert(key, node_port_state::CLOSING, 0).map_err(in_map("NODE_PORTS"))?;
        }
        Ok(())
    }

    /// Forgets a port, after its last connection has ended.
    ///
    /// # Errors
    /// [`LoadError::Map`] if the map cannot be read.
    pub fn forget_node_port(&mut self, port: u16) -> Result<(), LoadError> {
        self.withdraw(|key| key.port == port)
    }

    /// Forgets ports that an earlier daemon took, except these.
    ///
    /// # Errors
    /// As [`forget_node_port`](Self::forget_node_port).
    pub fn keep_node_ports(&mut self, wanted: impl Fn(u16) -> bool) -> Result<(), LoadError> {
        self.withdraw(|key| !wanted(key.port))
    }

    fn keys(&self, meant: impl Fn(&NodePort) -> bool) -> Vec<Plain<NodePort>> {
        self.maps.node_ports.keys().filter_map(Result::ok).filter(|key| meant(&key.0)).collect()
    }

    /// Forgets ports and the connections to them: a port that comes back must not claim connections that passed meanwhile.
    fn withdraw(&mut self, meant: impl Fn(&NodePort) -> bool) -> Result<(), LoadError> {
        let keys = self.keys(meant);
        for key in &keys {
            let _ = self.maps.node_ports.remove(key);
        }
        if keys.is_empty() {
            return Ok(());
        }
        let of_port =
            |flow: &EntryFlow| keys.iter().any(|key| (key.0.addr, key.0.port) == (flow.server, flow.server_port));
        let flows: Vec<Plain<EntryFlow>> =
            self.maps.entry_flows.keys().filter_map(Result::ok).filter(|flow| of_port(&flow.0)).collect();
        for flow in flows {
            let _ = self.maps.entry_flows.remove(&flow);
        }
        Ok(())
    }
}

/// Whether `address` is how the node itself appears to a node port: its end of the pair of devices.
#[must_use]
pub fn is_node_itself(address: IpAddr) -> bool {
    address == NODE4 || address == NODE6
}

/// Whether `address` is what callers on the node were sent to.
#[must_use]
pub fn is_entry_itself(address: IpAddr) -> bool {
    address == ENTRY4 || address == ENTRY6
}

fn failed(error: StepError) -> LoadError {
    LoadError::Entry { action: error.action, source: error.source }
}

fn closed() -> LoadError {
    LoadError::Entry {
        action: "using node ports before they were set up".into(),
        source: io::ErrorKind::NotFound.into(),
    }
}
