//! Knocking at entry points: whether TCP connects, whether TLS answers, and as whom.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use crate::identity::{SpiffeId, peer_identity};

/// How long each step may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No connection, for this reason.
    Unreachable(String),
    /// A connection, and no TLS, for this reason.
    NoTls(String),
    /// A certificate of this identity, or without one.
    Presented(Option<SpiffeId>),
}

/// One entry point that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Context of the cluster it leads to.
    pub context: String,
    /// Address or host name.
    pub address: String,
    /// Port.
    pub port: u16,
    /// What came of it.
    pub answer: Answer,
    /// How long the connection took.
    pub connected: Duration,
}

/// Tries several at once, from this machine.
#[must_use]
pub fn all(targets: Vec<(String, String, u16)>) -> Vec<Probe> {
    let threads: Vec<_> = targets
        .into_iter()
        .map(|(context, address, port)| std::thread::spawn(move || one(context, address, port)))
        .collect();
    threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
}

/// As [`all`], again and again until everybody answers or `patience` is over.
#[must_use]
pub fn until_all_answer(targets: Vec<(String, String, u16)>, patience: Duration) -> Vec<Probe> {
    let end = Instant::now() + patience;
    loop {
        let probes = all(targets.clone());
        let answered = probes.iter().all(|probe| matches!(probe.answer, Answer::Presented(_)));
        if answered || Instant::now() >= end {
            return probes;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn one(context: String, address: String, port: u16) -> Probe {
    let began = Instant::now();
    let mut probe = Probe { context, address, port, answer: Answer::Presented(None), connected: Duration::ZERO };
    let connected = (probe.address.as_str(), port).to_socket_addrs().and_then(|mut found| {
        let first = found.next().ok_or_else(|| io::Error::other("the name has no address"))?;
        TcpStream::connect_timeout(&first, PATIENCE)
    });
    probe.connected = began.elapsed();
    probe.answer = match connected {
        Err(error) => Answer::Unreachable(error.to_string()),
        Ok(socket) => shake_hands(socket).unwrap_or_else(|error| Answer::NoTls(error.to_string())),
    };
    probe
}

fn shake_hands(mut socket: TcpStream) -> io::Result<Answer> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("causeway-probe.invalid").map_err(io::Error::other)?;
    let mut session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    // A gateway refuses us afterwards, for want of a certificate: its own it has shown by then.
    let done = session.complete_io(&mut socket);
    match session.peer_certificates() {
        Some(chain) => Ok(Answer::Presented(peer_identity(chain))),
        None => done.and_then(|_| Err(io::Error::other("no certificate was presented"))),
    }
}

/// Accepts every certificate, because the probe asks who is there and sends nothing.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
