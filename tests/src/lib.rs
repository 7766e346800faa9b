//! Topologies and peers for the tests of Causeway.
