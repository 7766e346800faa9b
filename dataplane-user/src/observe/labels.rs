//! Istio's traffic labels of a connection.

use std::{fmt, sync::Arc};

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};

use super::record::{Direction, Record, Side};
use crate::hbone::{Cause, ConnError, Leg};

/// What a label says whose value is not known.
pub const UNKNOWN: &str = "unknown";
/// The flags of a connection that did not fail.
pub const NONE: &str = "-";

/// What Istio calls a connection's traffic labels, in the order they are written.
const LABELS: [&str; 26] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_region",
    "source_zone",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_region",
    "destination_zone",
    "connection_security_policy",
    "response_flags",
];

/// The label that is the same on all of these metrics.
const PROTOCOL: (&str, &str) = ("request_protocol", "tcp");

/// Values of the labels, in their order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels([Arc<str>; LABELS.len()]);

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, value) in LABELS.iter().zip(&self.0) {
            (*name, &**value).encode(encoder.encode_label())?;
        }
        PROTOCOL.encode(encoder.encode_label())
    }
}

impl Labels {
    /// The labels of a connection that ended with `flags`. The gateway role is nobody's source or destination and has none.
    pub fn of(record: &Record, flags: &str) -> Option<Self> {
        let reporter = reporter(record.direction)?;
        let service = match &record.service {
            Some(service) => [&service.hostname, &service.namespace, &service.name].map(or_unknown),
            None => std::array::from_fn(|_| UNKNOWN.into()),
        };
        let secured = record.source.identity.is_some() && record.destination.identity.is_some();
        let policy = if secured { "mutual_tls" } else { UNKNOWN };
        let values: Vec<Arc<str>> = [reporter.into()]
            .into_iter()
            .chain(side(&record.source))
            .chain(service)
            .chain(side(&record.destination))
            .chain([policy.into(), flags.into()])
            .collect();
        values.try_into().ok().map(Self)
    }
}

/// Whose view a connection of this direction is; none for the gateway role.
#[must_use]
pub fn reporter(direction: Direction) -> Option<&'static str> {
    match direction {
        Direction::Outbound => Some("source"),
        Direction::Inbound => Some("destination"),
        Direction::Gateway => None,
    }
}

fn or_unknown(text: &Arc<str>) -> Arc<str> {
    if text.is_empty() { UNKNOWN.into() } else { text.clone() }
}

fn side(side: &Side) -> [Arc<str>; 10] {
    let principal = side.identity.as_ref().map_or_else(|| UNKNOWN.into(), |id| Arc::from(id.as_str()));
    let cluster = side.cluster().map_or_else(|| UNKNOWN.into(), or_unknown);
    let Some(workload) = &side.workload else {
        let unknown = || Arc::from(UNKNOWN);
        return [
            unknown(),
            unknown(),
            unknown(),
            unknown(),
            principal,
            unknown(),
            unknown(),
            cluster,
            unknown(),
            unknown(),
        ];
    };
    [
        or_unknown(&workload.workload_name),
        or_unknown(&workload.canonical_name),
        or_unknown(&workload.canonical_revision),
        or_unknown(&workload.namespace),
        principal,
        or_unknown(&workload.canonical_name),
        or_unknown(&workload.canonical_revision),
        cluster,
        or_unknown(&workload.locality.region),
        or_unknown(&workload.locality.zone),
    ]
}

/// Istio's word for what ended a connection.
#[must_use]
pub fn flags(error: &ConnError) -> &'static str {
    match (error.cause, error.leg, error.status) {
        (Cause::Revoked, ..) => "CERT_REVOKED",
        (Cause::NoCertificate, ..) => "IDENTITY_ERROR",
        (Cause::Preface, ..) => "H2_HANDSHAKE_FAILURE",
        (_, _, Some(401)) | (_, Leg::Accept, _) => "DENY",
        (Cause::Timeout, Leg::OuterTcp | Leg::Backend, _) => "NETWORK_POLICY",
        (_, Leg::OuterTls | Leg::InnerTls, _) => "TLS_FAILURE",
        (_, Leg::OuterTcp | Leg::Backend | Leg::Resolve | Leg::Connect, _) => "CONNECT",
    }
}

/// A label's value as it stands between quotes in the text of metrics.
#[must_use]
pub fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_istios_word() {
        let error = |leg| ConnError::fatal(leg, "web:80", "why");
        for (error, word) in [
            (error(Leg::Accept), "DENY"),
            (ConnError::status(Leg::Connect, "web:80", 401), "DENY"),
            (ConnError::status(Leg::Connect, "web:80", 503), "CONNECT"),
            (error(Leg::Resolve), "CONNECT"),
            (error(Leg::OuterTcp), "CONNECT"),
            (error(Leg::OuterTcp).because(Cause::Timeout), "NETWORK_POLICY"),
            (error(Leg::Backend).because(Cause::Timeout), "NETWORK_POLICY"),
            (error(Leg::Backend), "CONNECT"),
            (error(Leg::OuterTls), "TLS_FAILURE"),
            (error(Leg::InnerTls).because(Cause::Timeout), "TLS_FAILURE"),
            (error(Leg::OuterTls).because(Cause::Preface), "H2_HANDSHAKE_FAILURE"),
            (error(Leg::InnerTls).because(Cause::Revoked), "CERT_REVOKED"),
            (error(Leg::Accept).because(Cause::Revoked), "CERT_REVOKED"),
            (error(Leg::OuterTls).because(Cause::NoCertificate), "IDENTITY_ERROR"),
        ] {
            assert_eq!(flags(&error), word, "{error:?}");
        }
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
