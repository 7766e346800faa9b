//! Which destinations outside the mesh workloads may reach.

use std::net::SocketAddr;

use super::Cidr;

/// What happens to connections whose destination the mesh does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutboundMode {
    /// They pass.
    #[default]
    AllowAny,
    /// They are refused, except to what is listed.
    RegistryOnly,
}

/// Destinations outside the mesh that are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedRange {
    /// Where.
    pub range: Cidr,
    /// At which ports; none listed means all.
    pub ports: Vec<u16>,
}

/// Which destinations outside the mesh a workload may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Egress {
    /// All, or those listed.
    pub mode: OutboundMode,
    /// Those listed.
    pub allowed: Vec<AllowedRange>,
}

impl Egress {
    /// Whether a destination that the mesh does not know may be reached.
    #[must_use]
    pub fn permits(&self, to: SocketAddr) -> bool {
        let listed = |entry: &AllowedRange| {
            entry.range.contains(to.ip()) && (entry.ports.is_empty() || entry.ports.contains(&to.port()))
        };
        self.mode == OutboundMode::AllowAny || self.allowed.iter().any(listed)
    }
}
