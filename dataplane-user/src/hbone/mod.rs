//! HBONE without input or output: authority, headers, status codes.
//!
//! Everything here turns bytes into values and back, needs no runtime and must survive any input: the tests feed it
//! arbitrary bytes.

pub mod advice;
mod authority;
mod baggage;
mod causeway;
mod forwarded;
mod leg;
mod proxy;
mod trace;

pub use authority::{Authority, AuthorityError};
pub use baggage::{Baggage, WorkloadType};
pub use causeway::{EndpointId, GatewaysHint, MAX_HINT_ADDRESSES, MAX_HINT_BYTES, peer_version};
pub use forwarded::Forwarded;
pub use leg::{Cause, ConnError, Leg, LegTimes, Walk};
pub use proxy::proxy_header;
pub use trace::{Span, TraceParent};

/// TCP port of HBONE, on pods and gateways alike (Istio's fixed number).
pub const HBONE_PORT: u16 = 15008;

/// Names of the headers on a CONNECT request or its answer.
pub mod header {
    /// Labels of the sending workload; telemetry only.
    pub const BAGGAGE: &str = "baggage";
    /// Address of the application and the service it named; telemetry only.
    pub const FORWARDED: &str = "forwarded";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// Network of the sender, on the inner CONNECT of nested HBONE only.
    pub const X_FORWARDED_NETWORK: &str = "x-forwarded-network";
    /// What kind of proxy sent the outer CONNECT of nested HBONE (Envoy only).
    pub const X_ISTIO_SOURCE: &str = "x-istio-source";
    /// Version of Causeway's own extensions that the sender speaks.
    pub const X_CAUSEWAY: &str = "x-causeway";
    /// Which endpoint answered an inner CONNECT.
    pub const X_CAUSEWAY_ENDPOINT: &str = "x-causeway-endpoint";
    /// Further entry points of the answering gateway's network.
    pub const X_CAUSEWAY_GATEWAYS: &str = "x-causeway-gateways";
}

/// Printable ASCII as header values may carry it (`http` draws the same line for text).
fn is_visible_ascii(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| matches!(byte, 0x20..=0x7e | b'\t'))
}
