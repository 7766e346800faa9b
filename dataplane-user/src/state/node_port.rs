//! Services that are reached at a port of the node, and who is believed about clients that come in that way.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Cidr, IpFamilies, SourceMatch, Workload};
use crate::identity::SpiffeId;

/// What a node port stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortTarget {
    /// A port of a service.
    Service {
        /// `namespace/hostname`.
        key: Arc<str>,
        /// The service port.
        port: u16,
    },
    /// The east-west gateway of the own network.
    Gateway,
}

/// A port of every node's addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePort {
    /// The port.
    pub port: u16,
    /// What it stands for.
    pub target: NodePortTarget,
    /// Clients from outside reach endpoints of this node only (`externalTrafficPolicy: Local`).
    pub local: bool,
    /// Where load balancers ask whether this node has such endpoints.
    pub health_check: Option<u16>,
    /// Which of the node's addresses have it.
    pub families: IpFamilies,
}

/// Where connections to node ports come in, and in whose name they enter the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who connects on behalf of clients that have no identity.
    pub workload: Arc<Workload>,
    /// The node's network namespace, if it is not the daemon's own.
    pub netns: Option<PathBuf>,
    /// Names of devices; empty means those of the default routes.
    pub uplinks: Vec<String>,
    /// Addresses of the node; empty means those of the uplinks, and of `internal` those that it has.
    pub addresses: Vec<IpAddr>,
    /// Addresses that the cluster knows the node by: the devices that have them are uplinks too where none is named.
    pub internal: Vec<IpAddr>,
}

/// Identities that are believed about the address of a client outside the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedEntries {
    /// Who.
    pub identities: Vec<SourceMatch>,
    /// Addresses that no such client has: those of this cluster's pods.
    pub pod_ranges: Vec<Cidr>,
}

impl TrustedEntries {
    /// Whether `peer` is believed that its client has the address `client`. An address of a pod is nobody's else: with it a
    /// client would pass for that pod.
    #[must_use]
    pub fn believed(&self, peer: &SpiffeId, client: IpAddr) -> bool {
        let special = client.is_loopback() || client.is_unspecified() || client.is_multicast();
        self.identities.iter().any(|known| known.matches(peer))
            && !special
            && !self.pod_ranges.iter().any(|range| range.contains(client))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn an_entry_is_believed_about_strangers_alone() {
        let entry = SpiffeId::new("td", "istio-system", "entry").unwrap();
        let other = SpiffeId::new("td", "istio-system", "other").unwrap();
        let trusted = TrustedEntries {
            identities: vec![SourceMatch::Exact(entry.clone())],
            pod_ranges: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        };
        for (peer, client, expected) in [
            (&entry, "203.0.113.7", true),
            (&entry, "2001:db8::7", true),
            (&entry, "10.245.0.1", true),
            (&other, "203.0.113.7", false),
            (&entry, "10.244.1.2", false),
            (&entry, "fd00:10:244:1::2", false),
            (&entry, "127.0.0.1", false),
            (&entry, "::1", false),
            (&entry, "0.0.0.0", false),
            (&entry, "224.0.0.1", false),
        ] {
            assert_eq!(trusted.believed(peer, client.parse().unwrap()), expected, "{client} of {peer}");
        }
        assert!(!TrustedEntries::default().believed(&entry, "203.0.113.7".parse().unwrap()), "nobody by default");
    }
}
