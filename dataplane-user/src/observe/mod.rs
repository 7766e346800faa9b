//! What a node tells about itself: access log, metrics, open connections, admin interface.

pub mod access_log;
pub mod admin;
pub mod connections;
pub mod counters;
pub mod dns;
pub mod dump;
pub mod histogram;
pub mod http;
pub mod labels;
mod line;
mod log_output;
pub mod logging;
pub mod pprof;
pub mod process;
pub mod record;
mod spans;
pub mod text;
pub mod traffic;
