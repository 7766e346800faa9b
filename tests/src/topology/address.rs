//! The address plan. Clusters differ only in the addresses of their nodes; pods and services of all share their ranges.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Every pod of every cluster is in here.
pub const PODS4: &str = "10.244.0.0/16";
/// Every pod of every cluster is in here.
pub const PODS6: &str = "fd00:10:244::/48";
/// Nodes, and what pods are known by outside their cluster: the only range routed between clusters.
pub const NODES4: &str = "172.30.0.0/16";
/// As [`NODES4`].
pub const NODES6: &str = "fd00:172:30::/48";

/// Node `number` of `cluster`, both from 1.
pub fn node4(cluster: usize, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, byte(cluster), number)
}

/// Node `number` of `cluster`, both from 1.
pub fn node6(cluster: usize, number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, word(cluster), 0, 0, 0, u16::from(number))
}

/// The router of a cluster.
pub fn router4(cluster: usize) -> Ipv4Addr {
    node4(cluster, 254)
}

/// The router of a cluster.
pub fn router6(cluster: usize) -> Ipv6Addr {
    node6(cluster, 254)
}

/// Pod `pod` (from 2) on node `number`; `pod` 1 is the node's end of every veth pair.
pub fn pod4(number: u8, pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number, pod)
}

/// Pod `pod` on node `number`.
pub fn pod6(number: u8, pod: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(number), 0, 0, 0, u16::from(pod))
}

/// What the pod is known by outside its cluster: a range of its own per node.
pub fn egress4(cluster: usize, number: u8, pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, byte(cluster * 16) + number, pod)
}

/// As [`egress4`].
pub fn egress6(cluster: usize, number: u8, pod: u8) -> Ipv6Addr {
    let net = u16::from(byte(cluster * 16) + number);
    Ipv6Addr::new(0xfd00, 0x172, 0x30, net, 0, 0, 0, u16::from(pod))
}

/// The address of the service with this number (from 0) in a cluster.
pub fn vip4(cluster: usize, service: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, byte(cluster), byte(service + 10))
}

/// As [`vip4`].
pub fn vip6(cluster: usize, service: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x96, word(cluster), 0, 0, 0, word(service + 0x10))
}

fn byte(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn word(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::{egress4, node4, pod4};

    #[test]
    fn pods_of_two_clusters_share_an_address_and_differ_outside() {
        assert_eq!(pod4(1, 2).to_string(), "10.244.1.2");
        assert_eq!(egress4(1, 1, 2).to_string(), "172.30.17.2");
        assert_eq!(egress4(2, 1, 2).to_string(), "172.30.33.2");
        assert_eq!(node4(2, 1).to_string(), "172.30.2.1");
    }
}
