//! Reads from an API server what a cluster's facts are made of.

use super::api::{Api, Failure};
use super::facts::{Cluster, Kind, Unread};

/// Reads everything.
///
/// # Errors
/// The API server does not answer; that somebody may not see a kind, or that it does not exist, is a fact instead.
pub async fn cluster(api: &Api, istio_namespace: &str, gateway_namespace: &str) -> Result<Cluster, String> {
    let mut cluster = Cluster {
        context: api.context.clone(),
        server: api.server.clone(),
        istio_namespace: istio_namespace.to_owned(),
        gateway_namespace: gateway_namespace.to_owned(),
        ..Cluster::default()
    };
    let system = format!("/api/v1/namespaces/{istio_namespace}");
    for (kind, path) in [
        (Kind::Namespace, "/api/v1/namespaces".to_owned()),
        (Kind::Node, "/api/v1/nodes".to_owned()),
        (Kind::Pod, "/api/v1/pods".to_owned()),
        (Kind::Service, "/api/v1/services".to_owned()),
        (Kind::ConfigMap, format!("{system}/configmaps")),
        (Kind::Secret, format!("{system}/secrets")),
        (Kind::Deployment, "/apis/apps/v1/deployments".to_owned()),
        (Kind::DaemonSet, "/apis/apps/v1/daemonsets".to_owned()),
        (Kind::Gateway, "/apis/gateway.networking.k8s.io/v1/gateways".to_owned()),
        (Kind::WorkloadEntry, "/apis/networking.istio.io/v1/workloadentries".to_owned()),
    ] {
        match api.list(&path).await {
            Ok(objects) => drop(cluster.objects.insert(kind, objects)),
            Err(Failure::Missing(_)) => drop(cluster.unread.insert(kind, Unread::NoSuchKind)),
            Err(Failure::Forbidden(reason)) => drop(cluster.unread.insert(kind, Unread::Forbidden(reason))),
            Err(Failure::Other(reason)) => return Err(reason),
        }
    }
    Ok(cluster)
}
