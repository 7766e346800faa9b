//! Messages of `istio.security`: authorization policies. Field numbers are those of `authorization.proto` in
//! `istio/ztunnel`.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::wds::Extension;

/// Type URL of [`Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// A policy.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "named as in the model, which describes them")]
pub struct Authorization {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(int32, tag = "3")]
    pub scope: i32,
    #[prost(int32, tag = "4")]
    pub action: i32,
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<Rule>,
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    #[prost(message, repeated, tag = "7")]
    pub extensions: Vec<Extension>,
}

/// All clauses must hold.
#[derive(Clone, PartialEq, Message)]
pub struct Rule {
    /// Clauses.
    #[prost(message, repeated, tag = "1")]
    pub clauses: Vec<Clause>,
}

/// One match must hold.
#[derive(Clone, PartialEq, Message)]
pub struct Clause {
    /// Matches.
    #[prost(message, repeated, tag = "2")]
    pub matches: Vec<Match>,
}

/// Every field that is set must hold.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "named as in the model, which describes them")]
pub struct Match {
    #[prost(message, repeated, tag = "1")]
    pub namespaces: Vec<StringMatch>,
    #[prost(message, repeated, tag = "2")]
    pub not_namespaces: Vec<StringMatch>,
    #[prost(message, repeated, tag = "3")]
    pub principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "4")]
    pub not_principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "5")]
    pub source_ips: Vec<Range>,
    #[prost(message, repeated, tag = "6")]
    pub not_source_ips: Vec<Range>,
    #[prost(message, repeated, tag = "7")]
    pub destination_ips: Vec<Range>,
    #[prost(message, repeated, tag = "8")]
    pub not_destination_ips: Vec<Range>,
    #[prost(uint32, repeated, tag = "9")]
    pub destination_ports: Vec<u32>,
    #[prost(uint32, repeated, tag = "10")]
    pub not_destination_ports: Vec<u32>,
    #[prost(message, repeated, tag = "11")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    #[prost(message, repeated, tag = "12")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    #[prost(message, repeated, tag = "13")]
    pub extensions: Vec<Extension>,
}

/// An address range.
#[derive(Clone, PartialEq, Message)]
pub struct Range {
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub address: Bytes,
    /// Leading bits that count.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// A service account.
#[derive(Clone, PartialEq, Message)]
#[allow(missing_docs, reason = "say what they are")]
pub struct ServiceAccountMatch {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub service_account: String,
}

/// How a text is compared.
#[derive(Clone, PartialEq, Message)]
pub struct StringMatch {
    /// The way; none is an error.
    #[prost(oneof = "MatchType", tags = "1, 2, 3, 4")]
    pub match_type: Option<MatchType>,
}

/// How a text is compared.
#[derive(Clone, PartialEq, Oneof)]
pub enum MatchType {
    /// Equal.
    #[prost(string, tag = "1")]
    Exact(String),
    /// Begins with.
    #[prost(string, tag = "2")]
    Prefix(String),
    /// Ends with.
    #[prost(string, tag = "3")]
    Suffix(String),
    /// Is not empty.
    #[prost(message, tag = "4")]
    Presence(Empty),
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}
