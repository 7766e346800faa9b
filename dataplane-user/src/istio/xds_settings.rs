//! Where resources come from and as whom they are asked for: the model file, and the environment variables of ztunnel for
//! what the file leaves out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::channel::ChannelConfig;
use super::xds_proto::{Kind, Node, Struct, Value};
use crate::state::{ControlPlane, NodeConfig, SourceId};

pub(super) const DEFAULT_ROOTS: &str = "./var/run/secrets/istio/root-cert.pem";
pub(super) const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";
const DEFAULT_IP: &str = "1.1.1.1";

/// One server.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Whose resources these are.
    pub source: SourceId,
    /// How it is reached.
    pub channel: ChannelConfig,
    /// As whom.
    pub node: Node,
    /// Ask for what is needed instead of everything.
    pub on_demand: bool,
}

/// The environment, for what the file leaves out.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        // Variables that are not text cannot be ours.
        Self(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
    }

    /// A variable that is set to something.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// A variable, or what holds without it.
    #[must_use]
    pub fn or<'a>(&'a self, name: &str, default: &'a str) -> &'a str {
        self.get(name).unwrap_or(default)
    }

    /// A time as Go writes it: hours, minutes, seconds and milliseconds, as 1h30m or 500ms.
    ///
    /// # Errors
    /// It is none.
    pub fn time(&self, name: &str) -> Result<Option<Duration>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let time = go_duration(text).map(Some);
        time.ok_or_else(|| format!("environment variable {name}={text}: not a time; write it as 24h, 90m or 30s"))
    }

    pub(super) fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

fn go_duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let (number, behind) = rest.split_at(rest.find(|character: char| !character.is_ascii_digit())?);
        let (unit, behind) =
            behind.split_at(behind.find(|character: char| character.is_ascii_digit()).unwrap_or(behind.len()));
        let milliseconds: u64 = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        let part = number.parse::<u64>().ok()?.checked_mul(milliseconds)?;
        total = total.checked_add(Duration::from_millis(part))?;
        rest = behind;
    }
    (!text.is_empty()).then_some(total)
}

/// The servers of a node: its own control plane first, then its peers'. None without an address.
#[must_use]
pub fn servers(config: &NodeConfig, environment: &Environment) -> Vec<Server> {
    let plane = config.control_plane.clone().unwrap_or_default();
    let own = with_environment(plane.clone(), environment);
    if own.address.is_empty() {
        return Vec::new();
    }
    let mut servers = vec![server(SourceId::CONTROL_PLANE, &own, config, environment)];
    for (index, peer) in plane.peers.iter().enumerate().filter(|(_, peer)| !peer.address.is_empty()) {
        if let Some(source) = SourceId::peer(index) {
            let cluster_id = if peer.cluster_id.is_empty() { own.cluster_id.clone() } else { peer.cluster_id.clone() };
            servers.push(server(source, &ControlPlane { cluster_id, ..peer.clone() }, config, environment));
        }
    }
    servers
}

fn with_environment(plane: ControlPlane, environment: &Environment) -> ControlPlane {
    let text = |own: String, name: &str| if own.is_empty() { environment.or(name, "").to_owned() } else { own };
    let path = |own: Option<PathBuf>, name: &str, default: &str| {
        own.or_else(|| Some(PathBuf::from(environment.or(name, default))))
    };
    let meta = environment.or("ISTIO_META_CLUSTER_ID", "").to_owned();
    let cluster_id = text(plane.cluster_id, "CLUSTER_ID");
    ControlPlane {
        address: with_scheme(text(plane.address, "XDS_ADDRESS")),
        ca_address: plane.ca_address,
        server_name: plane.server_name.or_else(|| environment.get("ALT_XDS_HOSTNAME").map(str::to_owned)),
        root_cert: path(plane.root_cert, "XDS_ROOT_CA", DEFAULT_ROOTS),
        token: path(plane.token, "AUTH_TOKEN", DEFAULT_TOKEN),
        cluster_id: if cluster_id.is_empty() { meta } else { cluster_id },
        on_demand: plane.on_demand || environment.get("XDS_ON_DEMAND") == Some("true"),
        peers: Vec::new(),
    }
}

/// `host:port` alone means TLS.
pub(super) fn with_scheme(address: String) -> String {
    if address.is_empty() || address.contains("://") { address } else { format!("https://{address}") }
}

fn server(source: SourceId, plane: &ControlPlane, config: &NodeConfig, environment: &Environment) -> Server {
    let cluster = if plane.cluster_id.is_empty() { &*config.cluster } else { plane.cluster_id.as_str() };
    let mut headers = Vec::new();
    if !cluster.is_empty() {
        headers.push(("clusterid".to_owned(), cluster.to_owned()));
    }
    headers.extend(environment.with_prefix("XDS_HEADER_").map(|(name, value)| (name.to_owned(), value.to_owned())));
    Server {
        source,
        channel: ChannelConfig {
            address: plane.address.clone(),
            server_name: plane.server_name.clone(),
            roots: plane.root_cert.clone(),
            token: plane.token.clone(),
            headers,
        },
        node: node(cluster, config, environment),
        on_demand: plane.on_demand,
    }
}

/// How a node proxy names itself: the leading word chooses the kind of resources that istiod sends.
fn node(cluster: &str, config: &NodeConfig, environment: &Environment) -> Node {
    let (ip, pod) = (environment.or("INSTANCE_IP", DEFAULT_IP), environment.or("POD_NAME", "causeway"));
    let namespace = environment.or("POD_NAMESPACE", "istio-system");
    let text = |text: &str| Value { kind: Some(Kind::Text(text.to_owned())) };
    let mut fields: BTreeMap<String, Value> = BTreeMap::new();
    for (name, value) in environment.with_prefix("ISTIO_META_") {
        fields.insert(name.to_owned(), text(value));
    }
    for (name, value) in environment.with_prefix("ISTIO_METAJSON_") {
        // What is not JSON says nothing.
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(value) {
            fields.insert(name.to_owned(), Value::from(&json));
        }
    }
    for (name, value) in [
        ("NAME", pod),
        ("NAMESPACE", namespace),
        ("INSTANCE_IPS", ip),
        ("NODE_NAME", environment.or("NODE_NAME", &config.node)),
        ("NETWORK", environment.or("NETWORK", &config.network)),
        ("CLUSTER_ID", cluster),
        ("CAUSEWAY_VERSION", env!("CARGO_PKG_VERSION")),
    ] {
        fields.insert(name.to_owned(), text(value));
    }
    if let Some(account) = environment.get("SERVICE_ACCOUNT") {
        fields.insert("SERVICE_ACCOUNT".to_owned(), text(account));
    }
    Node {
        id: format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct { fields }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_go_writes_them() {
        let rows = [
            ("24h", Some(86_400_000)),
            ("1h30m0s", Some(5_400_000)),
            ("90s", Some(90_000)),
            ("1s500ms", Some(1_500)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("h", None),
            ("1d", None),
            ("1m5", None),
            ("-5s", None),
            ("5 s", None),
            ("99999999999999999999h", None),
            ("9999999999999999h", None),
        ];
        for (text, milliseconds) in rows {
            assert_eq!(go_duration(text), milliseconds.map(Duration::from_millis), "{text:?}");
        }
    }
}
