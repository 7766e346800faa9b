//! Messages of incremental xDS: `envoy.service.discovery.v3` and what it is made of.

use std::collections::{BTreeMap, HashMap};

use prost::{Message, Oneof};

use super::wds::Any;

/// Path of the only call.
pub const DELTA_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// What a client asks for, or how it received what it was sent.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaDiscoveryRequest {
    /// Who asks; in the first request of a stream.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// What kind of resource this is about.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names wanted from now on.
    #[prost(string, repeated, tag = "3")]
    pub resource_names_subscribe: Vec<String>,
    /// Names no longer wanted.
    #[prost(string, repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<String>,
    /// What the client holds, in the first request of a type on a stream.
    #[prost(map = "string, string", tag = "5")]
    pub initial_resource_versions: HashMap<String, String>,
    /// The response this answers.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// What was wrong with it.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// Changes.
#[derive(Clone, PartialEq, Message)]
pub struct DeltaDiscoveryResponse {
    /// For debugging.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// New or changed.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Their type.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Gone, or not there.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// A resource.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// Version of its content.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Content.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names it was asked for by.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
}

/// Who asks.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// `ztunnel~<ip>~<pod>.<namespace>~<namespace>.svc.cluster.local`.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What is known about it.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// Code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Text.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// A JSON object.
#[derive(Clone, PartialEq, Message)]
pub struct Struct {
    /// Its members.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// A JSON value.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    /// What kind.
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<Kind>,
}

/// The kinds of JSON value.
#[derive(Clone, PartialEq, Oneof)]
#[allow(missing_docs, reason = "named as in JSON")]
pub enum Kind {
    #[prost(int32, tag = "1")]
    Null(i32),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(message, tag = "5")]
    Struct(Struct),
    #[prost(message, tag = "6")]
    List(List),
}

/// A JSON array.
#[derive(Clone, PartialEq, Message)]
pub struct List {
    /// Its elements.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Self {
        let kind = match json {
            serde_json::Value::Null => Kind::Null(0),
            serde_json::Value::Bool(value) => Kind::Bool(*value),
            serde_json::Value::Number(value) => Kind::Number(value.as_f64().unwrap_or_default()),
            serde_json::Value::String(value) => Kind::Text(value.clone()),
            serde_json::Value::Array(values) => Kind::List(List { values: values.iter().map(Self::from).collect() }),
            serde_json::Value::Object(members) => Kind::Struct(Struct {
                fields: members.iter().map(|(key, value)| (key.clone(), Self::from(value))).collect(),
            }),
        };
        Self { kind: Some(kind) }
    }
}
