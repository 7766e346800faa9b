//! The command line: one file per command.

pub mod ca;
pub mod probe;
pub mod schema;
pub mod status;
pub mod uninstall;
pub mod validate;
