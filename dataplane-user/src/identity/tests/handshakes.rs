//! Who accepts whom.

use std::time::SystemTime;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, ServerConfig, ServerConnection};

use super::*;
use crate::identity::anchors::Trust;
use crate::identity::issuer::{CaFiles, LocalCa};
use crate::identity::tls::{KeyAndChain, provider};

/// Passes records to and fro until both sides are done; the error is of the side named first in it.
fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<(ClientConnection, ServerConnection), String> {
    let name = ServerName::try_from("ignored.invalid").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(|error| format!("server: {error}"))?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(|error| format!("client: {error}"))?;
        }
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            return Ok((client, server));
        }
    }
    Err("handshake does not end".into())
}

fn credential(store: &CertificateStore, id: &SpiffeId) -> Arc<Credential> {
    store.obtain(id, SystemTime::now()).unwrap()
}

/// A handshake of `client` with a server that presents `server`, expecting `expected`.
fn meet(
    client: (&CertificateStore, &SpiffeId),
    server: (&CertificateStore, &SpiffeId),
    expected: &ExpectedPeer,
) -> Result<(ClientConnection, ServerConnection), String> {
    let client = credential(client.0, client.1).client_config(expected);
    handshake(client, credential(server.0, server.1).server_config())
}

#[test]
fn two_clusters_of_one_root_accept_each_other_with_the_parameters_of_hbone() {
    let folder = authority("cluster.local", &["c1", "c2"]);
    let (one, two) = (store(folder.join("c1"), "cluster.local"), store(folder.join("c2"), "cluster.local"));
    let (client, web) = (id("cluster.local", "client"), id("cluster.local", "web"));
    let expected = ExpectedPeer::new([web.clone()]);
    let (at_client, at_server) = meet((&one, &client), (&two, &web), &expected).unwrap();

    assert_eq!(at_client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(at_client.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(at_client.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_256_GCM_SHA384);
    assert_eq!(at_client.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(at_server.server_name(), None, "the name must not be on the wire");
    assert_eq!(peer_identity(at_client.peer_certificates().unwrap()), Some(web));
    assert_eq!(peer_identity(at_server.peer_certificates().unwrap()), Some(client));
}

#[test]
fn another_server_is_refused_and_both_names_are_told() {
    let folder = authority("cluster.local", &["c1"]);
    let store = store(folder.join("c1"), "cluster.local");
    let (client, web, other) =
        (id("cluster.local", "client"), id("cluster.local", "web"), id("cluster.local", "other"));
    let error = meet((&store, &client), (&store, &other), &ExpectedPeer::new([web.clone()])).unwrap_err();
    for word in ["client: ", "presented spiffe://cluster.local/ns/default/sa/other", "expected ", web.as_str()] {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
}

#[test]
fn a_service_without_identities_is_met_by_nobody() {
    let folder = authority("cluster.local", &["c1"]);
    let store = store(folder.join("c1"), "cluster.local");
    let web = id("cluster.local", "web");
    let error = meet((&store, &web), (&store, &web), &ExpectedPeer::new([])).unwrap_err();
    assert!(error.contains("nobody"), "{error}");
}

#[test]
fn foreign_trust_domain_is_refused_until_its_roots_are_configured() {
    let (ours, theirs) = (authority("a", &["c1"]), authority("b", &["c1"]));
    let (a, b) = (store(ours.join("c1"), "a"), store(theirs.join("c1"), "b"));
    let (client, web) = (id("a", "client"), id("b", "web"));
    // As istiod writes it: with the local trust domain.
    let expected = ExpectedPeer::with_domains([id("a", "web")], ["b".to_owned()]);

    let error = meet((&a, &client), (&b, &web), &expected).unwrap_err();
    assert!(error.contains("client: ") && error.contains("trusted: a"), "{error}");

    a.set_trust(TrustBundle::of_peers([("b", theirs.join("root-cert.pem").as_path())]).unwrap()).unwrap();
    let error = meet((&a, &client), (&b, &web), &expected).unwrap_err();
    assert!(error.contains("server: ") && error.contains("trusted: b"), "{error}");

    b.set_trust(TrustBundle::of_peers([("a", ours.join("root-cert.pem").as_path())]).unwrap()).unwrap();
    meet((&a, &client), (&b, &web), &expected).unwrap();
}

#[test]
fn one_domains_authority_cannot_speak_for_another() {
    let (ours, theirs) = (authority("a", &["c1"]), authority("b", &["c1"]));
    let a = store(ours.join("c1"), "a");
    a.set_trust(TrustBundle::of_peers([("b", theirs.join("root-cert.pem").as_path())]).unwrap()).unwrap();

    // b's authority is trusted for b, and signs a name of a.
    let provider = provider();
    let now = SystemTime::now();
    let files = CaFiles::read(&theirs.join("c1")).unwrap();
    let rogue = LocalCa::new(&files, "b", &provider, now).unwrap();
    let victim = id("a", "web");
    let material = rogue.issue(&victim, Duration::from_secs(600), now).unwrap();
    let trust = Arc::new(Trust::new(provider.clone()));
    let bundle = TrustBundle::of_peers([("a", ours.join("root-cert.pem").as_path())]).unwrap();
    trust.set(&bundle).unwrap();
    let rogue = Credential::new(victim.clone(), 1, material, &provider, &trust).unwrap();

    let as_server = credential(&a, &id("a", "client")).client_config(&ExpectedPeer::new([victim.clone()]));
    let error = handshake(as_server, rogue.server_config()).unwrap_err();
    assert!(error.contains("does not hold against the roots of a"), "{error}");

    let web = credential(&a, &victim);
    let error = handshake(rogue.client_config(&ExpectedPeer::new([victim])), web.server_config()).unwrap_err();
    assert!(error.contains("server: ") && error.contains("roots of a"), "{error}");
}

#[test]
fn removal_of_a_root_is_seen_by_the_next_handshake() {
    let (ours, theirs) = (authority("a", &["c1"]), authority("b", &["c1"]));
    let (a, b) = (store(ours.join("c1"), "a"), store(theirs.join("c1"), "b"));
    let trust = |domain: &str, folder: &Folder| {
        TrustBundle::of_peers([(domain, folder.join("root-cert.pem").as_path())]).unwrap()
    };
    a.set_trust(trust("b", &theirs)).unwrap();
    b.set_trust(trust("a", &ours)).unwrap();
    let (client, web) = (id("a", "client"), id("b", "web"));
    let expected = ExpectedPeer::new([web.clone()]);
    meet((&a, &client), (&b, &web), &expected).unwrap();
    a.set_trust(TrustBundle::new()).unwrap();
    meet((&a, &client), (&b, &web), &expected).unwrap_err();
}

#[test]
fn client_without_certificate_and_client_of_tls12_are_refused() {
    let folder = authority("cluster.local", &["c1"]);
    let store = store(folder.join("c1"), "cluster.local");
    let web = id("cluster.local", "web");
    let server = || credential(&store, &web).server_config();
    let client = |versions: &[&'static rustls::SupportedProtocolVersion], provider| {
        let trust = Arc::new(Trust::new(super::super::tls::provider()));
        trust
            .set(&TrustBundle::of_peers([("cluster.local", folder.join("root-cert.pem").as_path())]).unwrap())
            .unwrap();
        let verifier = super::super::verify::ServerVerifier { trust, expected: ExpectedPeer::new([web.clone()]) };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Arc::new(config)
    };
    let error = handshake(client(&[&rustls::version::TLS13], provider()), server()).unwrap_err();
    assert!(error.contains("server: peer sent no certificates"), "{error}");
    let old = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let error = handshake(client(&[&rustls::version::TLS12], old), server()).unwrap_err();
    assert!(error.contains("server: "), "{error}");
}

#[test]
fn leaf_with_two_identities_or_none_is_refused() {
    let folder = authority("cluster.local", &["c1"]);
    let store = store(folder.join("c1"), "cluster.local");
    let web = id("cluster.local", "web");
    let provider = provider();
    let trust = Arc::new(Trust::new(provider.clone()));
    let odd = |names: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
        let leaf = params.self_signed(&key).unwrap();
        let now = SystemTime::now();
        let material = KeyAndChain {
            chain: vec![leaf.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_before: now,
            not_after: now,
        };
        Credential::new(web.clone(), 1, material, &provider, &trust).unwrap()
    };
    let client = || credential(&store, &web).client_config(&ExpectedPeer::new([web.clone()]));
    let two = odd(&[web.as_str(), "spiffe://cluster.local/ns/default/sa/second"]);
    let error = handshake(client(), two.server_config()).unwrap_err();
    assert!(error.contains("more than one SPIFFE identity"), "{error}");
    assert_eq!(peer_identity(two.chain()), None);
    let none = odd(&["https://cluster.local/x"]);
    let error = handshake(client(), none.server_config()).unwrap_err();
    assert!(error.contains("names no SPIFFE identity (URI names: https://cluster.local/x)"), "{error}");
}

#[test]
fn client_configurations_are_built_once_per_expected_set() {
    let folder = authority("cluster.local", &["c1"]);
    let store = store(folder.join("c1"), "cluster.local");
    let credential = credential(&store, &id("cluster.local", "client"));
    let web = ExpectedPeer::new([id("cluster.local", "web")]);
    let api = ExpectedPeer::new([id("cluster.local", "api")]);
    assert!(Arc::ptr_eq(&credential.client_config(&web), &credential.client_config(&web)));
    assert!(!Arc::ptr_eq(&credential.client_config(&web), &credential.client_config(&api)));
    assert!(Arc::ptr_eq(&credential.server_config(), &credential.server_config()));
}
