#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::path::Path;

use prometheus_client::registry::Registry;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::observe::traffic::Traffic;
use crate::state::file;

const HOST: &str = "istiod.istio-system.svc";
const WAIT: Duration = Duration::from_secs(5);

/// The first bytes of a TLS client that looks for `name`.
fn client_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

fn log() -> AccessLog {
    let text = "causeway: {node: n, cluster: c, network: net, identity: {caDirectory: certs}}";
    let model = file::parse(text, Path::new("model.yaml")).unwrap();
    let traffic = Arc::new(Traffic::new(&mut Registry::default()));
    AccessLog::start(None, &model.node, Arc::default(), traffic).unwrap()
}

/// A server, and what leads to it.
async fn stage() -> (TcpListener, Passthrough) {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = free().local_addr().unwrap();
    let server = free();
    server.set_nonblocking(true).unwrap();
    let to = GatewayAddress::Ip(server.local_addr().unwrap());
    (TcpListener::from_std(server).unwrap(), Passthrough { listen, hosts: vec![HOST.to_owned()], to })
}

async fn send(to: SocketAddr, pieces: &[&[u8]]) -> TcpStream {
    let mut socket = TcpStream::connect(to).await.unwrap();
    for piece in pieces {
        socket.write_all(piece).await.unwrap();
        socket.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    socket
}

#[tokio::test]
async fn what_asks_for_a_listed_name_is_passed_on_unread() {
    let (server, way) = stage().await;
    let mut open = Passthroughs::default();
    open.apply(std::slice::from_ref(&way), &log()).unwrap();
    let hello = client_hello("ISTIOD.istio-system.svc");
    // In one piece, in many, and with data of the client right behind it.
    let (one, rest) = hello.split_at(1);
    for pieces in [vec![&hello[..]], vec![one, rest], hello.chunks(100).collect(), vec![&hello[..], b"early"]] {
        let mut client = send(way.listen, &pieces).await;
        let (mut accepted, _) = timeout(WAIT, server.accept()).await.expect("it is passed on").unwrap();
        let sent = pieces.concat();
        let mut received = vec![0; sent.len()];
        accepted.read_exact(&mut received).await.unwrap();
        assert_eq!(received, sent, "byte for byte");
        accepted.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        drop(client);
        assert_eq!(accepted.read(&mut [0]).await.unwrap(), 0, "an end is passed on, too");
    }
}

#[tokio::test]
async fn everything_else_is_closed_and_the_server_hears_nothing() {
    let (server, way) = stage().await;
    let mut open = Passthroughs::default();
    open.apply(std::slice::from_ref(&way), &log()).unwrap();
    let address = client_hello("192.0.2.1");
    let other = client_hello("kubernetes.default.svc");
    let endless = [&[0x16, 3, 1, 0x40, 0][..], &vec![1; 2 * LONGEST_HELLO]].concat();
    for (bytes, why) in [
        (&other[..], "another name"),
        (&address, "an address is no name"),
        (b"GET / HTTP/1.1\r\n\r\n", "no TLS"),
        (&endless, "an endless ClientHello"),
    ] {
        let mut client = TcpStream::connect(way.listen).await.unwrap();
        // It may be closed before all of it is written.
        let _ = client.write_all(bytes).await;
        let ended = timeout(WAIT, client.read(&mut [0])).await.unwrap_or_else(|_| panic!("{why}: still open"));
        assert!(matches!(ended, Ok(0) | Err(_)), "{why}: {ended:?}");
    }
    assert!(timeout(Duration::from_millis(200), server.accept()).await.is_err(), "nothing was passed on");
}

#[tokio::test]
async fn what_is_wanted_no_longer_is_closed_and_a_taken_address_is_told() {
    let (_server, way) = stage().await;
    let mut open = Passthroughs::default();
    open.apply(std::slice::from_ref(&way), &log()).unwrap();
    let taken = Passthrough { hosts: vec!["other".to_owned()], ..way.clone() };
    let error = open.apply(&[way.clone(), taken], &log()).unwrap_err();
    assert!(error.contains(&way.listen.to_string()) && error.contains("in use"), "{error}");
    open.apply(&[], &log()).unwrap();
    for _ in 0..50 {
        if TcpStream::connect(way.listen).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it still listens");
}
