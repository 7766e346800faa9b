//! What the kernel programs and user space share, and every decision the programs take.
//!
//! [`abi`] holds the keys and values of the maps; [`decide`] the verdicts as pure functions over a view of those maps, so that
//! the same code runs in the kernel and in the host tests. The programs (binary of this package) only gather the context of a
//! hook, ask for the verdict and apply it.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod counter;
pub mod decide;
