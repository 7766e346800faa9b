//! The daemon: wiring, configuration, workers and shutdown.
//!
//! A connection is accepted in [`worker`], leaves through [`outbound`] and [`connect`], arrives through [`inbound`];
//! [`node`] is the control side: model, enrolment, certificates, signals.

mod answers;
pub mod certificates;
mod cgroups;
pub mod command;
pub mod connect;
pub mod control_plane;
mod deliver;
pub mod dns;
mod enrolment;
mod entry;
mod entry_health;
pub mod entry_points;
pub mod environment;
pub mod gateways;
pub mod headers;
pub mod inbound;
mod kernel;
pub mod kubernetes;
mod local;
mod look;
mod metrics;
mod names;
mod nested;
pub mod node;
pub mod node_ports;
mod on_demand;
pub mod outbound;
pub mod plaintext;
mod policy;
mod profile;
pub mod proof;
mod reach;
mod steering;
mod succession;
pub mod worker;
