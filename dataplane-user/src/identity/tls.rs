//! One certificate and the TLS configurations made from it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use super::anchors::{PeerRole, Standing, Trust};
use super::verify::{ClientVerifier, ServerVerifier};
use super::{ExpectedPeer, IdentityError, SpiffeId};

/// The application protocol of every tunnel.
const ALPN: &[u8] = b"h2";

/// Configurations kept per credential; a client seldom talks to more services than this between two rotations.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// Suites and groups of HBONE: what Istio's proxies offer, with the hybrid post-quantum exchange first.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// A certificate chain with its private key, as bytes.
pub(super) struct KeyAndChain {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// A certificate for one identity, with its TLS configurations. Live tunnels keep theirs after a rotation.
pub struct Credential {
    /// Whose.
    pub id: SpiffeId,
    /// Rises with every certificate made by one store: a new stream needs a tunnel of the newest generation.
    pub generation: u64,
    /// Begin of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    server: Arc<ServerConfig>,
    client_base: ClientConfig,
    clients: Mutex<HashMap<ExpectedPeer, Arc<ClientConfig>>>,
    trust: Arc<Trust>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("id", &self.id).field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl Credential {
    pub(super) fn new(
        id: SpiffeId,
        generation: u64,
        material: KeyAndChain,
        provider: &Arc<CryptoProvider>,
        trust: &Arc<Trust>,
    ) -> Result<Self, IdentityError> {
        let tls =
            |error: rustls::Error| IdentityError::Tls { what: "TLS configuration", reason: format!("{id}: {error}") };
        let certified = CertifiedKey::from_der(material.chain.clone(), material.key, provider).map_err(tls)?;
        let resolver = Arc::new(SingleCertAndKey::from(certified));

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(Arc::new(ClientVerifier { trust: trust.clone() }))
            .with_cert_resolver(resolver.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.max_early_data_size = 0;
        // Records are protected by the tunnels' own code, see `tunnel::tls`.
        server.enable_secret_extraction = true;

        let mut client_base = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .dangerous()
            // Replaced before use: a base that accepts nobody.
            .with_custom_certificate_verifier(Arc::new(ServerVerifier {
                trust: trust.clone(),
                expected: ExpectedPeer::new([]),
            }))
            .with_client_cert_resolver(resolver);
        client_base.alpn_protocols = vec![ALPN.to_vec()];
        // The name of the service must not be readable on the wire.
        client_base.enable_sni = false;
        client_base.enable_early_data = false;
        client_base.resumption = Resumption::disabled();
        client_base.enable_secret_extraction = true;

        Ok(Self {
            id,
            generation,
            not_before: material.not_before,
            not_after: material.not_after,
            chain: material.chain,
            server: Arc::new(server),
            client_base,
            clients: Mutex::default(),
            trust: trust.clone(),
        })
    }

    /// What a server with this certificate uses. Clients must present a certificate of a trusted domain; whether they
    /// agreed on `h2` is for the caller to check after the handshake.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// What a client with this certificate uses towards a server that must be one of `expected`. Built once per set.
    #[must_use]
    pub fn client_config(&self, expected: &ExpectedPeer) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(expected) {
            return known.clone();
        }
        if clients.len() >= MAX_CLIENT_CONFIGS {
            clients.clear();
        }
        let mut config = self.client_base.clone();
        config.dangerous().set_certificate_verifier(Arc::new(ServerVerifier {
            trust: self.trust.clone(),
            expected: expected.clone(),
        }));
        let config = Arc::new(config);
        clients.insert(expected.clone(), config.clone());
        config
    }

    /// Follows whether the peer of a tunnel with this certificate stays acceptable; to be made before the handshake.
    #[must_use]
    pub fn standing(&self, role: PeerRole) -> Standing {
        Standing::new(&self.trust, role)
    }

    /// The chain as sent, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}
