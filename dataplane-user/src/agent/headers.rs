//! The headers of a CONNECT and of its answer, made from the model and read back for the log.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    hbone::{Baggage, Forwarded, TraceParent, WorkloadType, header},
    state::Workload,
};

/// The version of the private extensions this build speaks.
const CAUSEWAY_VERSION: &str = "1";

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A value that no header may carry comes from the model (a workload's label); the header is optional then.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

/// The labels of `workload` as the peer sees them.
pub fn baggage(workload: &Workload) -> String {
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    Baggage {
        cluster: text(&workload.cluster),
        namespace: text(&workload.namespace),
        workload_type: WorkloadType::from_name(&workload.workload_type),
        workload_name: text(&workload.workload_name),
        service_name: text(&workload.canonical_name),
        service_version: text(&workload.canonical_revision),
        region: text(&workload.locality.region),
        zone: text(&workload.locality.zone),
    }
    .to_header()
}

/// Headers of a CONNECT on behalf of `source`; `client` is the application's own address.
pub fn request(source: &Workload, client: SocketAddr, host: Option<&str>, trace: &TraceParent) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(6);
    put(&mut headers, header::BAGGAGE, &baggage(source));
    let forwarded = Forwarded { for_: Some(client), host: host.map(str::to_owned) };
    if let Some(value) = forwarded.to_header() {
        put(&mut headers, header::FORWARDED, &value);
    }
    put(&mut headers, header::TRACEPARENT, &trace.to_string());
    put(&mut headers, header::X_CAUSEWAY, CAUSEWAY_VERSION);
    headers
}

/// Adds what only the inner CONNECT of nested HBONE carries.
pub fn add_network(headers: &mut HeaderMap, network: &str) {
    put(headers, header::X_FORWARDED_NETWORK, network);
}

/// Headers of the 200 for `destination`; `endpoint` names the pod towards peers of our own kind only.
pub fn response(destination: &Workload, endpoint: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    put(&mut headers, header::BAGGAGE, &baggage(destination));
    if let Some(endpoint) = endpoint {
        put(&mut headers, header::X_CAUSEWAY, CAUSEWAY_VERSION);
        put(&mut headers, header::X_CAUSEWAY_ENDPOINT, endpoint);
    }
    headers
}

/// Every line of header `name`, as bytes.
pub fn lines<'a>(headers: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}
