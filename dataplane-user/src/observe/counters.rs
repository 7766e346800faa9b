//! What the engine counts: connections by direction, failures by leg, bytes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::dns::{DnsCounters, DnsReading};

/// Counters of the engine; every worker adds to the same ones.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted from applications of enrolled pods.
    pub outbound: AtomicU64,
    /// Connections accepted at node ports.
    pub node_ports: AtomicU64,
    /// CONNECTs accepted for enrolled pods.
    pub inbound: AtomicU64,
    /// Plaintext connections accepted for enrolled pods.
    pub plaintext: AtomicU64,
    /// Streams forwarded by the gateway role.
    pub gateway: AtomicU64,
    /// Connections open now, all directions.
    pub open: AtomicU64,
    /// Bytes from applications or peers towards destinations.
    pub bytes_sent: AtomicU64,
    /// Bytes on the way back.
    pub bytes_received: AtomicU64,
    /// Outbound connections to another pod of the same node.
    pub local: AtomicU64,
    /// Outbound connections that left as plain TCP because their destination is not in the mesh.
    pub passthrough: AtomicU64,
    /// Outbound connections refused because their destination is outside the mesh and not listed.
    pub egress_refused: AtomicU64,
    /// Lines of the access log that were dropped because its writer did not keep up.
    pub log_dropped: AtomicU64,
    /// Names of next hops that were resolved for a connection.
    pub on_demand_dns: AtomicU64,
    /// Spans that a collector took.
    pub spans_sent: AtomicU64,
    /// Spans that were dropped: no collector, one that is too slow, or one that refused them.
    pub spans_dropped: AtomicU64,
    /// Streams a gateway cut because they did not carry TLS.
    pub inner_not_tls: AtomicU64,
    /// Failed connections, by leg in the order of [`crate::hbone::Leg::ALL`].
    pub failed: [AtomicU64; 7],
    /// DNS.
    pub dns: DnsCounters,
}

/// A reading of [`Counters`], for the admin socket.
#[derive(Debug, Serialize)]
pub struct Reading {
    outbound: u64,
    node_ports: u64,
    inbound: u64,
    plaintext: u64,
    gateway: u64,
    open: u64,
    bytes_sent: u64,
    bytes_received: u64,
    local: u64,
    passthrough: u64,
    egress_refused: u64,
    log_dropped: u64,
    inner_not_tls: u64,
    on_demand_dns: u64,
    spans_sent: u64,
    spans_dropped: u64,
    failed: std::collections::BTreeMap<&'static str, u64>,
    dns: DnsReading,
}

impl Counters {
    /// Adds one.
    pub fn add(counter: &AtomicU64) {
        Self::add_many(counter, 1);
    }

    /// Counts several.
    pub fn add_many(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }

    /// Counts a connection that ended.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Adds the bytes of a connection: towards the destination, and back.
    pub fn add_bytes(&self, (sent, received): (u64, u64)) {
        self.bytes_sent.fetch_add(sent, Relaxed);
        self.bytes_received.fetch_add(received, Relaxed);
    }

    /// Counts a failure of `leg`.
    pub fn fail(&self, leg: crate::hbone::Leg) {
        let index = crate::hbone::Leg::ALL.iter().position(|known| *known == leg);
        if let Some(counter) = index.and_then(|index| self.failed.get(index)) {
            Self::add(counter);
        }
    }

    /// The values now.
    pub fn read(&self) -> Reading {
        Reading {
            outbound: self.outbound.load(Relaxed),
            node_ports: self.node_ports.load(Relaxed),
            inbound: self.inbound.load(Relaxed),
            plaintext: self.plaintext.load(Relaxed),
            gateway: self.gateway.load(Relaxed),
            open: self.open.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            local: self.local.load(Relaxed),
            passthrough: self.passthrough.load(Relaxed),
            egress_refused: self.egress_refused.load(Relaxed),
            log_dropped: self.log_dropped.load(Relaxed),
            inner_not_tls: self.inner_not_tls.load(Relaxed),
            on_demand_dns: self.on_demand_dns.load(Relaxed),
            spans_sent: self.spans_sent.load(Relaxed),
            spans_dropped: self.spans_dropped.load(Relaxed),
            failed: crate::hbone::Leg::ALL
                .iter()
                .zip(&self.failed)
                .map(|(leg, count)| (leg.name(), count.load(Relaxed)))
                .collect(),
            dns: self.dns.read(),
        }
    }
}
