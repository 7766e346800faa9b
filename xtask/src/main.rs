//! Set-up, build and tests of Causeway.

fn main() {}
