//! Access log, counters and the admin socket.

pub mod access_log;
pub mod admin;
pub mod counters;
