//! Against rustls' own buffered sessions, which protect records with code of their own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::BytesMut;
use rustls::{
    Connection, ServerConnection, client::UnbufferedClientConnection, pki_types::ServerName,
    server::UnbufferedServerConnection,
};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex},
    task::{LocalSet, spawn_local},
};

use super::{
    TlsStream, Transport,
    messages::{Message, Messages},
    record::{self, RecordError},
};
use crate::identity::{CertificateSource, CertificateStore, Credential, ExpectedPeer, SpiffeId, StoreConfig, ca};

impl Transport for DuplexStream {
    fn poll_send(&mut self, cx: &mut std::task::Context<'_>, data: &mut BytesMut) -> std::task::Poll<io::Result<()>> {
        let sent = std::task::ready!(std::pin::Pin::new(self).poll_write(cx, data))?;
        bytes::Buf::advance(data, sent);
        std::task::Poll::Ready(Ok(()))
    }
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs")
    })
}

fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{name}")).unwrap()
}

async fn credential() -> Arc<Credential> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let folder: PathBuf =
        std::env::temp_dir().join(format!("cw-tls-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed)));
    ca::create(&folder, "cluster.local", &["c1".to_owned()]).unwrap();
    let store = CertificateStore::open(StoreConfig {
        source: CertificateSource::Directory(folder.join("c1")),
        trust_domain: "cluster.local".to_owned(),
        ttl: Duration::from_secs(3600),
        revocation: None,
    })
    .unwrap();
    let credential = store.credential(&id("a")).await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    credential
}

fn client(credential: &Credential) -> UnbufferedClientConnection {
    let config = credential.client_config(&ExpectedPeer::new([id("a")]));
    UnbufferedClientConnection::new(config, ServerName::try_from("unused").unwrap()).unwrap()
}

/// A rustls session that moves bytes by hand over a pipe.
struct Peer {
    session: Connection,
    pipe: DuplexStream,
}

impl Peer {
    async fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            let mut bytes = Vec::new();
            self.session.write_tls(&mut bytes)?;
            self.pipe.write_all(&bytes).await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> io::Result<usize> {
        self.flush().await?;
        let mut bytes = vec![0; 4096];
        let count = self.pipe.read(&mut bytes).await?;
        let mut rest = &bytes[..count];
        if count == 0 {
            self.session.read_tls(&mut rest)?;
        }
        while !rest.is_empty() {
            self.session.read_tls(&mut rest)?;
            self.session.process_new_packets().map_err(io::Error::other)?;
        }
        self.flush().await?;
        Ok(count)
    }

    async fn receive(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut received = vec![0; count];
        let mut done = 0;
        while done < count {
            match self.session.reader().read(&mut received[done..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(part) => done += part,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.step().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(received)
    }

    async fn send(&mut self, data: &[u8]) -> io::Result<()> {
        for part in data.chunks(30_000) {
            self.session.writer().write_all(part)?;
            self.flush().await?;
        }
        Ok(())
    }
}

/// Our client and a rustls server, connected.
async fn pair() -> (TlsStream<DuplexStream>, Peer) {
    let credential = credential().await;
    let (near, pipe) = duplex(1 << 20);
    let session = Connection::from(ServerConnection::new(credential.server_config()).unwrap());
    let ours = spawn_local(async move { TlsStream::handshake(near, client(&credential)).await });
    let mut peer = Peer { session, pipe };
    while peer.session.is_handshaking() {
        peer.step().await.unwrap();
    }
    peer.flush().await.unwrap();
    (ours.await.unwrap().unwrap(), peer)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 % 251) as u8).collect()
}

#[test]
fn every_length_arrives_whole_both_ways() {
    run(async {
        let (mut ours, mut peer) = pair().await;
        assert_eq!(ours.alpn(), Some(&b"h2"[..]));
        assert_eq!(ours.peer_certificates().len(), 2);
        for length in [1, 2, 16_383, 16_384, 16_385, 40_000, 100_000, 600_000] {
            let data = pattern(length);
            let (sent, received) = tokio::join!(
                async {
                    ours.write_all(&data).await.unwrap();
                    ours.flush().await.unwrap();
                },
                peer.receive(length)
            );
            let () = sent;
            assert!(received.unwrap() == data, "{length} bytes towards rustls");
            let mut back = vec![0; length];
            // Small and odd reads meet the records at every offset.
            let (read, sent) = tokio::join!(
                async {
                    let mut done = 0;
                    while done < length {
                        let end = (done + 7_001).min(length);
                        done += ours.read(&mut back[done..end]).await.unwrap();
                    }
                },
                peer.send(&data)
            );
            let () = read;
            sent.unwrap();
            assert!(back == data, "{length} bytes from rustls");
        }
    });
}

#[test]
fn both_roles_of_ours_agree_and_end_in_order() {
    run(async {
        let credential = credential().await;
        let (near, far) = duplex(1 << 16);
        let server = UnbufferedServerConnection::new(credential.server_config()).unwrap();
        let (near, far) =
            tokio::join!(TlsStream::handshake(near, client(&credential)), TlsStream::handshake(far, server));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        let data = pattern(3 << 20);
        let (sent, mut got) = (data.clone(), Vec::new());
        let (a, b) = tokio::join!(
            async move {
                near.write_all(&sent).await?;
                near.shutdown().await?;
                let mut rest = Vec::new();
                near.read_to_end(&mut rest).await.map(|_| rest)
            },
            async {
                far.read_to_end(&mut got).await?;
                far.write_all(b"all of it").await?;
                far.shutdown().await
            }
        );
        b.unwrap();
        assert_eq!(a.unwrap(), b"all of it");
        assert!(got == data);
    });
}

#[test]
fn keys_change_on_either_side_without_a_gap() {
    run(async {
        let (mut ours, mut peer) = pair().await;
        ours.records_per_key = 3;
        for round in 0..20 {
            // The peer's own update asks for one of ours.
            if round % 4 == 1 {
                peer.session.refresh_traffic_keys().unwrap();
            }
            let data = pattern(50_000);
            ours.write_all(&data).await.unwrap();
            ours.flush().await.unwrap();
            assert!(peer.receive(data.len()).await.unwrap() == data, "round {round}");
            let mut back = vec![0; data.len()];
            let (read, sent) = tokio::join!(ours.read_exact(&mut back), peer.send(&data));
            read.unwrap();
            sent.unwrap();
            assert!(back == data, "round {round}");
        }
    });
}

#[test]
fn a_record_changed_on_the_way_ends_the_session_and_the_peer_learns_why() {
    run(async {
        let (mut ours, mut peer) = pair().await;
        peer.session.writer().write_all(b"pay 10 to bob").unwrap();
        let mut bytes = Vec::new();
        peer.session.write_tls(&mut bytes).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        peer.pipe.write_all(&bytes).await.unwrap();
        let mut buffer = [0; 64];
        let error = ours.read(&mut buffer).await.unwrap_err();
        assert!(error.to_string().contains("authenticate"), "{error}");
        let told = peer.step().await.unwrap_err();
        assert!(told.to_string().contains("BadRecordMac"), "{told}");
        assert!(ours.write(b"more").await.is_err());
    });
}

#[test]
fn a_repeated_or_skipped_record_is_refused() {
    run(async {
        for skip in [false, true] {
            let (mut ours, mut peer) = pair().await;
            let mut records = Vec::new();
            for text in [b"one", b"two"] {
                peer.session.writer().write_all(text).unwrap();
                let mut bytes = Vec::new();
                peer.session.write_tls(&mut bytes).unwrap();
                records.push(bytes);
            }
            let mut buffer = [0; 64];
            if !skip {
                peer.pipe.write_all(&records[0]).await.unwrap();
                assert_eq!(ours.read(&mut buffer).await.unwrap(), 3);
                peer.pipe.write_all(&records[0]).await.unwrap();
            } else {
                peer.pipe.write_all(&records[1]).await.unwrap();
            }
            assert!(ours.read(&mut buffer).await.is_err());
        }
    });
}

#[test]
fn an_end_without_close_notify_is_an_error_and_one_with_it_is_not() {
    run(async {
        let mut buffer = [0; 64];
        let (mut ours, peer) = pair().await;
        drop(peer);
        assert_eq!(ours.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let (mut ours, mut peer) = pair().await;
        peer.send(b"last").await.unwrap();
        peer.session.send_close_notify();
        peer.flush().await.unwrap();
        assert_eq!(ours.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(ours.read(&mut buffer).await.unwrap(), 0);
        ours.write_all(b"still ours").await.unwrap();
        ours.flush().await.unwrap();
        assert_eq!(peer.receive(10).await.unwrap(), b"still ours");
    });
}

#[test]
fn plaintext_and_oversized_records_are_refused_by_their_header() {
    for (header, expected) in [
        ([22, 3, 3, 0, 5], RecordError::NotProtected(22)),
        ([20, 3, 3, 0, 1], RecordError::NotProtected(20)),
        ([71, 69, 84, 32, 47], RecordError::NotProtected(71)),
        ([23, 3, 3, 0x41, 1], RecordError::TooLong(0x4101)),
    ] {
        assert_eq!(record::length(&header), Err(expected));
    }
    assert_eq!(record::length(&[23, 3, 3, 0x41, 0]), Ok(None));
    assert_eq!(record::length(&[23, 3, 3]), Ok(None));
    assert_eq!(record::length(&[23, 3, 3, 0, 1, 9, 9]), Ok(Some(6)));
}

#[test]
fn messages_are_joined_and_strange_ones_refused() {
    let mut messages = Messages::default();
    assert!(messages.push(&[4, 0, 0]).unwrap().is_empty());
    assert!(messages.push(&[3, 7, 8]).unwrap().is_empty());
    assert_eq!(
        messages.push(&[9, 24, 0, 0, 1, 1]).unwrap(),
        [Message::NewSessionTicket(vec![7, 8, 9]), Message::KeyUpdate { answer: true }]
    );
    for strange in [
        &[24, 0, 0, 1, 0, 4][..],
        &[24, 0, 0, 1, 2],
        &[24, 0, 0, 0],
        &[13, 0, 0, 0],
        &[1, 0, 0, 0],
        &[4, 255, 255, 255],
        &[],
    ] {
        assert!(Messages::default().push(strange).is_err(), "{strange:?}");
    }
}

#[test]
fn any_bytes_after_the_handshake_end_in_an_error() {
    run(async {
        let mut seed = 7u64;
        for _ in 0..60 {
            let (mut ours, mut peer) = pair().await;
            let mut bytes = vec![0; 700];
            for byte in &mut bytes {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 33) as u8;
            }
            // Half of them begin like a record, so that the bytes reach further in.
            if seed & 1 == 0 {
                bytes[..5].copy_from_slice(&[23, 3, 3, 1, 0]);
            }
            peer.pipe.write_all(&bytes).await.unwrap();
            drop(peer);
            assert!(ours.read(&mut [0; 2048]).await.is_err());
        }
    });
}
