//! The process that enters pods' network namespaces.
//!
//! Workers never call `setns`, and the daemon needs no `SYS_ADMIN` after start: this process has it and does three things.
//! It opens a pod (listeners, sysctl, rules), it undoes that, and it makes sockets inside a pod's namespace. It is spoken to
//! over `SOCK_SEQPACKET` pairs, descriptors travelling as `SCM_RIGHTS`: one control channel, and one channel for each worker,
//! served by a thread of its own. For node ports it makes one more namespace (`entry`). It ends when the control channel closes.

mod control;
mod diag;
pub(super) mod entry;
mod links;
mod netlink;
mod podnet;
mod serve;
mod spawn;
pub(super) mod wire;

pub(super) use podnet::{Saved, StepError, undo};
pub use serve::serve;
pub use spawn::{Helper, Spawn};
