//! Revocation lists, against leaves and intermediates, on both roles.

use std::time::SystemTime;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};
use rustls::pki_types::UnixTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::identity::anchors::Trust;
use crate::identity::crl::RevocationFile;
use crate::identity::tls::provider;

/// A list of the authority whose certificate and key are these files, naming the serial number of `revoked`.
fn list(certificate: &Path, key: &Path, revoked: &[u8]) -> String {
    let (_, parsed) = X509Certificate::from_der(revoked).unwrap();
    let key = KeyPair::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&std::fs::read_to_string(certificate).unwrap(), key).unwrap();
    let now = SystemTime::now();
    CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + Duration::from_secs(3600)).into(),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from_slice(parsed.raw_serial()),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    }
    .signed_by(&issuer)
    .unwrap()
    .pem()
    .unwrap()
}

#[test]
fn leaf_and_intermediate_are_revoked_in_both_roles_and_others_are_not() {
    let folder = authority("cluster.local", &["c1", "c2"]);
    let (one, two) = (store(folder.join("c1"), "cluster.local"), store(folder.join("c2"), "cluster.local"));
    let now = SystemTime::now();
    let bad = one.obtain(&id("cluster.local", "bad"), now).unwrap();
    let good = one.obtain(&id("cluster.local", "good"), now).unwrap();
    let other = two.obtain(&id("cluster.local", "other"), now).unwrap();
    let of_leaf = list(&folder.join("c1/ca-cert.pem"), &folder.join("c1/ca-key.pem"), &bad.chain()[0]);
    let of_signer = list(&folder.join("root-cert.pem"), &folder.join("root-key.pem"), &bad.chain()[1]);
    let rows = [
        ("nothing", String::new(), [true, true, true]),
        ("a leaf", of_leaf.clone(), [false, true, true]),
        ("its signer", of_signer.clone(), [false, false, true]),
        ("both", of_leaf + &of_signer, [false, false, true]),
    ];
    let path = folder.join("crl.pem");
    for (what, text, accepted) in rows {
        write(&path, &text);
        let trust = Trust::new(provider());
        trust
            .set(&TrustBundle::of_peers([("cluster.local", folder.join("root-cert.pem").as_path())]).unwrap())
            .unwrap();
        if let Some(lists) = RevocationFile::new(&path).poll() {
            trust.set_revoked(lists);
        }
        for role in [PeerRole::Server, PeerRole::Client] {
            let passes = [&bad, &good, &other].map(|peer| {
                let (leaf, rest) = peer.chain().split_first().unwrap();
                let result = trust.verify(&peer.id, leaf, rest, role, UnixTime::now());
                if let Err(error) = &result {
                    assert!(error.to_string().starts_with("CERT_REVOKED"), "{error}");
                }
                result.is_ok()
            });
            assert_eq!(passes, accepted, "{what} revoked, {role:?}");
        }
    }
}

#[test]
fn a_list_that_appears_ends_the_standing_of_a_live_peer() {
    let folder = authority("cluster.local", &["c1"]);
    let path = folder.join("crl.pem");
    let config = StoreConfig { revocation: Some(path.clone()), ..config(folder.join("c1"), "cluster.local") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = CertificateStore::open(config).unwrap();
        tokio::spawn(store.clone().run());
        let peer = store.credential(&id("cluster.local", "peer")).await.unwrap();
        let other = store.credential(&id("cluster.local", "other")).await.unwrap();
        let watch = |credential: &Credential| {
            let (standing, chain) = (credential.standing(PeerRole::Client), credential.chain().to_vec());
            tokio::spawn(async move { standing.lost(chain).await })
        };
        let (lost, lives) = (watch(&peer), watch(&other));
        write(&path, "not a list");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        assert!(!lost.is_finished(), "a broken file revokes nobody");
        write(&path, &list(&folder.join("c1/ca-cert.pem"), &folder.join("c1/ca-key.pem"), &peer.chain()[0]));
        let why = tokio::time::timeout(Duration::from_secs(5), lost).await.unwrap().unwrap();
        assert!(why.contains("CERT_REVOKED") && why.contains("sa/peer"), "{why}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!lives.is_finished(), "others live on");
    });
}
