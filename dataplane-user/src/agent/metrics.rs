//! The metrics of a node as text: those of the registry, and what other parts count.

use std::collections::BTreeMap;

use prometheus_client::encoding::text::encode;
use serde_json::{Value, json};

use super::answers::Answers;
use crate::{
    istio::{xds_client::Condition, xds_session::TYPES},
    observe::{
        dump, labels, process,
        record::Direction,
        text::{Kind, family, label, single},
    },
};

/// The words of ztunnel's metric for the end of a stream of the control plane.
const TERMINATIONS: [&str; 4] = ["ConnectionError", "Error", "Reconnect", "Complete"];

impl Answers {
    /// All metrics; the text ends with the mark that the registry writes.
    pub(super) fn all_metrics(&self) -> String {
        self.shared.connections.flush();
        let mut text = String::new();
        self.engine(&mut text);
        self.open_now(&mut text);
        self.enrolment(&mut text);
        self.certificates_held(&mut text);
        self.control_plane(&mut text);
        process::write(&mut text);
        // Writing into a String cannot fail.
        let _ = self.shared.connections.traffic().write(&mut text);
        let _ = self.shared.counters.dns.write(&mut text);
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn engine(&self, text: &mut String) {
        let counters = json!(self.shared.counters.read());
        let number = |name: &str| counters.get(name).and_then(Value::as_u64).unwrap_or(0);
        for (name, help) in [
            ("outbound", "Connections accepted from applications"),
            ("node_ports", "Connections accepted at node ports"),
            ("inbound", "CONNECTs accepted for pods"),
            ("plaintext", "Plaintext connections accepted for pods"),
            ("gateway", "Streams forwarded by the gateway role"),
            ("local", "Connections to another pod of this node"),
            ("passthrough", "Connections that left as plain TCP"),
            ("egress_refused", "Connections refused because their destination is outside the mesh and not listed"),
            ("log_dropped", "Lines of the access log that were dropped"),
            ("spans_sent", "Spans that a collector took"),
            ("spans_dropped", "Spans that no collector took"),
            ("inner_not_tls", "Streams cut because they did not carry TLS"),
        ] {
            single(text, Kind::Counter, &format!("causeway_{name}"), help, number(name));
        }
        let help = "Connections for which the name of a next hop was resolved";
        single(text, Kind::Counter, "istio_on_demand_dns", help, number("on_demand_dns"));
        let tag = [label("component", "causeway"), label("tag", env!("CARGO_PKG_VERSION"))].join(",");
        family(text, Kind::Gauge, "istio_build", "What runs here", [(tag, 1)]);
    }

    fn open_now(&self, text: &mut String) {
        let mut open: BTreeMap<Direction, u64> =
            [Direction::Outbound, Direction::Inbound, Direction::Gateway].map(|direction| (direction, 0)).into();
        for connection in self.shared.connections.list() {
            *open.entry(connection.record.direction).or_default() += 1;
        }
        let of_pods = open
            .iter()
            .filter_map(|(direction, count)| Some((label("reporter", labels::reporter(*direction)?), *count)));
        family(text, Kind::Gauge, "istio_tcp_sockets_open", "Connections of pods open now", of_pods);
        let all = open.iter().map(|(direction, count)| (label("direction", direction.name()), *count));
        family(text, Kind::Gauge, "causeway_connections_open", "Connections open now", all);
    }

    fn enrolment(&self, text: &mut String) {
        let pods = self.report();
        for (kind, name, help, value) in [
            (Kind::Gauge, "active_proxy_count", "Pods enrolled", pods.enrolled.len() as u64),
            (Kind::Gauge, "pending_proxy_count", "Pods that could not be enrolled yet", pods.failed.len() as u64),
            (Kind::Counter, "proxies_started", "Enrolments so far", pods.started),
            (Kind::Counter, "proxies_stopped", "Enrolments that ended", pods.stopped),
        ] {
            single(text, kind, &format!("workload_manager_{name}"), help, value);
        }
        let verdicts = pods.kernel.iter().map(|(verdict, count)| (label("verdict", verdict), *count));
        family(text, Kind::Counter, "causeway_kernel_verdicts", "Decisions of the kernel programs", verdicts);
    }

    fn certificates_held(&self, text: &mut String) {
        let ends = self
            .shared
            .credentials
            .held()
            .into_iter()
            .map(|credential| (label("identity", credential.id.as_str()), dump::seconds(credential.not_after)));
        let help = "Unix time at which a certificate ends";
        family(text, Kind::Gauge, "causeway_certificate_expiry_seconds", help, ends);
        let revoked = self.shared.credentials.revocations();
        let help = "Peers refused or cut because their certificate or its signer was revoked";
        single(text, Kind::Counter, "istio_crl_policy_rejections", help, revoked.rejected);
        let help = "Tunnels that no revocation can end, because the peer's chain is not known";
        single(text, Kind::Counter, "istio_crl_untracked_connections", help, revoked.untracked);
    }

    /// What the control planes sent, all of them together; the words that may come stand there from the start.
    fn control_plane(&self, text: &mut String) {
        let conditions: Vec<Condition> = self.shared.control_planes.iter().map(|handle| handle.condition()).collect();
        let sum = |of: &dyn Fn(&Condition) -> Option<u64>| conditions.iter().filter_map(of).sum::<u64>();
        let ends = TERMINATIONS
            .map(|reason| (label("reason", reason), sum(&|condition| condition.terminations.get(reason).copied())));
        let help = "Streams of the control plane that ended";
        family(text, Kind::Counter, "istio_xds_connection_terminations", help, ends);
        let messages = TYPES.map(|url| (label("url", url), sum(&|condition| condition.messages.get(url).copied())));
        family(text, Kind::Counter, "istio_xds_message", "Messages of the control plane", messages);
        let bytes = TYPES.map(|url| (label("url", url), sum(&|condition| condition.message_bytes.get(url).copied())));
        family(text, Kind::Counter, "istio_xds_message_bytes", "Bytes of its messages", bytes);
    }
}
