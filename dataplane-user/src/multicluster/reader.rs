//! The right of one cluster's istiod to read another cluster: an account there, and the secret here that carries its token.

use base64::Engine as _;
use serde_json::{Value, json};

use super::names;

/// The role, the same for all readers.
const ROLE: &str = "causeway-multicluster-reader";

/// Name of the account in the cluster that is read, one for each reader, so that each can be taken away.
#[must_use]
pub fn account(reader: &str) -> String {
    format!("causeway-reader-{}", name_of(reader))
}

/// The secret in which the cluster that is read keeps the account's token.
#[must_use]
pub fn token_secret(reader: &str) -> String {
    format!("{}-token", account(reader))
}

/// Objects of the cluster that is read.
#[must_use]
pub fn objects(reader: &str, namespace: &str) -> Vec<Value> {
    let (key, value) = names::MANAGED_BY;
    let labels = json!({key: value});
    let account = account(reader);
    let read = ["get", "list", "watch"];
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    // What istiod's own reader has. Secrets are among it because istiod does not take a cluster for known before it has listed them.
    let rules = [
        rule(
            &[
                "config.istio.io",
                "security.istio.io",
                "networking.istio.io",
                "telemetry.istio.io",
                "extensions.istio.io",
            ],
            &["*"],
            &read,
        ),
        rule(
            &[""],
            &[
                "endpoints",
                "pods",
                "services",
                "nodes",
                "replicationcontrollers",
                "namespaces",
                "configmaps",
                "secrets",
            ],
            &read,
        ),
        rule(&["gateway.networking.k8s.io"], &["gateways"], &read),
        rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &read),
        rule(&["discovery.k8s.io"], &["endpointslices"], &read),
        rule(&["multicluster.x-k8s.io"], &["serviceexports", "serviceimports"], &read),
        rule(&["apps"], &["replicasets"], &read),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
    ];
    let rbac = "rbac.authorization.k8s.io";
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": namespace, "labels": labels}}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole",
            "metadata": {"name": ROLE, "labels": labels}, "rules": rules}),
        json!({"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": account, "labels": labels},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": ROLE},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]}),
        json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": token_secret(reader), "namespace": namespace, "labels": labels,
                "annotations": {"kubernetes.io/service-account.name": account}}}),
    ]
}

/// What of those belongs to one reader alone, in the order in which it goes.
#[must_use]
pub fn removed(reader: &str, namespace: &str) -> Vec<Value> {
    objects(reader, namespace).into_iter().filter(|object| object["kind"] != "ClusterRole").rev().collect()
}

/// The token in that secret, and the authority of the API server, once the cluster has filled it.
#[must_use]
pub fn token(secret: &Value) -> Option<(String, String)> {
    let data = |key: &str| secret.pointer("/data").and_then(|data| data.get(key)).and_then(Value::as_str);
    let token = base64::engine::general_purpose::STANDARD.decode(data("token")?).ok()?;
    Some((String::from_utf8(token).ok()?, data("ca.crt")?.to_owned()))
}

/// The secret in the reader's cluster, named as `istioctl create-remote-secret` does.
#[must_use]
pub fn remote_secret(cluster: &str, server: &str, authority: &str, token: &str, namespace: &str) -> Value {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": cluster,
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": authority}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": cluster}}],
        "users": [{"name": cluster, "user": {"token": token}}],
    });
    let (key, value) = names::MANAGED_BY;
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": secret_name(cluster), "namespace": namespace,
            "labels": {names::REMOTE_SECRET: "true", key: value}, "annotations": {names::SECRET_CLUSTER: cluster}},
        "data": {cluster: base64::engine::general_purpose::STANDARD.encode(config.to_string())}})
}

/// Name of that secret.
#[must_use]
pub fn secret_name(cluster: &str) -> String {
    format!("istio-remote-secret-{}", name_of(cluster))
}

/// A cluster's name where Kubernetes wants a name of its own form.
#[must_use]
pub fn name_of(cluster: &str) -> String {
    let plain = cluster.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    plain.collect::<String>().trim_matches('-').to_owned()
}
