//! What a service account token says about its bearer; for explanations only, the server is the judge.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

/// The claims that matter when a token is refused.
#[derive(Debug, Default, Deserialize)]
pub struct Claims {
    sub: Option<String>,
    exp: Option<u64>,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: Kubernetes,
}

#[derive(Debug, Default, Deserialize)]
struct Kubernetes {
    pod: Option<Named>,
    node: Option<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

impl Claims {
    /// Reads the middle part of a JSON web token (RFC 7519); nothing is verified.
    #[must_use]
    pub fn read(token: &str) -> Option<Self> {
        let payload = token.trim().split('.').nth(1)?;
        serde_json::from_slice(&base64url(payload)?).ok()
    }

    /// The service account as `namespace/name`.
    #[must_use]
    pub fn service_account(&self) -> Option<String> {
        self.sub.as_deref()?.strip_prefix("system:serviceaccount:").map(|name| name.replace(':', "/"))
    }

    /// The pod the token is bound to.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        self.kubernetes.pod.as_ref().map(|pod| pod.name.as_str())
    }

    /// The node of that pod, where the API server says it.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.kubernetes.node.as_ref().map(|node| node.name.as_str())
    }

    /// How long ago the token expired, if it did.
    #[must_use]
    pub fn expired_for(&self, now: SystemTime) -> Option<Duration> {
        now.duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(self.exp?)).ok()
    }
}

/// Base 64 with the alphabet of RFC 4648 section 5, without padding.
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let (mut bits, mut held) = (0u32, 0u32);
    for character in text.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn claims_of_a_bound_token() {
        // {"sub":"system:serviceaccount:istio-system:ztunnel","exp":100,"kubernetes.io":{"pod":{"name":"z-1"},"node":{"name":"n1"}}}
        let payload = "eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6aXN0aW8tc3lzdGVtOnp0dW5uZWwiLCJleHAiOjEwMCwia3ViZXJuZXRlcy5pbyI6eyJwb2QiOnsibmFtZSI6InotMSJ9LCJub2RlIjp7Im5hbWUiOiJuMSJ9fX0";
        let claims = Claims::read(&format!("head.{payload}.sign\n")).unwrap();
        assert_eq!(claims.service_account().as_deref(), Some("istio-system/ztunnel"));
        assert_eq!((claims.pod(), claims.node()), (Some("z-1"), Some("n1")));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(160);
        assert_eq!(claims.expired_for(now), Some(Duration::from_secs(60)));
        for text in ["", "a.b.c", "a.!!!!.c", "no token at all"] {
            assert!(Claims::read(text).is_none(), "{text}");
        }
    }
}
