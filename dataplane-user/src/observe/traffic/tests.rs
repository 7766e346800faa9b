//! What connections leave in the metrics.

use prometheus_client::{encoding::text::encode, registry::Registry};

use super::*;
use crate::hbone::{ConnError, Walk};

fn text(traffic: &Traffic, registry: &Registry) -> String {
    let mut text = String::new();
    assert!(traffic.write(&mut text).is_ok());
    assert!(encode(&mut text, registry).is_ok());
    text
}

fn value(text: &str, name: &str, labels: &[&str]) -> Option<String> {
    let mut lines = text.lines().filter(|line| line.starts_with(name));
    let line = lines.find(|line| labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next().map(str::to_owned)
}

#[test]
fn a_connection_counts_once_when_it_opens_and_once_when_it_ends() {
    let mut registry = Registry::default();
    let traffic = Traffic::new(&mut registry);
    let mut record = Record::new(Direction::Outbound);
    let account = traffic.opened(&record);
    account.add_bytes(7, 11);
    record.account = Some(account);
    traffic.ended(&record);
    let mut failed = Record::new(Direction::Outbound);
    failed.error = Some(ConnError::fatal(Leg::InnerTls, "web:80", "no"));
    traffic.ended(&failed);
    let text = text(&traffic, &registry);
    for (name, flags, wanted) in [
        ("istio_tcp_connections_opened_total", "-", "1"),
        ("istio_tcp_connections_closed_total", "-", "1"),
        ("istio_tcp_sent_bytes_total", "-", "11"),
        ("istio_tcp_received_bytes_total", "-", "7"),
        ("istio_tcp_connections_failed_total", "TLS_FAILURE", "1"),
    ] {
        let flags = format!("response_flags=\"{flags}\"");
        assert_eq!(value(&text, name, &[&flags]).as_deref(), Some(wanted), "{name} in {text}");
    }
    assert!(text.contains("reporter=\"source\""));
    assert!(text.contains("request_protocol=\"tcp\""));
    assert_eq!(value(&text, "causeway_failures_total", &["leg=\"inner-tls\""]).as_deref(), Some("1"), "{text}");
}

#[test]
fn the_gateway_role_is_no_reporter_and_is_counted_by_leg() {
    let mut registry = Registry::default();
    let traffic = Traffic::new(&mut registry);
    let walk = Walk::default();
    walk.done(Leg::Backend, std::time::Instant::now());
    let mut record = Record::new(Direction::Gateway);
    record.legs = walk.times();
    record.source.cluster = Some("one\"".into());
    record.destination.cluster = Some("two".into());
    record.account = Some(traffic.opened(&record));
    traffic.ended(&record);
    let text = text(&traffic, &registry);
    assert!(!text.contains("reporter="), "{text}");
    let labels =
        ["leg=\"backend\"", "direction=\"gateway\"", "source_cluster=\"one\\\"\"", "destination_cluster=\"two\""];
    let name = "causeway_leg_duration_seconds_count";
    assert_eq!(value(&text, name, &labels).as_deref(), Some("1"), "{text}");
    assert_eq!(value(&text, name, &["leg=\"outer-tls\""]), None, "a leg that nobody walked has no series: {text}");
    assert_eq!(value(&text, "causeway_setup_seconds_count", &labels[1..]).as_deref(), Some("1"), "{text}");
}

#[test]
fn clusters_that_peers_invent_do_not_fill_the_memory() {
    let traffic = Traffic::new(&mut Registry::default());
    for number in 0..MAX_WAYS + 10 {
        let mut record = Record::new(Direction::Inbound);
        record.source.cluster = Some(format!("cluster{number}").into());
        traffic.opened(&record);
    }
    let ways = traffic.ways.lock().map(|ways| ways.len()).unwrap_or_default();
    assert_eq!(ways, MAX_WAYS + 1, "the rest counts as unknown");
}

#[test]
fn connections_alike_share_their_counters_and_others_do_not() {
    let traffic = Traffic::new(&mut Registry::default());
    let mut record = Record::new(Direction::Inbound);
    let first = traffic.opened(&record);
    assert!(Arc::ptr_eq(&first, &traffic.opened(&record)));
    record.source.cluster = Some("other".into());
    assert!(!Arc::ptr_eq(&first, &traffic.opened(&record)));
    // Another node's counters in the same process are others.
    let second = Traffic::new(&mut Registry::default());
    assert!(!Arc::ptr_eq(&first, &second.opened(&Record::new(Direction::Inbound))));
}
