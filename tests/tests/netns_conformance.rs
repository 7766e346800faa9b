//! What an HBONE server answers to whom: the codes Istio's own proxy gives, asked for by a client made for this.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a failed step is a failed test")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use causeway::identity::{
    CertificateSource, CertificateStore, Credential, ExpectedPeer, SpiffeId, StoreConfig, TrustBundle, ca,
};
use causeway::tunnel::tls::TlsStream;
use h2::client::SendRequest;
use http::{Method, Request, Uri, Version};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use testkit::fixture::TwoClusters;
use tokio::net::TcpStream;

const DOMAIN: &str = "cluster.local";

/// A certificate for `identity` from the authority in `folder`, whose holder also trusts `root` for the tests' own domain.
fn credential(folder: PathBuf, identity: &str, root: Option<PathBuf>) -> Arc<Credential> {
    let identity = SpiffeId::parse(identity).unwrap();
    let store = CertificateStore::open(StoreConfig {
        source: CertificateSource::Directory(folder),
        trust_domain: identity.trust_domain().to_owned(),
        ttl: Duration::from_secs(3600),
        revocation: None,
    })
    .unwrap();
    if let Some(root) = root {
        let mut trust = TrustBundle::new();
        trust.add_file(DOMAIN, &root).unwrap();
        store.set_trust(trust).unwrap();
    }
    run(async move { store.credential(&identity).await.unwrap() })
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await.expect("no answer") })
}

/// Opens a tunnel to `to`; the error is that of TLS or of the first exchange after it, which carries the server's alert.
async fn tunnel(to: SocketAddr, client: &Credential, expected: &str) -> Result<SendRequest<Bytes>, String> {
    let socket = TcpStream::connect(to).await.unwrap();
    let expected = ExpectedPeer::new([SpiffeId::parse(expected).unwrap()]);
    let name = ServerName::try_from("unused").unwrap();
    let session = UnbufferedClientConnection::new(client.client_config(&expected), name).unwrap();
    let tls = TlsStream::handshake(socket, session).await.map_err(|error| error.to_string())?;
    let (send, connection) = h2::client::handshake(tls).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    send.ready().await.map_err(|error| error.to_string())
}

/// The status of one request.
async fn ask(send: &mut SendRequest<Bytes>, method: Method, target: Uri) -> Result<u16, String> {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_2;
    let mut ready = send.clone().ready().await.map_err(|error| error.to_string())?;
    let (response, _stream) = ready.send_request(request, false).map_err(|error| error.to_string())?;
    response.await.map(|response| response.status().as_u16()).map_err(|error| error.to_string())
}

#[test]
fn every_answer_has_the_code_that_peers_expect() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("conformance").unwrap();
    let node = stage.gateway_node;
    let tester = stage.topology.plain_pod(node, "default/tester", "tester").unwrap();
    let stage = stage.started().unwrap();
    let client = credential(stage.topology.ca_folder(DOMAIN).join("cluster2"), &tester.identity(DOMAIN), None);
    let pod = stage.web[1].data().ip4;
    let gateway = stage.topology.node_ip(stage.gateway_node);
    let server = stage.web[1].identity(DOMAIN);
    let host = "web.default.svc.cluster.local";
    // (asked of, method, authority, expected, what it shows)
    let rows = [
        ("pod", Method::CONNECT, format!("{pod}:8080"), 200, "the pod's own address"),
        ("pod", Method::CONNECT, format!("{host}:80"), 200, "a service the pod belongs to"),
        ("pod", Method::CONNECT, "10.99.99.99:8080".to_owned(), 400, "another address than the socket's"),
        ("pod", Method::CONNECT, pod.to_string(), 400, "no port"),
        ("pod", Method::GET, format!("http://{pod}:8080/"), 400, "another method"),
        ("pod", Method::CONNECT, "nobody.default.svc.cluster.local:80".to_owned(), 503, "an unknown host"),
        ("pod", Method::CONNECT, format!("{host}:81"), 503, "a port the service does not have"),
        ("pod", Method::CONNECT, format!("{pod}:15008"), 503, "a port of the engine itself"),
        ("pod", Method::CONNECT, format!("{pod}:9"), 503, "a port nobody listens on"),
        ("gateway", Method::CONNECT, format!("{host}:80"), 200, "an exported service"),
        ("gateway", Method::CONNECT, format!("{host}:81"), 503, "a port the service does not have"),
        ("gateway", Method::CONNECT, "nobody.default.svc.cluster.local:80".to_owned(), 503, "an unknown host"),
        ("gateway", Method::CONNECT, format!("{pod}:8080"), 503, "a pod by its address"),
        ("gateway", Method::CONNECT, "127.0.0.1:22".to_owned(), 503, "the node itself"),
        ("gateway", Method::CONNECT, host.to_owned(), 400, "no port"),
        ("gateway", Method::GET, format!("http://{host}:80/"), 400, "another method"),
    ];
    let namespace = tester.place().netns.clone();
    let gateway_id = testkit::topology::gateway_identity(DOMAIN);
    let answers = testkit::netns::within(&namespace, move || {
        run(async move {
            let mut answers = Vec::new();
            for (of, method, target, expected, why) in rows {
                let (to, identity) = if of == "pod" { (pod, &server) } else { (gateway, &gateway_id) };
                let mut send = tunnel(SocketAddr::new(to.into(), 15008), &client, identity).await.unwrap();
                let connect = method == Method::CONNECT;
                let uri = if connect {
                    Uri::builder().authority(target.as_str()).build()
                } else {
                    target.parse().map_err(Into::into)
                };
                let answer = ask(&mut send, method, uri.unwrap()).await;
                answers.push((format!("{of} {target}: {why}"), answer, Ok(expected)));
            }
            answers
        })
    })
    .unwrap();
    for (what, answer, expected) in answers {
        assert_eq!(answer, expected, "{what}");
    }
}

#[test]
fn certificates_of_strangers_end_the_handshake() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("strangers").unwrap();
    let node = stage.gateway_node;
    let tester = stage.topology.plain_pod(node, "default/tester", "tester").unwrap();
    let stage = stage.started().unwrap();
    let foreign = stage.topology.scratch().join("foreign");
    ca::create(&foreign, "other.example", &["cluster2".to_owned()]).unwrap();
    let root = stage.topology.ca_folder(DOMAIN).join("cluster2").join("root-cert.pem");
    let stranger = credential(foreign.join("cluster2"), "spiffe://other.example/ns/default/sa/tester", Some(root));
    let pod = stage.web[1].data().ip4;
    let server = stage.web[1].identity(DOMAIN);
    let namespace = tester.place().netns.clone();
    let error = testkit::netns::within(&namespace, move || {
        run(async move {
            let mut send = match tunnel(SocketAddr::new(pod.into(), 15008), &stranger, &server).await {
                Ok(send) => send,
                Err(error) => return error,
            };
            let uri = Uri::builder().authority(format!("{pod}:8080")).build().unwrap();
            ask(&mut send, Method::CONNECT, uri).await.expect_err("a stranger was served")
        })
    })
    .unwrap();
    assert!(!error.is_empty());
    let line = stage.topology.daemon(stage.server_node).wait_for_line(&["other.example", "error="]).unwrap();
    assert!(line.contains("leg=accept/policy"), "{line}");
}

#[test]
fn a_gateway_cuts_a_stream_that_does_not_carry_tls() {
    testkit::needs_root!();
    let mut stage = TwoClusters::build("nottls").unwrap();
    let node = stage.gateway_node;
    let tester = stage.topology.plain_pod(node, "default/tester", "tester").unwrap();
    let stage = stage.started().unwrap();
    let client = credential(stage.topology.ca_folder(DOMAIN).join("cluster2"), &tester.identity(DOMAIN), None);
    let gateway = SocketAddr::new(stage.topology.node_ip(stage.gateway_node).into(), 15008);
    let identity = testkit::topology::gateway_identity(DOMAIN);
    let namespace = tester.place().netns.clone();
    let ended = testkit::netns::within(&namespace, move || {
        run(async move {
            let send = tunnel(gateway, &client, &identity).await.unwrap();
            let uri = Uri::builder().authority("web.default.svc.cluster.local:80").build().unwrap();
            let mut request = Request::new(());
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = uri;
            *request.version_mut() = Version::HTTP_2;
            let (response, mut stream) = send.ready().await.unwrap().send_request(request, false).unwrap();
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200);
            stream.send_data(Bytes::from_static(b"GET /secret HTTP/1.1\r\n\r\n"), false).unwrap();
            response.into_body().data().await
        })
    })
    .unwrap();
    assert!(!matches!(ended, Some(Ok(_))), "plaintext was answered: {ended:?}");
    let daemon = stage.topology.daemon(stage.gateway_node);
    let line = daemon.wait_for_line(&["direction=gateway", "does not carry TLS"]).unwrap();
    assert!(line.contains("leg=backend"), "{line}");
    assert_eq!(daemon.counter("inner_not_tls").unwrap(), 1);
}
