//! Whom a tunnel may end at.

use std::fmt;
use std::sync::Arc;

use super::SpiffeId;

/// The identities accepted from the server of a tunnel. Part of the pool key: two sets are equal when they accept the same
/// peers for the same reasons.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ExpectedPeer {
    ids: Arc<[SpiffeId]>,
    domains: Arc<[String]>,
}

impl ExpectedPeer {
    /// Accepts exactly the given identities.
    #[must_use]
    pub fn new(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self::with_domains(ids, std::iter::empty())
    }

    /// Accepts the given identities, and also each of them with its trust domain replaced by one of `domains`.
    ///
    /// istiod writes the identities of another network's workloads with the local trust domain, whatever theirs is.
    #[must_use]
    pub fn with_domains(ids: impl IntoIterator<Item = SpiffeId>, domains: impl IntoIterator<Item = String>) -> Self {
        let mut ids: Vec<_> = ids.into_iter().collect();
        ids.sort();
        ids.dedup();
        let mut domains: Vec<_> = domains.into_iter().collect();
        domains.sort();
        domains.dedup();
        Self { ids: ids.into(), domains: domains.into() }
    }

    /// The identities, sorted.
    #[must_use]
    pub fn ids(&self) -> &[SpiffeId] {
        &self.ids
    }

    /// The further trust domains, sorted.
    #[must_use]
    pub fn domains(&self) -> &[String] {
        &self.domains
    }

    /// Whether nobody can match.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Whether a peer that presented this identity is one of those expected.
    #[must_use]
    pub fn matches(&self, presented: &SpiffeId) -> bool {
        if self.ids.binary_search(presented).is_ok() {
            return true;
        }
        self.domains.iter().any(|d| d == presented.trust_domain()) && self.ids.iter().any(|id| id.same_path(presented))
    }
}

impl fmt::Display for ExpectedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        match self.ids.as_ref() {
            [] => f.write_str("nobody (the service names no identity)")?,
            [one] => write!(f, "{one}")?,
            many => {
                write!(f, "one of {}: ", many.len())?;
                for (index, id) in many.iter().take(SHOWN).enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{id}")?;
                }
                if many.len() > SHOWN {
                    f.write_str(", …")?;
                }
            }
        }
        if !self.domains.is_empty() {
            write!(f, " (trust domain may also be {})", self.domains.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    fn id(domain: &str, account: &str) -> SpiffeId {
        SpiffeId::new(domain, "default", account).unwrap()
    }

    #[test]
    fn matching_table() {
        let local = ExpectedPeer::new([id("a", "web"), id("a", "api")]);
        let foreign = ExpectedPeer::with_domains([id("a", "web")], ["b".to_owned()]);
        let rows = [
            (&local, id("a", "web"), true, "listed"),
            (&local, id("a", "api"), true, "listed second"),
            (&local, id("a", "db"), false, "other service account"),
            (&local, id("b", "web"), false, "other trust domain without permission"),
            (&foreign, id("b", "web"), true, "configured trust domain of the other network"),
            (&foreign, id("a", "web"), true, "as listed"),
            (&foreign, id("c", "web"), false, "trust domain of nobody"),
            (&foreign, id("b", "api"), false, "right domain, wrong account"),
        ];
        for (expected, presented, matches, why) in rows {
            assert_eq!(expected.matches(&presented), matches, "{why}");
        }
        assert!(!ExpectedPeer::new([]).matches(&id("a", "web")));
    }

    #[test]
    fn order_and_repetition_do_not_matter() {
        let one = ExpectedPeer::new([id("a", "x"), id("a", "y"), id("a", "x")]);
        assert_eq!(one, ExpectedPeer::new([id("a", "y"), id("a", "x")]));
        assert_eq!(one.to_string(), "one of 2: spiffe://a/ns/default/sa/x, spiffe://a/ns/default/sa/y");
    }
}
