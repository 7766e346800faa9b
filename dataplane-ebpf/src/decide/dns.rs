//! Verdict of the DNS hooks: does a datagram for a name server go to the engine, and at which port?

use super::{is_link_local_v6, is_loopback, is_unspecified};
use crate::abi::{Addr, Config, DNS_PORT, DnsPod, config_flag, is_mapped};
use crate::counter::Counter;

/// The maps the verdict looks into.
pub trait View {
    /// Cookie of the enrolled namespace that has this address.
    fn owner(&self, addr: &Addr) -> Option<u64>;
    /// Whether the calling task is the engine.
    fn is_engine(&self) -> bool;
    /// Whether outbound traffic to this port is excluded.
    fn port_excluded(&self, port: u16) -> bool;
    /// Whether outbound traffic to this address is excluded.
    fn address_excluded(&self, addr: &Addr) -> bool;
    /// The engine port that stands for a server, if it has one.
    fn port_of(&self, server: &Addr) -> Option<u16>;
    /// Makes `port` stand for a server, unless it stands for one already.
    fn claim(&self, port: u16, server: &Addr) -> Claim;
    /// Gives up a port that was just claimed.
    fn release(&self, port: u16, server: &Addr);
    /// Remembers the port of a server; false if another CPU was faster or there is no room.
    fn remember(&self, server: &Addr, port: u16) -> bool;
}

/// Result of claiming a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The port is the server's now.
    Won,
    /// The port stands for another server.
    Taken,
    /// There is no room to say so.
    Failed,
}

/// What the hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dns {
    /// Leave the datagram alone.
    Pass(Counter),
    /// Refuse it.
    Refuse(Counter),
    /// Send it to this address and port of the pod instead.
    Redirect(Addr, u16),
}

/// The verdict on datagrams of the pod in namespace `netns` to port 53 of `server`.
///
/// A pod that asks more servers than there are ports is one that resolves names by itself: from then on it asks further ones
/// directly, since two servers behind one port could not be told apart.
#[inline(always)]
pub fn dns(config: &Config, netns: u64, pod: &DnsPod, server: &Addr, view: &impl View) -> Dns {
    if is_loopback(server) || is_unspecified(server) || is_link_local_v6(server) {
        return Dns::Pass(Counter::DnsLocal);
    }
    if view.is_engine() {
        return Dns::Pass(Counter::DnsEngine);
    }
    if view.owner(server) == Some(netns) {
        return Dns::Pass(Counter::DnsOwnAddress);
    }
    if config.flags & config_flag::PORTS != 0 && view.port_excluded(DNS_PORT) {
        return Dns::Pass(Counter::DnsExcludedPort);
    }
    if config.flags & config_flag::CIDRS != 0 && view.address_excluded(server) {
        return Dns::Pass(Counter::DnsExcludedCidr);
    }
    let (target, ports) = if is_mapped(server) { (&pod.v4, &pod.ports4) } else { (&pod.v6, &pod.ports6) };
    if *target == [0; 4] {
        return Dns::Refuse(Counter::DnsRefusedFamily);
    }
    if let Some(port) = view.port_of(server) {
        return Dns::Redirect(*target, port);
    }
    for port in ports {
        let port = *port;
        if port == 0 {
            break;
        }
        match view.claim(port, server) {
            Claim::Taken => {}
            Claim::Failed => return Dns::Refuse(Counter::DnsRefusedStorage),
            Claim::Won => {
                if view.remember(server, port) {
                    return Dns::Redirect(*target, port);
                }
                view.release(port, server);
                // Another CPU met the same server at the same time and won.
                return match view.port_of(server) {
                    Some(port) => Dns::Redirect(*target, port),
                    None => Dns::Refuse(Counter::DnsRefusedStorage),
                };
            }
        }
    }
    Dns::Pass(Counter::DnsNoPort)
}

/// Whether `addr` is where the engine's DNS sockets of this pod are, so that a port there may stand for a name server.
#[inline(always)]
pub fn is_engine_address(pod: &DnsPod, addr: &Addr) -> bool {
    let own = if is_mapped(addr) { &pod.v4 } else { &pod.v6 };
    own[0] == addr[0] && own[1] == addr[1] && own[2] == addr[2] && own[3] == addr[3]
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    use super::*;
    use crate::abi::{DNS_SERVERS, direction};
    use crate::decide::testing::{self, addr};

    const NETNS: u64 = 7;

    /// The maps of one pod; `late` is what another CPU remembers in between.
    #[derive(Default)]
    struct Maps {
        shared: testing::View,
        ports: RefCell<HashMap<Addr, u16>>,
        servers: RefCell<HashMap<(bool, u16), Addr>>,
        late: RefCell<Option<u16>>,
        full: bool,
    }

    impl View for Maps {
        fn owner(&self, addr: &Addr) -> Option<u64> {
            self.shared.owners.get(addr).copied()
        }
        fn is_engine(&self) -> bool {
            self.shared.engine
        }
        fn port_excluded(&self, port: u16) -> bool {
            self.shared.ports.contains(&(direction::OUTBOUND, port))
        }
        fn address_excluded(&self, addr: &Addr) -> bool {
            self.shared.cidrs.contains(addr)
        }
        fn port_of(&self, server: &Addr) -> Option<u16> {
            self.ports.borrow().get(server).copied()
        }
        fn claim(&self, port: u16, server: &Addr) -> Claim {
            if self.full {
                return Claim::Failed;
            }
            let mut servers = self.servers.borrow_mut();
            if servers.contains_key(&(is_mapped(server), port)) {
                return Claim::Taken;
            }
            servers.insert((is_mapped(server), port), *server);
            Claim::Won
        }
        fn release(&self, port: u16, server: &Addr) {
            self.servers.borrow_mut().remove(&(is_mapped(server), port));
        }
        fn remember(&self, server: &Addr, port: u16) -> bool {
            if let Some(faster) = self.late.borrow_mut().take() {
                self.ports.borrow_mut().insert(*server, faster);
                return false;
            }
            self.ports.borrow_mut().insert(*server, port);
            true
        }
    }

    fn pod() -> DnsPod {
        let mut ports4 = [0; DNS_SERVERS];
        ports4[..3].copy_from_slice(&[40001, 40002, 40003]);
        let mut ports6 = [0; DNS_SERVERS];
        ports6[..2].copy_from_slice(&[40002, 40009]);
        DnsPod { v4: addr("10.0.0.2"), v6: addr("fd00::2"), ports4, ports6 }
    }

    fn ask(view: &Maps, server: &str) -> Dns {
        dns(&testing::config(), NETNS, &pod(), &addr(server), view)
    }

    #[test]
    fn every_server_has_a_port_of_its_own_and_keeps_it() {
        let view = Maps::default();
        let to4 = |port| Dns::Redirect(addr("10.0.0.2"), port);
        let to6 = |port| Dns::Redirect(addr("fd00::2"), port);
        for (server, expected, why) in [
            ("10.96.0.10", to4(40001), "the first server"),
            ("192.0.2.53", to4(40002), "another server, another port"),
            ("10.96.0.10", to4(40001), "the same server, the same port"),
            ("::ffff:192.0.2.53", to4(40002), "a v4-mapped server is an IPv4 one"),
            ("2001:db8::53", to6(40002), "ports of the families are apart"),
            ("2001:db8::54", to6(40009), "a second IPv6 server"),
            ("192.0.2.54", to4(40003), "the last IPv4 port"),
            ("192.0.2.55", Dns::Pass(Counter::DnsNoPort), "one more than there are ports"),
            ("2001:db8::55", Dns::Pass(Counter::DnsNoPort), "one more than there are ports"),
            ("192.0.2.54", to4(40003), "the earlier ones stay captured"),
        ] {
            assert_eq!(ask(&view, server), expected, "{server}: {why}");
        }
    }

    #[test]
    fn what_is_not_captured() {
        let mut view = Maps::default();
        view.shared.owners.insert(addr("10.0.0.2"), NETNS);
        view.shared.owners.insert(addr("10.0.0.3"), NETNS + 1);
        view.shared.cidrs.insert(addr("192.0.2.7"));
        for (server, expected, why) in [
            ("127.0.0.53", Dns::Pass(Counter::DnsLocal), "a resolver in the pod"),
            ("::1", Dns::Pass(Counter::DnsLocal), "a resolver in the pod"),
            ("0.0.0.0", Dns::Pass(Counter::DnsLocal), "unspecified means loopback"),
            ("fe80::1", Dns::Pass(Counter::DnsLocal), "link-local has no meaning to the engine"),
            ("10.0.0.2", Dns::Pass(Counter::DnsOwnAddress), "the pod asks itself"),
            ("192.0.2.7", Dns::Pass(Counter::DnsExcludedCidr), "excluded range"),
            ("10.0.0.3", Dns::Redirect(addr("10.0.0.2"), 40001), "another pod of this node is a server like any"),
        ] {
            assert_eq!(ask(&view, server), expected, "{server}: {why}");
        }
        view.shared.ports.insert((direction::OUTBOUND, 53));
        assert_eq!(ask(&view, "192.0.2.1"), Dns::Pass(Counter::DnsExcludedPort));
        view.shared.engine = true;
        assert_eq!(ask(&view, "192.0.2.1"), Dns::Pass(Counter::DnsEngine));
    }

    #[test]
    fn what_cannot_be_captured_is_refused() {
        let full = Maps { full: true, ..Maps::default() };
        assert_eq!(ask(&full, "192.0.2.1"), Dns::Refuse(Counter::DnsRefusedStorage));
        let without_v6 = DnsPod { v6: [0; 4], ..pod() };
        let got = dns(&testing::config(), NETNS, &without_v6, &addr("2001:db8::53"), &Maps::default());
        assert_eq!(got, Dns::Refuse(Counter::DnsRefusedFamily));
    }

    #[test]
    fn of_two_cpus_that_meet_a_server_at_once_both_use_the_port_of_the_winner() {
        let view = Maps { late: RefCell::new(Some(40003)), ..Maps::default() };
        assert_eq!(ask(&view, "192.0.2.1"), Dns::Redirect(addr("10.0.0.2"), 40003));
        assert!(view.servers.borrow().is_empty(), "the loser gave its port back");
    }

    #[test]
    fn answers_are_told_by_the_address_of_their_family() {
        for (text, expected) in
            [("10.0.0.2", true), ("fd00::2", true), ("10.0.0.3", false), ("fd00::3", false), ("127.0.0.1", false)]
        {
            assert_eq!(is_engine_address(&pod(), &addr(text)), expected, "{text}");
        }
    }
}
