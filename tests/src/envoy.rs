//! Envoy in each position of an HBONE path, configured as its own documentation describes CONNECT: terminating it,
//! originating it, and passing its payload on.

use crate::certificates::Leaf;
use crate::{Error, Place, Proc, Result, context, process};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// The Envoy that `cargo xtask setup` installed, if it did.
pub fn program() -> Option<PathBuf> {
    std::env::var_os("CAUSEWAY_TEST_ENVOY").map(PathBuf::from).filter(|path| path.is_file())
}

/// Starts Envoy with listeners and clusters, and waits until it listens on `port`.
///
/// # Errors
/// With what Envoy said.
pub fn start(place: &Place, name: &str, port: u16, listeners: &[Value], clusters: &[Value]) -> Result<Proc> {
    let program = program().ok_or_else(|| Error::from("CAUSEWAY_TEST_ENVOY names no program"))?;
    let configuration = json!({
        "bootstrap_extensions": [{
            "name": "internal_listener",
            "typed_config": typed("envoy.extensions.bootstrap.internal_listener.v3.InternalListener", json!({})),
        }],
        "static_resources": {"listeners": listeners, "clusters": clusters},
    });
    let file = place.scratch.join(format!("envoy-{name}.json"));
    std::fs::write(&file, configuration.to_string()).map_err(context(file.display()))?;
    let (program, file) = (program.to_string_lossy().into_owned(), file.to_string_lossy().into_owned());
    let line = [&program, "--config-path", &file, "--disable-hot-restart", "--concurrency", "1", "--log-level", "info"];
    let mut server = place.spawn(&line)?;
    let started = process::until(Duration::from_secs(30), || {
        server.stderr().contains("starting main dispatch loop") || !server.is_running()
    });
    if started.is_err() || !server.is_running() {
        return Err(format!("Envoy {name} (port {port}) did not start:\n{}", server.stderr()).into());
    }
    Ok(server)
}

/// Ends HBONE at this address: mutual TLS 1.3, HTTP/2, CONNECT. Each route is the authority that is matched (`*` for any)
/// and the cluster that gets the bytes.
pub fn terminate(address: &str, port: u16, leaf: &Leaf, routes: &[(&str, &str)]) -> Value {
    let hosts: Vec<Value> = routes
        .iter()
        .enumerate()
        .map(|(number, (authority, cluster))| {
            json!({
                "name": format!("route{number}"),
                "domains": [authority],
                "routes": [{
                    "match": {"connect_matcher": {}},
                    "route": {
                        "cluster": cluster,
                        "timeout": "0s",
                        "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
                    },
                }],
            })
        })
        .collect();
    let manager = json!({
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"name": "connect", "virtual_hosts": hosts},
        "http_filters": [{
            "name": "router",
            "typed_config": typed("envoy.extensions.filters.http.router.v3.Router", json!({})),
        }],
    });
    json!({
        "name": "hbone",
        "address": socket(address, port),
        "filter_chains": [{
            "transport_socket": {
                "name": "tls",
                "typed_config": typed(
                    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    json!({"require_client_certificate": true, "common_tls_context": tls(leaf, None)}),
                ),
            },
            "filters": [{
                "name": "manager",
                "typed_config": typed(
                    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    manager,
                ),
            }],
        }],
    })
}

/// Takes TCP connections at this address and sends each as a CONNECT with this authority to a cluster.
pub fn originate(address: &str, port: u16, authority: &str, cluster: &str) -> Value {
    let mut listener = tunnel_filter(authority, cluster);
    listener["name"] = json!(format!("tcp{port}"));
    listener["address"] = socket(address, port);
    listener
}

/// As [`originate`], for connections that another cluster of the same Envoy makes to this internal name.
pub fn originate_internal(name: &str, authority: &str, cluster: &str) -> Value {
    let mut listener = tunnel_filter(authority, cluster);
    listener["name"] = json!(name);
    listener["internal_listener"] = json!({});
    listener
}

fn tunnel_filter(authority: &str, cluster: &str) -> Value {
    let proxy = json!({"stat_prefix": "tcp", "cluster": cluster, "tunneling_config": {"hostname": authority}});
    json!({
        "filter_chains": [{
            "filters": [{
                "name": "tcp",
                "typed_config": typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy", proxy),
            }],
        }],
    })
}

/// Plain TCP to these endpoints.
pub fn plain_cluster(name: &str, endpoints: &[(&str, u16)]) -> Value {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|(address, port)| json!({"endpoint": {"address": socket(address, *port)}})).collect();
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    })
}

/// HTTP/2 over mutual TLS to an address or to an internal listener; the server must prove `identity`.
pub fn tunnel_cluster(name: &str, to: Target<'_>, leaf: &Leaf, identity: &str) -> Value {
    let address = match to {
        Target::Socket(address, port) => socket(address, port),
        Target::Internal(listener) => {
            json!({"envoy_internal_address": {"server_listener_name": listener, "endpoint_id": name}})
        }
    };
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                json!({"explicit_http_config": {"http2_protocol_options": {"allow_connect": true}}}),
            ),
        },
        "transport_socket": {
            "name": "tls",
            "typed_config": typed(
                "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                json!({"common_tls_context": tls(leaf, Some(identity))}),
            ),
        },
    })
}

/// Where a tunnel goes.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// An IP address and a port.
    Socket(&'a str, u16),
    /// A listener of the same Envoy by its name.
    Internal(&'a str),
}

fn tls(leaf: &Leaf, peer: Option<&str>) -> Value {
    // In both roles any name of the trust domain is the least that is asked for.
    let matcher = match peer {
        Some(identity) => json!({"exact": identity}),
        None => json!({"prefix": "spiffe://cluster.local/"}),
    };
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": {"filename": leaf.chain},
            "private_key": {"filename": leaf.key},
        }],
        "validation_context": {
            "trusted_ca": {"filename": leaf.root},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": matcher}],
        },
    })
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn typed(kind: &str, mut value: Value) -> Value {
    value["@type"] = json!(format!("type.googleapis.com/{kind}"));
    value
}
