//! A control plane that says what a test tells it to: delta xDS over TLS, resources set and removed from Rust, and every
//! misbehaviour that a client must survive.

mod authority;
mod encode;
mod fixtures;
mod on_demand;
mod server;
mod service;

pub use encode::{policy_resource, resources, service_resource, workload_resource};
pub use fixtures::{Recorded, recorded};
pub use server::{Scripted, Seen};
pub use service::Fault;
