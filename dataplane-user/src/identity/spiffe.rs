//! SPIFFE names as Istio writes them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Cloning is cheap; equality and order are those of the
/// text.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Ends of the trust domain and of the namespace in `text`; all cuts fall on ASCII separators.
    domain_end: usize,
    namespace_end: usize,
}

/// Why a text is not a SPIFFE name of Istio's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a SPIFFE identity: {reason}; expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
)]
pub struct SpiffeError {
    text: String,
    reason: &'static str,
}

impl SpiffeId {
    /// Puts a name together from its parts.
    ///
    /// # Errors
    /// If a part is empty or holds a character that the form has no place for.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// Reads a name. The scheme must be lower case and there must be exactly five parts.
    ///
    /// # Errors
    /// Says which part of the form is missed.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let fail = |reason| SpiffeError { text: text.chars().take(300).collect(), reason };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| fail("it does not begin with spiffe://"))?;
        // SPIFFE limits identities to 2,048 bytes.
        if text.len() > 2048 {
            return Err(fail("it is longer than 2048 bytes"));
        }
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(fail("its path is not /ns/<namespace>/sa/<service account>"));
        };
        for (part, allowed) in [(domain, "._-:"), (namespace, "._-"), (account, "._-")] {
            if part.is_empty() {
                return Err(fail("a part is empty"));
            }
            if !part.chars().all(|c| c.is_ascii_alphanumeric() || allowed.contains(c)) {
                return Err(fail("a part holds a character other than letters, digits, '.', '_' and '-'"));
            }
        }
        let domain_end = SCHEME.len() + domain.len();
        Ok(Self { domain_end, namespace_end: domain_end + "/ns/".len() + namespace.len(), text: text.into() })
    }

    /// The whole name with its scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name without its scheme, as policies compare it.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.text.strip_prefix(SCHEME).unwrap_or(&self.text)
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.domain_end).unwrap_or_default()
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.text.get(self.domain_end + "/ns/".len()..self.namespace_end).unwrap_or_default()
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        self.text.get(self.namespace_end + "/sa/".len()..).unwrap_or_default()
    }

    /// Whether anybody else holds a copy of this very allocation.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.text) > 1
    }

    /// Whether namespace and service account are equal, whatever the trust domains.
    #[must_use]
    pub fn same_path(&self, other: &Self) -> bool {
        self.text.get(self.domain_end..) == other.text.get(other.domain_end..)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl Hash for SpiffeId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_found() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/web").unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "default");
        assert_eq!(id.service_account(), "web");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/web");
        assert_eq!(id, SpiffeId::new("cluster.local", "default", "web").unwrap());
        assert!(id.same_path(&SpiffeId::new("other", "default", "web").unwrap()));
        assert!(!id.same_path(&SpiffeId::new("cluster.local", "default", "we").unwrap()));
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "spiffe://",
            "SPIFFE://a/ns/b/sa/c",
            "https://a/ns/b/sa/c",
            "spiffe://a/ns/b",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/ns/b/sa/",
            "spiffe:///ns/b/sa/c",
            "spiffe://a/ns//sa/c",
            "spiffe://a/sa/b/ns/c",
            "spiffe://a/ns/b/sa/c?x",
            "spiffe://a/ns/b/sa/c d",
            "spiffe://u@a/ns/b/sa/c",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_never_panics(text in ".{0,60}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), text);
            }
        }

        #[test]
        fn parts_round_trip(d in "[a-z0-9.-]{1,20}", n in "[a-z0-9-]{1,20}", s in "[a-z0-9.-]{1,20}") {
            let id = SpiffeId::new(&d, &n, &s).unwrap();
            prop_assert_eq!((id.trust_domain(), id.namespace(), id.service_account()), (&*d, &*n, &*s));
            prop_assert_eq!(SpiffeId::parse(id.as_str()), Ok(id));
        }
    }
}
