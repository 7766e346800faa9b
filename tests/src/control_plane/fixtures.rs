//! What a real istiod was recorded to send (`tests/fixtures/istiod`).

use std::path::Path;

use causeway::istio::xds_proto::DeltaDiscoveryResponse;
use prost::Message as _;
use serde_json::Value;

use crate::{Result, context};

/// A recorded answer.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// As it was on the wire.
    pub response: DeltaDiscoveryResponse,
    /// The same, as the recorder decoded it.
    pub decoded: Value,
}

/// The answers recorded under a name: `cluster1`, `cluster2` or `on-demand`.
///
/// # Errors
/// If the file is missing or is not what it should be.
pub fn recorded(name: &str) -> Result<Vec<Recorded>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/istiod").join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).map_err(context(path.display()))?;
    let file: Value = serde_json::from_str(&text).map_err(context(path.display()))?;
    let mut answers = Vec::new();
    for decoded in file["responses"].as_array().into_iter().flatten() {
        let raw = decoded["raw"].as_str().and_then(base64).ok_or("raw is not base 64")?;
        let response = DeltaDiscoveryResponse::decode(&raw[..]).map_err(context("a recorded response"))?;
        answers.push(Recorded { response, decoded: decoded.clone() });
    }
    Ok(answers)
}

/// RFC 4648 section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}
