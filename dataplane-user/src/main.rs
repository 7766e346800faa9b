//! The one binary of Causeway.

fn main() {}
