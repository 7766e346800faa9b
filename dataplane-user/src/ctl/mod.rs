//! The command line: one file per command.

pub mod ca;
pub mod dump;
pub mod install;
pub mod multicluster;
pub mod probe;
pub mod schema;
pub mod show;
pub mod status;
pub mod top;
pub mod uninstall;
pub mod unmark;
pub mod validate;
