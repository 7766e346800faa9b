//! HTTP/2 settings of both roles.

use std::time::Duration;

use bytes::Bytes;

/// Bytes a peer may send on one stream before it hears from us. Sixteen streams can be stalled before the others feel it.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes a peer may send on one tunnel before it hears from us.
pub const TUNNEL_WINDOW_BYTES: u32 = 16 * STREAM_WINDOW_BYTES;
/// The largest DATA frame we accept: twice what one read of an application yields, so that a read and what encryption adds to
/// it travel in one frame of the outer tunnel.
pub const FRAME_BYTES: u32 = 256 << 10;
/// Streams a peer may open on one tunnel.
pub const STREAMS_PER_TUNNEL: u32 = 200;
/// Largest block of request headers accepted, in bytes.
pub const REQUEST_HEADERS_BYTES: u32 = 64 << 10;
/// Largest block of response headers accepted, in bytes.
pub const RESPONSE_HEADERS_BYTES: u32 = 16 << 10;
/// Bytes handed to HTTP/2 and not yet written, per stream: more only waits in memory, and falls out of the cache there.
const SEND_BUFFER_BYTES: usize = 512 << 10;
/// How long a TCP connection to the next hop may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long TLS and the HTTP/2 preface may take together.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two PINGs of a tunnel in use.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time a PING may stay unanswered on a tunnel that makes no progress.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A tunnel without streams is closed after this time.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// The client role.
pub fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(TUNNEL_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(RESPONSE_HEADERS_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .initial_max_send_streams(STREAMS_PER_TUNNEL as usize / 2);
    builder
}

/// The server role.
pub fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(TUNNEL_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(REQUEST_HEADERS_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_streams(STREAMS_PER_TUNNEL);
    builder
}

/// The sending half of a stream, as both roles see it.
pub type SendStream = h2::SendStream<Bytes>;
