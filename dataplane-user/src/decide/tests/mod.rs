//! Tables of decisions over small models written as files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod balancing;
mod egress;
mod entry;
mod gateways;
mod inbound;
mod outbound;
mod policies;
mod remote_pods;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::state::{Model, Workload, file};

/// What every model of these tests ends with.
const NODE: &str = r#"
causeway:
  node: n1
  cluster: c1
  network: net1
  trustDomain: td
  identity: {caDirectory: certs}
"#;

fn model(text: &str) -> Model {
    model_with(text, "")
}

/// A model with further lines under `causeway`.
fn model_with(text: &str, causeway: &str) -> Model {
    file::parse(&format!("{text}{NODE}{causeway}"), Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"))
}

fn workload(model: &Model, uid: &str) -> Arc<Workload> {
    model.workload(uid).unwrap_or_else(|| panic!("no workload {uid}")).clone()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A generator that is the same in every run (xorshift64*).
fn rng(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// A load view of the test's making.
#[derive(Default)]
struct Load {
    open: HashMap<String, u32>,
    ejected: Vec<String>,
}

impl LoadView for Load {
    fn open(&self, uid: &str) -> u32 {
        self.open.get(uid).copied().unwrap_or(0)
    }
    fn ejected(&self, uid: &str) -> bool {
        self.ejected.iter().any(|ejected| ejected == uid)
    }
}
