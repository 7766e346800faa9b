//! What API servers may answer, and what is said of it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use ::kube::config::Kubeconfig;

use super::api::{Api, Failure};
use super::gather;

/// A server that answers each path so, for as long as the test runs.
async fn api(answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> Api {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut piece) {
                    Ok(read) if read > 0 => request.extend_from_slice(&piece[..read]),
                    _ => break,
                }
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let (status, body) = answer(text.split(' ').nth(1).unwrap_or_default());
            let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    let config = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, users: [{{name: u, user: {{}}}}], \
         clusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}], contexts: [{{name: c, context: {{cluster: k, user: u}}}}]}}"
    );
    let config: Kubeconfig = serde_yaml_ng::from_str(&config).unwrap();
    Api::of(&config, "c").await.unwrap()
}

#[tokio::test]
async fn what_an_api_server_cannot_mean_is_told_by_context_server_and_path() {
    let status =
        |code: u16| format!(r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no","code":{code}}}"#);
    for (code, body, expected) in [
        (401, status(401), "the login of this context is refused"),
        (500, status(500), "(status 500)"),
        (200, "<html>".to_owned(), "what answers speaks no JSON"),
        (200, r#"{"items":[{"data":{"ca-key.pem":"U0VDUkVU"}}"#.to_owned(), "what answers speaks no JSON"),
    ] {
        let api = api(move |_| (code, body.clone())).await;
        let error = api.list("/api/v1/secrets").await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Failure::Other(_)) && text.contains(expected), "{text}");
        assert!(text.contains("c (http://127.0.0.1:") && text.contains("GET /api/v1/secrets"), "{text}");
        assert!(!text.contains("U0VDUkVU"), "keys are no part of a message: {text}");
    }
    let api = api(move |_| (403, status(403))).await;
    assert!(matches!(api.list("/api/v1/secrets").await, Err(Failure::Forbidden(_))));
}

#[tokio::test]
async fn lists_come_in_pages_and_end() {
    let page = |names: &str, next: &str| format!(r#"{{"items":[{names}],"metadata":{{"continue":"{next}"}}}}"#);
    let pages =
        api(move |path| (200, if path.ends_with("continue=a%20b%26") { page("2", "") } else { page("1", "a b&") }))
            .await;
    assert_eq!(pages.list("/api/v1/pods").await.unwrap(), [1, 2]);
    let endless = api(move |_| (200, page("1", "same"))).await;
    let error = endless.list("/api/v1/pods").await.unwrap_err().to_string();
    assert!(error.contains("the list at /api/v1/pods has no end"), "{error}");
}

#[tokio::test]
async fn a_server_that_knows_no_pods_is_no_api_server() {
    let missing = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"not found","code":404}"#;
    let everything = api(|_| (404, missing.to_owned())).await;
    let error = gather::cluster(&everything, "istio-system", "istio-eastwest").await.unwrap_err();
    assert!(error.contains("is the path of the server's URL right"), "{error}");
    let gateways =
        api(
            |path| {
                if path.contains("gateways") {
                    (404, missing.to_owned())
                } else {
                    (200, r#"{"items":null}"#.to_owned())
                }
            },
        )
        .await;
    let cluster = gather::cluster(&gateways, "istio-system", "istio-eastwest").await.unwrap();
    assert_eq!(cluster.unread.len(), 1, "{:?}", cluster.unread);
}
