//! Verdict of the connect hooks: does a connection of an enrolled pod go to the engine?

use super::{is_link_local_v6, is_loopback, is_unspecified};
use crate::abi::{Addr, Config, Pod, config_flag, hold_address, is_mapped};
use crate::counter::Counter;

/// The maps the verdict looks into.
pub trait View {
    /// Cookie of the enrolled namespace that has this address.
    fn owner(&self, addr: &Addr) -> Option<u64>;
    /// Whether the calling task is the engine.
    fn is_engine(&self) -> bool;
    /// Whether outbound connections to this port are excluded.
    fn port_excluded(&self, port: u16) -> bool;
    /// Whether outbound connections to this address are excluded.
    fn address_excluded(&self, addr: &Addr) -> bool;
}

/// What the connect hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Leave the connection alone.
    Pass(Counter),
    /// Refuse the connection.
    Refuse(Counter),
    /// Store the destination and connect to this address and port of the pod instead.
    Redirect(Addr, u16),
}

/// The verdict on a TCP connection of the pod in namespace `netns` to `addr`:`port`. `random` spreads connections over the
/// range, so that ports in TIME_WAIT do not limit the rate of new ones.
#[inline(always)]
pub fn outbound(
    config: &Config,
    netns: u64,
    pod: &Pod,
    addr: &Addr,
    port: u16,
    random: u32,
    view: &impl View,
) -> Outbound {
    if is_loopback(addr) || is_unspecified(addr) || is_link_local_v6(addr) {
        return Outbound::Pass(Counter::OutboundLocal);
    }
    if view.is_engine() {
        return Outbound::Pass(Counter::OutboundEngine);
    }
    if view.owner(addr) == Some(netns) {
        return Outbound::Pass(Counter::OutboundOwnAddress);
    }
    if config.flags & config_flag::PORTS != 0 && view.port_excluded(port) {
        return Outbound::Pass(Counter::OutboundExcludedPort);
    }
    if config.flags & config_flag::CIDRS != 0 && view.address_excluded(addr) {
        return Outbound::Pass(Counter::OutboundExcludedCidr);
    }
    let target = if is_mapped(addr) { pod.v4 } else { pod.v6 };
    // Without an address of this family the engine cannot be reached. Passing would send the connection past the engine
    // should the pod get an address later, so it is refused.
    if target == [0; 4] {
        return Outbound::Refuse(Counter::OutboundRefusedFamily);
    }
    let port = config.port_base.wrapping_add(random as u16 & config.port_mask);
    Outbound::Redirect(target, port)
}

/// The verdict on a TCP connection of a pod that is to be enrolled and is not yet. Its addresses are not known, so what it dials
/// at an address of its own waits as well.
#[inline(always)]
pub fn held(config: &Config, netns: u64, addr: &Addr, port: u16, random: u32, view: &impl View) -> Outbound {
    if is_loopback(addr) || is_unspecified(addr) || is_link_local_v6(addr) {
        return Outbound::Pass(Counter::OutboundLocal);
    }
    if config.flags & config_flag::PORTS != 0 && view.port_excluded(port) {
        return Outbound::Pass(Counter::OutboundExcludedPort);
    }
    if config.flags & config_flag::CIDRS != 0 && view.address_excluded(addr) {
        return Outbound::Pass(Counter::OutboundExcludedCidr);
    }
    Outbound::Redirect(hold_address(netns), config.port_base.wrapping_add(random as u16 & config.port_mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::direction;
    use crate::decide::testing::{self, addr};

    impl View for testing::View {
        fn owner(&self, addr: &Addr) -> Option<u64> {
            self.owners.get(addr).copied()
        }
        fn is_engine(&self) -> bool {
            self.engine
        }
        fn port_excluded(&self, port: u16) -> bool {
            self.ports.contains(&(direction::OUTBOUND, port))
        }
        fn address_excluded(&self, addr: &Addr) -> bool {
            self.cidrs.contains(addr)
        }
    }

    const NETNS: u64 = 7;

    fn view() -> testing::View {
        let mut view = testing::View::default();
        view.owners.insert(addr("10.0.0.2"), NETNS);
        view.owners.insert(addr("10.0.0.9"), NETNS);
        view.owners.insert(addr("fd00::2"), NETNS);
        view.owners.insert(addr("10.0.0.3"), NETNS + 1);
        view.ports.insert((direction::OUTBOUND, 5432));
        view.ports.insert((direction::INBOUND, 9000));
        view.cidrs.insert(addr("192.0.2.7"));
        view.cidrs.insert(addr("2001:db8::7"));
        view
    }

    #[test]
    fn table() {
        let pod = Pod { v4: addr("10.0.0.2"), v6: addr("fd00::2") };
        let to4 = Outbound::Redirect(pod.v4, 16384 + 77);
        let to6 = Outbound::Redirect(pod.v6, 16384 + 77);
        for (destination, port, expected, why) in [
            ("198.51.100.1", 80, to4, "anything else goes to the engine"),
            ("2001:db8::1", 80, to6, "over IPv6 to the pod's IPv6 address"),
            ("::ffff:198.51.100.1", 80, to4, "a v4-mapped destination is an IPv4 one"),
            ("10.0.0.3", 80, to4, "another pod of this node is not the pod itself"),
            ("10.0.0.3", 15008, to4, "an application cannot dial a tunnel port past the engine"),
            ("127.0.0.1", 80, Outbound::Pass(Counter::OutboundLocal), "loopback"),
            ("::1", 80, Outbound::Pass(Counter::OutboundLocal), "IPv6 loopback"),
            ("0.0.0.0", 80, Outbound::Pass(Counter::OutboundLocal), "unspecified means loopback"),
            ("::", 80, Outbound::Pass(Counter::OutboundLocal), "unspecified means loopback"),
            ("fe80::5", 80, Outbound::Pass(Counter::OutboundLocal), "link-local has no meaning to the engine"),
            ("10.0.0.2", 16400, Outbound::Pass(Counter::OutboundOwnAddress), "the pod calls itself"),
            ("10.0.0.9", 80, Outbound::Pass(Counter::OutboundOwnAddress), "every address of the pod is its own"),
            ("fd00::2", 80, Outbound::Pass(Counter::OutboundOwnAddress), "the pod calls itself over IPv6"),
            ("198.51.100.1", 5432, Outbound::Pass(Counter::OutboundExcludedPort), "excluded port"),
            ("198.51.100.1", 9000, to4, "an inbound exclusion says nothing about outbound"),
            ("192.0.2.7", 80, Outbound::Pass(Counter::OutboundExcludedCidr), "excluded address"),
            ("2001:db8::7", 80, Outbound::Pass(Counter::OutboundExcludedCidr), "excluded IPv6 address"),
        ] {
            let got = outbound(&testing::config(), NETNS, &pod, &addr(destination), port, 0xffff_0000 | 77, &view());
            assert_eq!(got, expected, "{destination}:{port}: {why}");
        }
    }

    #[test]
    fn a_pod_that_is_not_enrolled_yet_waits_for_all_that_would_be_redirected() {
        let waits = Outbound::Redirect(hold_address(NETNS), 16384 + 77);
        for (destination, port, expected, why) in [
            ("198.51.100.1", 80, waits, "anything else waits"),
            ("2001:db8::1", 80, waits, "over IPv6 at the same place"),
            ("10.0.0.2", 80, waits, "whose address this is nobody has said yet"),
            ("127.0.0.1", 80, Outbound::Pass(Counter::OutboundLocal), "loopback"),
            ("::", 80, Outbound::Pass(Counter::OutboundLocal), "unspecified means loopback"),
            ("fe80::5", 80, Outbound::Pass(Counter::OutboundLocal), "link-local has no meaning to the engine"),
            ("198.51.100.1", 5432, Outbound::Pass(Counter::OutboundExcludedPort), "excluded port"),
            ("192.0.2.7", 80, Outbound::Pass(Counter::OutboundExcludedCidr), "excluded address"),
        ] {
            let got = held(&testing::config(), NETNS, &addr(destination), port, 0xffff_0000 | 77, &view());
            assert_eq!(got, expected, "{destination}:{port}: {why}");
        }
    }

    #[test]
    fn engine_passes() {
        let pod = Pod { v4: addr("10.0.0.2"), v6: [0; 4] };
        let view = testing::View { engine: true, ..view() };
        let got = outbound(&testing::config(), NETNS, &pod, &addr("198.51.100.1"), 80, 0, &view);
        assert_eq!(got, Outbound::Pass(Counter::OutboundEngine));
    }

    #[test]
    fn family_without_address_is_refused() {
        let pod = Pod { v4: addr("10.0.0.2"), v6: [0; 4] };
        let got = outbound(&testing::config(), NETNS, &pod, &addr("2001:db8::1"), 80, 0, &view());
        assert_eq!(got, Outbound::Refuse(Counter::OutboundRefusedFamily));
        let pod = Pod { v4: [0; 4], v6: addr("fd00::2") };
        let got = outbound(&testing::config(), NETNS, &pod, &addr("198.51.100.1"), 80, 0, &view());
        assert_eq!(got, Outbound::Refuse(Counter::OutboundRefusedFamily));
    }

    #[test]
    fn every_random_value_stays_in_the_range() {
        let pod = Pod { v4: addr("10.0.0.2"), v6: [0; 4] };
        let (mut low, mut high) = (u16::MAX, 0);
        for random in 0..=u32::from(u16::MAX) {
            let Outbound::Redirect(_, port) =
                outbound(&testing::config(), NETNS, &pod, &addr("198.51.100.1"), 80, random, &view())
            else {
                panic!("not redirected");
            };
            (low, high) = (low.min(port), high.max(port));
        }
        assert_eq!((low, high), (16384, 17407));
    }

    #[test]
    fn exclusions_are_not_looked_up_without_their_flag() {
        let pod = Pod { v4: addr("10.0.0.2"), v6: [0; 4] };
        let config = Config { flags: 0, ..testing::config() };
        for (destination, port) in [("198.51.100.1", 5432), ("192.0.2.7", 80)] {
            let got = outbound(&config, NETNS, &pod, &addr(destination), port, 0, &view());
            assert_eq!(got, Outbound::Redirect(pod.v4, 16384));
        }
    }
}
