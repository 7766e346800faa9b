//! Reads from an API server what a cluster's facts are made of.

use std::time::Duration;

use serde_json::Value;

use super::api::{Api, Failure};
use super::facts::{Cluster, Kind, NodeReport, Unread};

/// Where agents tell how they are.
const STATS_PORT: u16 = 15020;
/// How long one may take to say so.
const PATIENCE: Duration = Duration::from_secs(5);
/// Agents asked at a time.
const AT_A_TIME: usize = 16;

/// How long the longest way through an entry point may take to fail.
const TRYING: Duration = Duration::from_secs(30);

/// Asks the agents of the nodes how they are; `reach` has them try what their pods can reach of other networks, too.
pub async fn reports(api: &Api, cluster: &mut Cluster, reach: bool) {
    for some in cluster.agent_pods().chunks(AT_A_TIME) {
        let asked: Vec<_> = some
            .iter()
            .map(|(pod, node)| {
                let (api, pod, node) = (api.clone(), pod.clone(), node.clone());
                tokio::spawn(async move {
                    let ask =
                        async |path, patience| match tokio::time::timeout(patience, api.ask(&pod, STATS_PORT, path))
                            .await
                        {
                            Ok(said) => said.map_err(|failure| failure.to_string()),
                            Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
                        };
                    // First, so that what is found is in the status, too.
                    let reached = if reach { ask("reach", TRYING).await } else { Ok(Value::Null) };
                    let said = ask("status", PATIENCE).await;
                    NodeReport { node, pod, said, reached }
                })
            })
            .collect();
        for one in asked {
            cluster.reports.extend(one.await);
        }
    }
}

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
            Err(Failure::Missing(_)) if [Kind::Gateway, Kind::WorkloadEntry].contains(&kind) => {
                drop(cluster.unread.insert(kind, Unread::NoSuchKind));
            }
            Err(Failure::Missing(reason)) => {
                return Err(format!("{reason}; every API server knows this: is the path of the server's URL right?"));
            }
            Err(Failure::Forbidden(reason)) => drop(cluster.unread.insert(kind, Unread::Forbidden(reason))),
            Err(Failure::Other(reason)) => return Err(reason),
        }
    }
    Ok(cluster)
}
