//! Tunnels over loopback: identity, byte exactness, how ends and resets travel, reuse and spread.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::{
    cell::RefCell,
    collections::HashMap,
    future::pending,
    io,
    net::SocketAddr,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use causeway::{
    hbone::{Leg, Walk},
    identity::{CertificateSource, CertificateStore, Credential, ExpectedPeer, PeerRole, SpiffeId, StoreConfig, ca},
    tunnel::{
        client::{Legs, Tunnel},
        copy::{self, Counts},
        ends::Role,
        h2io::StreamIo,
        inner::{InnerKey, InnerPool},
        pool::Pool,
        server,
    },
};
use http::{HeaderMap, HeaderValue};
use rustls::{client::UnbufferedClientConnection, pki_types::ServerName, server::UnbufferedServerConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{LocalSet, spawn_local},
};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cw-tunnel-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{name}")).unwrap()
}

fn store(folder: &Folder) -> Arc<CertificateStore> {
    ca::create(&folder.0, "cluster.local", &["c1".to_owned()]).unwrap();
    CertificateStore::open(StoreConfig {
        source: CertificateSource::Directory(folder.0.join("c1")),
        trust_domain: "cluster.local".to_owned(),
        ttl: Duration::from_secs(3600),
        revocation: None,
    })
    .unwrap()
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), future).await.expect("the test hangs")
    })
}

fn session(credential: &Credential, expected: &SpiffeId) -> UnbufferedClientConnection {
    let config = credential.client_config(&ExpectedPeer::new([expected.clone()]));
    UnbufferedClientConnection::new(config, ServerName::try_from("unused").unwrap()).unwrap()
}

/// Serves tunnels at a loopback address; every stream goes to `backend`.
async fn serve(credential: Arc<Credential>, backend: SocketAddr, endpoint: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        let (_keep, drain) = watch::channel(false);
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            let session = UnbufferedServerConnection::new(credential.server_config()).unwrap();
            let (standing, drain) = (credential.standing(PeerRole::Client), drain.clone());
            spawn_local(async move {
                server::serve(socket, session, standing, drain, move |incoming, _| async move {
                    if incoming.authority().is_err() {
                        return incoming.refuse(400);
                    }
                    let Ok(socket) = TcpStream::connect(backend).await else {
                        return incoming.refuse(503);
                    };
                    let mut headers = HeaderMap::new();
                    headers.insert("x-causeway-endpoint", HeaderValue::from_static(endpoint));
                    let (send, receive) = incoming.accept(headers).unwrap();
                    let counts = Counts::default();
                    let _ = copy::socket_and_stream(socket, send, receive, &counts, Role::Server, pending()).await;
                })
                .await
            });
        }
    });
    address
}

/// An application that answers every connection with what `talk` does.
async fn application<F>(talk: impl Fn(TcpStream) -> F + 'static) -> SocketAddr
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            spawn_local(talk(socket));
        }
    });
    address
}

async fn echo(mut socket: TcpStream) {
    let (mut read, mut write) = socket.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

async fn tcp(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn dial(to: SocketAddr, client: &Credential, expected: &SpiffeId) -> io::Result<Tunnel> {
    let socket = tcp(to).await?;
    let standing = client.standing(PeerRole::Server);
    Tunnel::establish(socket, session(client, expected), standing, 1, to.to_string(), Legs::OUTER, None)
        .await
        .map_err(io::Error::other)
}

/// A connected pair: what an application holds, and what the engine copies from.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// Opens a stream on `tunnel` and hands back the application's end.
async fn connect(tunnel: &Tunnel, legs: Legs) -> TcpStream {
    let stream = tunnel.open("127.0.0.1:80", HeaderMap::new(), legs).await.unwrap();
    let (near, far) = pair().await;
    spawn_local(async move {
        let counts = Counts::default();
        let _ = copy::socket_and_stream(far, stream.send, stream.receive, &counts, Role::Client, pending()).await;
        drop(stream.slot);
    });
    near
}

/// Sends `total` patterned bytes, then FIN, and expects them back.
async fn round_trip(mut socket: TcpStream, total: usize) {
    let data: Vec<u8> = (0..total).map(|index| (index * 31 % 251) as u8).collect();
    let (mut read, mut write) = socket.split();
    let mut back = Vec::with_capacity(total);
    let (sent, received) = tokio::join!(
        async {
            write.write_all(&data).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut back)
    );
    sent.unwrap();
    received.unwrap();
    assert!(back == data, "{} of {total} bytes came back", back.len());
}

#[test]
fn bytes_are_exact_both_ways_and_half_close_is_kept() {
    let folder = Folder::new();
    run(async {
        let store = store(&folder);
        let server = store.credential(&id("server")).await.unwrap();
        let client = store.credential(&id("client")).await.unwrap();
        let to = serve(server, application(echo).await, "a").await;
        let tunnel = dial(to, &client, &id("server")).await.unwrap();
        round_trip(connect(&tunnel, Legs::OUTER).await, 32 << 20).await;
        round_trip(connect(&tunnel, Legs::OUTER).await, 0).await;
        assert_eq!(tunnel.opened(), 2);
    });
}

#[test]
fn nested_tunnel_is_exact_and_proves_the_inner_identity() {
    let folder = Folder::new();
    run(async {
        let store = store(&folder);
        let inner = store.credential(&id("inner")).await.unwrap();
        let gateway = store.credential(&id("gateway")).await.unwrap();
        let client = store.credential(&id("client")).await.unwrap();
        let pod = serve(inner, application(echo).await, "a").await;
        let to = serve(gateway, pod, "gw").await;
        let outer = dial(to, &client, &id("gateway")).await.unwrap();
        for (expected, good) in [("inner", true), ("somebody", false)] {
            let stream = outer.open("web.default:80", HeaderMap::new(), Legs::OUTER).await.unwrap();
            let made = Tunnel::establish(
                StreamIo::new(stream.send, stream.receive, Some(stream.slot)),
                session(&client, &id(expected)),
                client.standing(PeerRole::Server),
                1,
                "web.default:80".to_owned(),
                Legs::INNER,
                None,
            )
            .await;
            match made {
                Ok(tunnel) => {
                    assert!(good);
                    assert_eq!(tunnel.peer(), Some(&id("inner")));
                    round_trip(connect(&tunnel, Legs::INNER).await, 8 << 20).await;
                }
                Err(error) => {
                    assert!(!good, "{error}");
                    assert_eq!(error.leg, Leg::InnerTls);
                    let text = error.to_string();
                    assert!(text.contains("sa/somebody"), "{text}");
                    assert!(text.contains("sa/inner"), "{text}");
                }
            }
        }
    });
}

#[test]
fn reset_by_either_application_arrives_as_reset() {
    let folder = Folder::new();
    run(async {
        let store = store(&folder);
        let server = store.credential(&id("server")).await.unwrap();
        let client = store.credential(&id("client")).await.unwrap();
        let seen = Rc::new(RefCell::new(None));
        let note = seen.clone();
        let backend = application(move |mut socket| {
            let note = note.clone();
            async move {
                let mut byte = [0];
                if socket.read(&mut byte).await.is_ok_and(|count| count == 1) && byte == *b"r" {
                    socket.set_zero_linger().unwrap();
                    return;
                }
                *note.borrow_mut() = Some(socket.read(&mut byte).await.map_err(|e| e.kind()));
            }
        })
        .await;
        let to = serve(server, backend, "a").await;
        let tunnel = dial(to, &client, &id("server")).await.unwrap();

        let mut asked = connect(&tunnel, Legs::OUTER).await;
        asked.write_all(b"r").await.unwrap();
        let error = asked.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

        let mut resets = connect(&tunnel, Legs::OUTER).await;
        resets.write_all(b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        resets.set_zero_linger().unwrap();
        drop(resets);
        while seen.borrow().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(*seen.borrow(), Some(Err(io::ErrorKind::ConnectionReset)));
    });
}

#[test]
fn refused_connect_names_leg_and_status() {
    let folder = Folder::new();
    run(async {
        let store = store(&folder);
        let server = store.credential(&id("server")).await.unwrap();
        let client = store.credential(&id("client")).await.unwrap();
        // Nobody listens there any more: the listener is gone at the end of the statement.
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let to = serve(server, nobody, "a").await;
        let tunnel = dial(to, &client, &id("server")).await.unwrap();
        let refused = tunnel.open("127.0.0.1:80", HeaderMap::new(), Legs::OUTER).await;
        let Err(error) = refused else {
            panic!("a refused CONNECT must fail");
        };
        assert_eq!((error.leg, error.status, error.retryable), (Leg::Connect, Some(503), true));
        assert_eq!(tunnel.streams(), 0);
    });
}

#[test]
fn pool_shares_tunnels_and_respects_the_limit_and_the_generation() {
    let folder = Folder::new();
    run(async {
        let store = store(&folder);
        let server = store.credential(&id("server")).await.unwrap();
        let client = store.credential(&id("client")).await.unwrap();
        let to = serve(server, application(echo).await, "a").await;
        let dialled = std::cell::Cell::new(0);
        let pool: Pool<&str> = Pool::default();
        let mut open = Vec::new();
        for number in 0..450_u64 {
            // The last stream is asked for after a rotation.
            let generation = if number == 449 { 2 } else { 1 };
            let (stream, tunnel) = pool
                .open(
                    &"key",
                    generation,
                    || async {
                        dialled.set(dialled.get() + 1);
                        let socket = tcp(to).await.unwrap();
                        let session = session(&client, &id("server"));
                        let standing = client.standing(PeerRole::Server);
                        Tunnel::establish(socket, session, standing, generation, to.to_string(), Legs::OUTER, None)
                            .await
                    },
                    ("127.0.0.1:80", &HeaderMap::new()),
                    Legs::OUTER,
                    &Walk::default(),
                )
                .await
                .unwrap();
            assert!(tunnel.streams() <= 200, "{}", tunnel.streams());
            assert_eq!(tunnel.generation(), generation);
            open.push(stream);
        }
        assert_eq!(dialled.get(), 4, "three for 449 streams, one for the new certificate");
    });
}

#[test]
fn inner_pool_gives_every_remote_pod_its_turn() {
    let folder = Folder::new();
    run(async {
        let store = store(&folder);
        let server = store.credential(&id("server")).await.unwrap();
        let client = store.credential(&id("client")).await.unwrap();
        let backend = application(echo).await;
        let mut pods = Vec::new();
        for name in ["a", "b", "c", "d", "e"] {
            pods.push(serve(server.clone(), backend, name).await);
        }
        let key = InnerKey {
            identity: id("client"),
            network: "network2".into(),
            authority: "web.default:80".to_owned(),
            expected: ExpectedPeer::new([id("server")]),
        };
        let pool = InnerPool::default();
        // What a gateway does: any pod, not in turn.
        let random = Rc::new(causeway::tunnel::random::Random::default());
        let mut served: HashMap<String, u32> = HashMap::new();
        for _ in 0..1000 {
            let (pods, client, random) = (pods.clone(), client.clone(), random.clone());
            let tunnel = pool
                .tunnel(&key, 1, 5, move || {
                    let to = pods[random.next() as usize % pods.len()];
                    let client = client.clone();
                    async move {
                        let socket = tcp(to).await.unwrap();
                        let session = session(&client, &id("server"));
                        let standing = client.standing(PeerRole::Server);
                        Tunnel::establish(socket, session, standing, 1, to.to_string(), Legs::INNER, None).await
                    }
                })
                .await
                .unwrap();
            let stream = tunnel.open("web.default:80", HeaderMap::new(), Legs::INNER).await.unwrap();
            let endpoint = stream.headers["x-causeway-endpoint"].to_str().unwrap().to_owned();
            pool.learned(&key, &tunnel, &endpoint);
            *served.entry(endpoint).or_default() += 1;
        }
        let (most, least) = (*served.values().max().unwrap(), *served.values().min().unwrap());
        println!("connections per pod: {served:?}");
        assert_eq!(served.len(), 5, "{served:?}");
        assert!(f64::from(most) / f64::from(least) <= 1.5, "{served:?}");
    });
}
