//! How a record reads in the access log: the keys that readers of ambient access logs know, in their order, then ours.

use std::fmt::{self, Write as _};

use time::{OffsetDateTime, macros::format_description};

use super::record::{Moment, Record, Side};
use crate::state::LogFormat;

/// The value of a field.
pub(super) enum Value<'a> {
    /// Text that may come from outside.
    Text(&'a str),
    /// What shows itself without a blank or a quote.
    Shown(&'a dyn fmt::Display),
    /// Words, in quotes always.
    Words(&'a dyn fmt::Display),
    Number(u64),
    /// Microseconds, written in milliseconds.
    Micros(u32),
}

/// Writes one line with its end.
///
/// # Errors
/// Those of writing into a String: none.
pub fn write(line: &mut String, format: LogFormat, record: &Record) -> fmt::Result {
    let stamp = OffsetDateTime::from(record.at)
        .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"))
        .unwrap_or_default();
    let level = if record.error.is_some() { "error" } else { "info" };
    let message = match (record.moment, &record.error) {
        (_, Some(_)) => "connection failed",
        (Moment::Open, None) => "connection opened",
        (Moment::End, None) => "connection complete",
    };
    match format {
        LogFormat::Text => {
            write!(line, "{stamp}\t{level}\taccess\t{message}\t")?;
            let mut first = true;
            fields(record, &mut |key, value| {
                let gap = if std::mem::take(&mut first) { "" } else { " " };
                write!(line, "{gap}{key}=")?;
                match value {
                    Value::Text(text) => bare_or_quoted(line, text),
                    Value::Shown(value) => write!(line, "{value}"),
                    Value::Words(words) => write!(line, "{:?}", words.to_string()),
                    Value::Number(number) => write!(line, "{number}"),
                    Value::Micros(micros) => write!(line, "{}.{:03}", micros / 1000, micros % 1000),
                }
            })?;
        }
        LogFormat::Json => {
            write!(
                line,
                "{{\"level\":\"{level}\",\"time\":\"{stamp}\",\"scope\":\"access\",\"message\":\"{message}\""
            )?;
            fields(record, &mut |key, value| {
                write!(line, ",\"{key}\":")?;
                match value {
                    Value::Text(text) => json_text(line, text),
                    Value::Shown(value) | Value::Words(value) => json_text(line, &value.to_string()),
                    Value::Number(number) => write!(line, "{number}"),
                    Value::Micros(micros) => write!(line, "{}.{:03}", micros / 1000, micros % 1000),
                }
            })?;
            line.push('}');
        }
    }
    line.push('\n');
    Ok(())
}

/// Every field that is known, in order.
pub(super) fn fields(record: &Record, put: &mut dyn FnMut(&str, Value<'_>) -> fmt::Result) -> fmt::Result {
    side(["src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"], &record.source, None, put)?;
    let names = ["dst.addr", "dst.workload", "dst.namespace", "dst.identity", "dst.cluster"];
    side(names, &record.destination, Some(record), put)?;
    put("direction", Value::Shown(&record.direction.name()))?;
    put("bytes_sent", Value::Number(record.bytes.0))?;
    put("bytes_recv", Value::Number(record.bytes.1))?;
    put("duration", Value::Shown(&format_args!("{}ms", record.duration.as_millis())))?;
    if let Some(error) = &record.error {
        put("error", Value::Words(error))?;
        put("leg", Value::Shown(&error.leg))?;
        if let Some(status) = error.status {
            put("status", Value::Number(status.into()))?;
        }
    }
    if let Some(party) = record.reset_by {
        put("reset_by", Value::Shown(&party.name()))?;
    }
    if let Some(client) = &record.forwarded_for {
        put("client", Value::Text(client))?;
    }
    put("setup_ms", Value::Micros(u32::try_from(record.setup.as_micros()).unwrap_or(u32::MAX)))?;
    for (leg, micros) in record.legs.walked() {
        put(leg.field(), Value::Micros(micros))?;
    }
    Ok(())
}

fn side(
    [address, workload, namespace, identity, cluster]: [&str; 5],
    side: &Side,
    destination_of: Option<&Record>,
    put: &mut dyn FnMut(&str, Value<'_>) -> fmt::Result,
) -> fmt::Result {
    if let Some(known) = &side.address {
        put(address, Value::Shown(known))?;
    }
    if let Some(record) = destination_of {
        if let Some(hbone) = &record.hbone {
            put("dst.hbone_addr", Value::Text(hbone))?;
        }
        if let Some(service) = &record.service {
            put("dst.service", Value::Text(&service.hostname))?;
        }
    }
    if let Some(known) = &side.workload {
        put(workload, Value::Text(&known.name))?;
        put(namespace, Value::Text(&known.namespace))?;
    }
    if let Some(known) = &side.identity {
        put(identity, Value::Text(known.as_str()))?;
    }
    if let Some(known) = side.cluster() {
        put(cluster, Value::Text(known))?;
    }
    Ok(())
}

/// Text in quotes wherever it could end the line, add a field, or not be seen.
fn bare_or_quoted(line: &mut String, text: &str) -> fmt::Result {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
    if !text.is_empty() && text.bytes().all(plain) {
        line.push_str(text);
        return Ok(());
    }
    write!(line, "{text:?}")
}

fn json_text(line: &mut String, text: &str) -> fmt::Result {
    line.push_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;
    use crate::{
        hbone::{ConnError, Leg, Walk},
        identity::SpiffeId,
        observe::record::{Direction, Party},
    };

    fn line(format: LogFormat, record: &Record) -> String {
        let mut line = String::new();
        write(&mut line, format, record).unwrap();
        line
    }

    fn record() -> Record {
        let walk = Walk::default();
        walk.done(Leg::OuterTls, std::time::Instant::now());
        let mut record = Record::new(Direction::Outbound);
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        record.source = Side { address: "10.0.0.1:5".parse().ok(), cluster: Some("one".into()), ..Side::default() };
        record.destination = Side { identity: Some(id), cluster: Some("two\t x=1".into()), ..Side::default() };
        record.hbone = Some("web.shop:80".into());
        record.legs = walk.times();
        record
    }

    #[test]
    fn fields_stand_in_ztunnels_order_and_ours_behind_them() {
        let mut record = record();
        record.error = Some(ConnError::status(Leg::Connect, "10.0.0.2:15008", 401));
        record.forwarded_for = Some("10.0.0.9:1".into());
        let line = line(LogFormat::Text, &record);
        let keys = [
            "src.addr=10.0.0.1:5",
            "src.cluster=one",
            "dst.hbone_addr=web.shop:80",
            "dst.identity=spiffe://cluster.local/ns/shop/sa/web",
            "dst.cluster=\"two\\t x=1\"",
            "direction=outbound",
            "bytes_sent=0",
            "bytes_recv=0",
            "duration=0ms",
            "error=\"connect to 10.0.0.2:15008: denied by the policy of the peer (status 401); the log of its node names the policy\"",
            "leg=connect",
            "status=401",
            "client=10.0.0.9:1",
            "setup_ms=0.000",
            "outer_tls_ms=0.00",
        ];
        let places: Vec<usize> =
            keys.iter().map(|key| line.find(key).unwrap_or_else(|| panic!("{key}: {line}"))).collect();
        assert!(places.is_sorted(), "{places:?} {line}");
        assert!(!line.contains("resolve_ms"), "a leg that was not walked has no field: {line}");
        assert!(line.starts_with("1970-01-01T00:00:00.000000Z\terror\taccess\tconnection failed\tsrc.addr="));
    }

    #[test]
    fn a_json_line_has_the_same_fields_with_types() {
        let mut record = record();
        record.bytes = (3, 5);
        record.reset_by = Some(Party::Client);
        let line = line(LogFormat::Json, &record);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        for (key, wanted) in [
            ("level", serde_json::json!("info")),
            ("scope", "access".into()),
            ("message", "connection complete".into()),
            ("src.addr", "10.0.0.1:5".into()),
            ("dst.cluster", "two\t x=1".into()),
            ("bytes_recv", 5.into()),
            ("reset_by", "client".into()),
            ("duration", "0ms".into()),
        ] {
            assert_eq!(value.get(key), Some(&wanted), "{key} in {line}");
        }
        assert!(value.get("outer_tls_ms").is_some_and(serde_json::Value::is_number), "{line}");
    }

    #[test]
    fn failed_record_names_leg_and_keeps_to_one_line() {
        let mut record = Record::new(Direction::Outbound);
        record.error = Some(ConnError::fatal(Leg::InnerTls, "web:80", "presented \"x\"\nforged=1"));
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = line(format, &record);
            assert!(line.contains("inner-tls"), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }
}
