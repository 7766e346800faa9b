//! Authorization policies.

use std::sync::Arc;

use super::{Cidr, Extension};

/// Which workloads a policy concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyScope {
    /// All.
    Global,
    /// Those of its namespace.
    Namespace,
    /// Those that list it.
    WorkloadSelector,
    /// Nobody knows: those of its namespace, and those that list it.
    Unreadable,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection is allowed.
    Allow,
    /// The connection is refused, whatever else matches.
    Deny,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// Equal.
    Exact(Arc<str>),
    /// Begins with.
    Prefix(Arc<str>),
    /// Ends with.
    Suffix(Arc<str>),
    /// Not empty.
    Presence,
}

impl StringMatch {
    /// Whether the text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// A service account, whatever its trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub service_account: Arc<str>,
}

/// One alternative of a clause: every field that is set must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Namespace of the peer's identity.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// Identity of the peer without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// Service account of the peer.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// Address of the TCP peer.
    pub source_ips: Vec<Cidr>,
    /// None of these.
    pub not_source_ips: Vec<Cidr>,
    /// Own address.
    pub destination_ips: Vec<Cidr>,
    /// None of these.
    pub not_destination_ips: Vec<Cidr>,
    /// Final port of the application.
    pub destination_ports: Vec<u16>,
    /// None of these.
    pub not_destination_ports: Vec<u16>,
}

/// One policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Primary key, `namespace/name`.
    pub key: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Whom it concerns.
    pub scope: PolicyScope,
    /// What a match means.
    pub action: Action,
    /// Whether it is only observed.
    pub dry_run: bool,
    /// Rules (any) of clauses (all) of matches (any).
    pub rules: Vec<Vec<Vec<Match>>>,
    /// What others attached to it.
    pub extensions: Box<[Extension]>,
    /// Why the policy as published could not be read, if so: then this one stands for it and lets nobody pass.
    pub unreadable: Option<Arc<str>>,
}
