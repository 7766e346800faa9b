//! DNS for enrolled pods: which names are the mesh's, what they mean to a client, and the messages that say so.
//!
//! - [`names`]: the names a question may mean (search domains, wildcards).
//! - [`lookup`]: finds the service or pod behind a name, as one client sees the mesh.
//! - [`answer`]: the records for a question, or that it is not ours.
//! - [`message`]: reads questions and writes answers, within the size the client can take.
//! - [`Reserved`]: addresses that stand for pods of other networks.
//!
//! Nothing here does input or output, waits, or reads a clock of its own. What is not ours is forwarded by the agent, byte for byte.

pub mod answer;
pub mod asking;
pub mod lookup;
pub mod message;
pub mod names;
mod reserved;

pub use reserved::{RESERVED, Reserved, is_reserved};

/// How long an answer may be kept, in seconds, as in Istio's node proxy.
pub const TTL: u32 = 30;
/// How long the absence of a record may be kept, in seconds: a service may get its first endpoint at any time.
pub const NEGATIVE_TTL: u32 = 5;
/// Names below this one mean services of the mesh whatever cluster they are in.
pub const MESH_DOMAIN: &str = "mesh.internal";

#[cfg(test)]
mod tests;
