//! The health check port of a service with `externalTrafficPolicy: Local`: load balancers ask whether this node has endpoints.
//! The answer has the form of kube-proxy's.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpStream;

use super::worker::Worker;
use crate::{decide, state::Model};

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers the questions of one connection about the service with this key.
pub async fn serve(worker: &Worker, key: &str, socket: TcpStream) {
    let service = service_fn(move |_request: Request<Incoming>| {
        let model = worker.model();
        async move { Ok::<_, Infallible>(answer(&model, key)) }
    });
    // A client that goes away has nobody to tell.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service)
        .await;
}

fn answer(model: &Model, key: &str) -> Response<Full<Bytes>> {
    let count = decide::local_endpoints(model, key);
    let (namespace, name) = model
        .service_by_key(key)
        .map_or_else(|| key.split_once('/').unwrap_or(("", key)), |service| (&*service.namespace, &*service.name));
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{body:#}\n"))));
    if count == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(count));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use std::path::Path;

    use super::*;
    use crate::state::file;

    #[test]
    fn a_node_without_endpoints_says_503_and_counts_those_it_has() {
        let text = "workloads:\n\
            - {uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1], node: n1, network: net1, clusterId: c1, services: {ns/web.ns.svc: {}}}\n\
            - {uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2], node: n2, network: net1, clusterId: c1, services: {ns/web.ns.svc: {}, ns/far.ns.svc: {}}}\n\
            services:\n\
            - {name: web, namespace: ns, hostname: web.ns.svc, vips: [], ports: {80: 80}}\n\
            - {name: far, namespace: ns, hostname: far.ns.svc, vips: [], ports: {80: 80}}\n\
            causeway: {node: n1, cluster: c1, network: net1, identity: {caDirectory: c}}\n";
        let model = file::parse(text, Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"));
        for (key, status, count) in
            [("ns/web.ns.svc", 200, "1"), ("ns/far.ns.svc", 503, "0"), ("ns/gone.svc", 503, "0")]
        {
            let answer = answer(&model, key);
            assert_eq!(answer.status().as_u16(), status, "{key}");
            assert_eq!(answer.headers().get("x-load-balancing-endpoint-weight").unwrap(), count, "{key}");
        }
    }
}
