//! Causeway: an eBPF-accelerated redirection dataplane for ambient multicluster meshes.
//!
//! The rooms of this crate, in the order in which they may import each other (a room uses those above it):
//! [`hbone`] and [`identity`] know nothing of the rest; [`state`] is the mesh model; [`istio`] talks to the control plane;
//! [`decide`] are pure functions over the model; [`tunnel`] carries bytes; [`redirect`] owns the kernel side; [`multicluster`]
//! reads and links clusters; [`gateway`], [`observe`], [`agent`] and [`ctl`] put it together.

pub mod agent;
pub mod ctl;
pub mod decide;
pub mod dns;
pub mod gateway;
pub mod hbone;
pub mod identity;
pub mod istio;
pub mod kube;
pub mod multicluster;
pub mod observe;
pub mod redirect;
pub mod state;
pub mod tunnel;
