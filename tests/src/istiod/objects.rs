//! What is written to the API server, and how the programs are started.

use super::pki::Files;
use serde_json::{Value, json};

/// istiod's settings: ambient, several networks, the node proxies' service account, and no webhooks.
pub(super) const ISTIOD: &[(&str, &str)] = &[
    ("POD_NAMESPACE", "istio-system"),
    ("POD_NAME", "istiod-0"),
    ("REVISION", "default"),
    ("PILOT_ENABLE_AMBIENT", "true"),
    ("AMBIENT_ENABLE_MULTI_NETWORK", "true"),
    ("AMBIENT_ENABLE_BAGGAGE", "true"),
    // Without it istiod ignores a change of roots in its files.
    ("ISTIO_MULTIROOT_MESH", "true"),
    ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel"),
    ("JWT_POLICY", "third-party-jwt"),
    ("PILOT_CERT_PROVIDER", "istiod"),
    ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
    ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
];

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The API server's arguments.
pub(super) fn apiserver(files: &Files, address: &str) -> Vec<String> {
    let path = |file: &str| files.folder.join(file).display().to_string();
    [
        ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
        ("bind-address", "0.0.0.0".to_owned()),
        ("advertise-address", address.to_owned()),
        ("tls-cert-file", path("api.crt")),
        ("tls-private-key-file", path("api.key")),
        ("service-account-key-file", path("sa.pub")),
        ("service-account-signing-key-file", path("sa.key")),
        ("service-account-issuer", ISSUER.to_owned()),
        ("api-audiences", format!("{ISSUER},istio-ca")),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("token-auth-file", path("tokens.csv")),
        ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
        ("allow-privileged", "true".to_owned()),
        ("cert-dir", path("")),
    ]
    .map(|(name, value)| format!("--{name}={value}"))
    .to_vec()
}

/// Namespaces, mesh configuration, and istiod as a service that points at the node it runs on.
pub(super) fn system(network: &str, address: &str) -> Vec<Value> {
    let ports = |names: &[(&str, u16)]| -> Vec<Value> {
        names.iter().map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"})).collect()
    };
    let ports = ports(&[("grpc-xds", 15010), ("https-dns", 15012)]);
    let global = json!([{
        "servicesSelector": {"matchExpressions": [{"key": "istio.io/global", "operator": "In", "values": ["true"]}]},
        "scope": "GLOBAL",
    }]);
    let mesh = json!({
        "trustDomain": "cluster.local",
        "defaultConfig": {"discoveryAddress": "istiod.istio-system.svc:15012"},
        "serviceScopeConfigs": global,
    });
    vec![
        namespace("istio-system", &json!({"topology.istio.io/network": network})),
        namespace("default", &json!({"istio.io/dataplane-mode": "ambient"})),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": mesh.to_string(), "meshNetworks": "networks: {}"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "istiod", "namespace": "istio-system"},
            "spec": {"ports": ports}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "istiod-1", "namespace": "istio-system",
                "labels": {"kubernetes.io/service-name": "istiod"}},
            "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": ports}),
    ]
}

fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A namespace of the mesh and a service account in it.
pub(super) fn account(namespace_name: &str, account: &str) -> Vec<Value> {
    let mut objects = Vec::new();
    if namespace_name != "istio-system" {
        objects.push(namespace(namespace_name, &json!({"istio.io/dataplane-mode": "ambient"})));
    }
    objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": account, "namespace": namespace_name}}));
    objects
}

pub(super) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name,
        "labels": {"topology.kubernetes.io/region": "region", "topology.kubernetes.io/zone": "zone"}}})
}

/// A pod; istiod takes its annotation for the word that its connections go through the mesh.
pub(super) fn pod(namespace: &str, name: &str, account: &str, node: &str, in_mesh: bool) -> Value {
    let annotations = if in_mesh { json!({"ambient.istio.io/redirection": "enabled"}) } else { json!({}) };
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": account}, "annotations": annotations},
        "spec": {"nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
            "containers": [{"name": "app", "image": "none.invalid/app"}]}})
}

/// What a kubelet says of a pod that is ready.
pub(super) fn pod_status(namespace: &str, name: &str, ip: &str) -> Value {
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]}})
}

/// A service of all clusters: `ports` are (service, application), its pods those of one service account.
pub(super) fn service(namespace: &str, name: &str, ip: &str, ports: &[(u16, u16)], account: &str) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(port, target)| {
            json!({"name": format!("tcp-{port}"), "port": port, "targetPort": target, "protocol": "TCP"})
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {"istio.io/global": "true"}},
        "spec": {"clusterIP": ip, "selector": {"app": account}, "ports": ports}})
}

/// Another network's entry point, as an operator describes it in this cluster.
pub(super) fn remote_gateway(network: &str, ip: &str) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": format!("gateway-{network}"), "namespace": "istio-eastwest",
            "labels": {"topology.istio.io/network": network},
            "annotations": {"gateway.istio.io/service-account": "eastwest"}},
        "spec": {"gatewayClassName": "istio-remote", "addresses": [{"type": "IPAddress", "value": ip}],
            "listeners": [{"name": "cross-network", "port": 15008, "protocol": "HBONE",
                "tls": {"mode": "Passthrough"}}]}})
}
