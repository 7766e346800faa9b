//! Tunnels over tokio, rustls and h2: dial, accept, pool, nest and copy.
//!
//! A tunnel is one HTTP/2 connection inside mutual TLS; a stream is one CONNECT on it and carries one application connection.
//! Everything here runs on the worker thread that accepted the application's connection: nothing is `Send` on purpose, so
//! that no byte crosses a core.

pub mod client;
pub mod copy;
pub mod ended;
pub mod ends;
pub mod h2io;
pub mod inner;
pub mod pool;
pub mod random;
pub mod server;
pub mod settings;
pub mod tls;
