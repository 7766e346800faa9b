//! Authorities, leaves, rotation and reloading.

use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::identity::issuer::{CaFiles, LocalCa};
use crate::identity::tls::provider;

#[test]
fn stores_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<CertificateStore>();
    shared::<Credential>();
}

#[test]
fn authority_layout_is_complete_and_keys_are_private() {
    let folder = authority("cluster.local", &["c1", "c2"]);
    for name in ["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"] {
        assert!(folder.join("c2").join(name).exists(), "{name}");
    }
    for key in [folder.join("root-key.pem"), folder.join("c1").join("ca-key.pem")] {
        let mode = std::fs::metadata(&key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", key.display());
    }
}

#[test]
fn clusters_can_be_added_and_others_stay() {
    let folder = authority("cluster.local", &["c1"]);
    let before = std::fs::read(folder.join("c1").join("ca-cert.pem")).unwrap();
    let again = ca::create(&folder.0, "cluster.local", &["c1".into(), "c2".into()]).unwrap();
    assert!(!again.new_root);
    assert_eq!((again.kept.len(), again.made.len()), (1, 1));
    assert_eq!(std::fs::read(folder.join("c1").join("ca-cert.pem")).unwrap(), before);
    store(folder.join("c2"), "cluster.local");

    let error = ca::create(&folder.0, "other", &["c3".into()]).unwrap_err();
    assert!(matches!(error, IdentityError::OtherTrustDomain { .. }), "{error}");
    for bad in ["", "..", "a/b"] {
        assert!(ca::create(&folder.0, "cluster.local", &[bad.into()]).is_err(), "{bad:?}");
    }
    assert!(ca::create(&folder.0, "bad domain", &[]).is_err());
}

#[test]
fn leaf_has_the_form_of_istio() {
    let folder = authority("cluster.local", &["c1"]);
    let store = store(folder.join("c1"), "cluster.local");
    let web = id("cluster.local", "web");
    let now = SystemTime::now();
    let credential = store.obtain(&web, now).unwrap();
    assert_eq!(credential.chain().len(), 2, "leaf and intermediate, not the root");
    let (_, leaf) = X509Certificate::from_der(credential.chain()[0].as_ref()).unwrap();
    assert_eq!(leaf.subject().to_string(), "");
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names.len(), 1);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    assert!(!leaf.is_ca());
    let life = leaf.validity().not_after.timestamp() - leaf.validity().not_before.timestamp();
    assert_eq!(life, 24 * 3600 + 120);
    assert_eq!(peer_identity(credential.chain()), Some(web));
}

#[test]
fn every_defect_of_an_authority_has_its_own_answer() {
    let day = Duration::from_secs(24 * 3600);
    let load = |directory: PathBuf, domain: &str, now: SystemTime| {
        LocalCa::new(&CaFiles::read(&directory)?, domain, &provider(), now).map(|_| ())
    };
    let now = SystemTime::now();
    let folder = authority("a", &["c1", "c2"]);
    let other = authority("a", &["c1"]);
    load(folder.join("c1"), "a", now).unwrap();

    let error = load(folder.join("c1"), "a", now + day * 365 * 6).unwrap_err();
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    let error = load(folder.join("c1"), "a", now - day).unwrap_err();
    assert!(matches!(error, IdentityError::NotYetValid { .. }), "{error}");
    let error = load(folder.join("c1"), "b", now).unwrap_err();
    assert!(matches!(&error, IdentityError::OtherTrustDomain { found, .. } if found == "a"), "{error}");
    assert!(error.to_string().contains("c1/ca-cert.pem"), "{error}");
    let error = load(folder.join("none"), "a", now).unwrap_err();
    assert!(matches!(error, IdentityError::Io { .. }), "{error}");

    let copy = |from: PathBuf, to: PathBuf| std::fs::copy(from, to).unwrap();
    copy(folder.join("c2").join("ca-key.pem"), folder.join("c1").join("ca-key.pem"));
    let error = load(folder.join("c1"), "a", now).unwrap_err();
    assert!(matches!(error, IdentityError::KeyMismatch { .. }), "{error}");

    copy(other.join("root-cert.pem"), folder.join("c2").join("root-cert.pem"));
    let error = load(folder.join("c2"), "a", now).unwrap_err();
    assert!(matches!(error, IdentityError::NotSignedByRoot { .. }), "{error}");

    write(&folder.join("c2").join("ca-cert.pem"), "rubbish");
    let error = load(folder.join("c2"), "a", now).unwrap_err();
    assert!(error.to_string().contains("holds no certificate"), "{error}");
}

#[test]
fn certificates_rotate_around_half_of_their_life() {
    let folder = authority("a", &["c1"]);
    let store = store(folder.join("c1"), "a");
    let web = id("a", "web");
    let now = SystemTime::now();
    let first = store.obtain(&web, now).unwrap();
    assert_eq!(store.obtain(&web, now).unwrap().generation, first.generation, "cached");
    let hours = |h: u64| now + Duration::from_secs(h * 3600);
    assert_eq!(store.rotate_due(hours(10)), [], "before 45 % of its life");
    assert_eq!(store.rotate_due(hours(14)), std::slice::from_ref(&web), "after 55 % of its life");
    let second = store.obtain(&web, hours(14)).unwrap();
    assert!(second.generation > first.generation);
    assert_eq!(store.rotate_due(hours(14)), [], "once");
    assert!(store.next_rotation().unwrap() > hours(20));
    store.need([]);
    assert_eq!(store.next_rotation(), None);
}

#[test]
fn short_lives_are_not_due_at_once() {
    // Leaves begin two minutes in the past, which is more than such a life.
    let folder = authority("a", &["c1"]);
    let config = StoreConfig { ttl: Duration::from_secs(20), ..config(folder.join("c1"), "a") };
    let store = CertificateStore::open(config).unwrap();
    let now = SystemTime::now();
    store.obtain(&id("a", "web"), now).unwrap();
    assert_eq!(store.rotate_due(now + Duration::from_secs(8)), []);
    assert_eq!(store.rotate_due(now + Duration::from_secs(12)).len(), 1);
}

#[test]
fn a_renewal_that_fails_keeps_the_old_certificate() {
    let folder = authority("a", &["c1"]);
    let store = store(folder.join("c1"), "a");
    let web = id("a", "web");
    store.obtain(&web, SystemTime::now()).unwrap();
    let late = SystemTime::now() + Duration::from_secs(6 * 365 * 24 * 3600);
    assert_eq!(store.rotate_due(late), [], "the intermediate has expired");
    let failures = store.failures();
    assert!(failures.len() == 1 && failures[0].1.contains("expired"), "{failures:?}");
    store.obtain(&web, SystemTime::now()).unwrap();
}

#[test]
fn other_trust_domains_are_not_spoken_for() {
    let folder = authority("a", &["c1"]);
    let store = store(folder.join("c1"), "a");
    let error = store.obtain(&id("b", "web"), SystemTime::now()).unwrap_err();
    assert!(error.to_string().contains("another trust domain"), "{error}");
}

#[test]
fn reload_takes_a_new_authority_and_refuses_a_broken_one() {
    let folder = authority("a", &["c1", "c2"]);
    let store = store(folder.join("c1"), "a");
    let web = id("a", "web");
    let first = store.obtain(&web, SystemTime::now()).unwrap();
    assert_eq!(store.reload().unwrap(), [], "unchanged");

    let path = folder.join("c1").join("ca-key.pem");
    let good = std::fs::read_to_string(&path).unwrap();
    write(&path, "rubbish");
    store.reload().unwrap_err();
    assert_eq!(store.obtain(&web, SystemTime::now()).unwrap().generation, first.generation);

    write(&path, &good);
    for name in ["ca-key.pem", "ca-cert.pem", "cert-chain.pem"] {
        std::fs::copy(folder.join("c2").join(name), folder.join("c1").join(name)).unwrap();
    }
    assert_eq!(store.reload().unwrap(), std::slice::from_ref(&web));
    let second = store.obtain(&web, SystemTime::now()).unwrap();
    assert!(second.generation > first.generation);
    assert_ne!(second.chain()[1], first.chain()[1]);
}

/// PEM files of one identity, made with an authority.
fn ready_made(folder: &Folder, id: &SpiffeId) -> CertificateSource {
    let files = CaFiles::read(&folder.join("c1")).unwrap();
    let ca = LocalCa::new(&files, "a", &provider(), SystemTime::now()).unwrap();
    let material = ca.issue(id, Duration::from_secs(3600), SystemTime::now()).unwrap();
    let block = |label: &str, der: &[u8]| {
        // Base64 without a further dependency.
        let bytes = der.chunks(3).map(|chunk| {
            const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
            let value =
                chunk.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            (0..4)
                .map(|i| {
                    let digit = char::from(ALPHABET[(value >> (18 - 6 * i)) as usize & 63]);
                    if i <= chunk.len() { digit } else { '=' }
                })
                .collect::<String>()
        });
        let body: Vec<String> = bytes.collect();
        let lines: Vec<String> = body.chunks(16).map(<[String]>::concat).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    };
    let chain: String = material.chain.iter().map(|der| block("CERTIFICATE", der)).collect();
    write(&folder.join("web.pem"), &chain);
    write(&folder.join("web.key"), &block("PRIVATE KEY", material.key.secret_der()));
    CertificateSource::Files {
        certificates: vec![CertificateFiles {
            identity: id.clone(),
            chain: folder.join("web.pem"),
            key: folder.join("web.key"),
        }],
        roots: folder.join("root-cert.pem"),
    }
}

#[test]
fn ready_made_files_are_checked_and_served() {
    let folder = authority("a", &["c1"]);
    let web = id("a", "web");
    let source = ready_made(&folder, &web);
    let open = |source: CertificateSource, domain: &str| {
        CertificateStore::open(StoreConfig {
            source,
            trust_domain: domain.into(),
            ttl: Duration::from_secs(60),
            revocation: None,
        })
    };
    let store = open(source.clone(), "a").unwrap();
    let first = store.obtain(&web, SystemTime::now()).unwrap();
    assert_eq!(peer_identity(first.chain()), Some(web.clone()));
    store.obtain(&id("a", "unlisted"), SystemTime::now()).unwrap_err();

    let CertificateSource::Files { mut certificates, roots } = source.clone() else { unreachable!() };
    certificates[0].identity = id("a", "api");
    let error = open(CertificateSource::Files { certificates, roots }, "a").err().unwrap();
    assert!(matches!(error, IdentityError::OtherIdentity { .. }), "{error}");
    let error = open(source, "b").err().unwrap();
    assert!(matches!(error, IdentityError::OtherTrustDomain { .. }), "{error}");

    // Renewed on disk by somebody else.
    ready_made(&folder, &web);
    assert_eq!(store.reload().unwrap(), std::slice::from_ref(&web));
    assert!(store.obtain(&web, SystemTime::now()).unwrap().generation > first.generation);
}
