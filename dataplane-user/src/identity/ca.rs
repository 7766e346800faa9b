//! Making a root and one intermediate per cluster, in the layout of Istio's `cacerts` secret.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
};
use time::OffsetDateTime;

use super::issuer::{CA_CERT, CA_KEY, CERT_CHAIN, CaFiles, LocalCa, ROOT_CERT};
use super::pem::{Facts, parse_certificates, read_text};
use super::tls::provider;
use super::{IdentityError, SpiffeId};

const ROOT_KEY: &str = "root-key.pem";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const ROOT_YEARS: u32 = 10;
const INTERMEDIATE_YEARS: u32 = 5;

/// What [`create`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Created {
    /// Whether the root was made now (or was there and is used again).
    pub new_root: bool,
    /// Directories of clusters made now.
    pub made: Vec<PathBuf>,
    /// Directories of clusters that were there, checked and left alone.
    pub kept: Vec<PathBuf>,
}

/// Makes `out/root-cert.pem`, `out/root-key.pem` and for each cluster `out/<cluster>/{ca-cert,ca-key,root-cert,cert-chain}.pem`.
/// What exists is checked and used again, so clusters can be added later.
///
/// # Errors
/// If a name is unusable, a file cannot be written, or what exists does not fit (expired, other trust domain, wrong key,
/// other root).
pub fn create(out: &Path, trust_domain: &str, clusters: &[String]) -> Result<Created, IdentityError> {
    // The same rules as for the names that will be signed.
    SpiffeId::new(trust_domain, "default", "default")
        .map_err(|error| IdentityError::Unavailable { identity: trust_domain.to_owned(), reason: error.to_string() })?;
    for cluster in clusters {
        let usable = (1..=63).contains(&cluster.len())
            && !cluster.starts_with('.')
            // Those of the root stand beside the clusters' folders.
            && !cluster.ends_with(".pem")
            && cluster.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !usable {
            return Err(IdentityError::Malformed {
                path: out.join(cluster),
                reason: format!(
                    "cluster name {cluster:?} is not usable as a directory; use at most 63 letters, digits, '.', '_' and '-', and no name that ends in .pem"
                ),
            });
        }
    }
    let mut created = Created::default();
    let root = match load_root(out, trust_domain)? {
        Some(root) => root,
        None => {
            created.new_root = true;
            make_root(out, trust_domain)?
        }
    };
    for cluster in clusters {
        let directory = out.join(cluster);
        if directory.join(CA_CERT).exists() {
            let files = CaFiles::read(&directory)?;
            LocalCa::new(&files, trust_domain, &provider(), SystemTime::now())?;
            created.kept.push(directory);
        } else {
            make_intermediate(&directory, cluster, trust_domain, &root)?;
            created.made.push(directory);
        }
    }
    Ok(created)
}

struct Root {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn load_root(out: &Path, trust_domain: &str) -> Result<Option<Root>, IdentityError> {
    let (certificate_path, key_path) = (out.join(ROOT_CERT), out.join(ROOT_KEY));
    if !certificate_path.exists() && !key_path.exists() {
        return Ok(None);
    }
    let pem = read_text(&certificate_path)?;
    let malformed = |path: &Path, reason: String| IdentityError::Malformed { path: path.to_owned(), reason };
    let certificates = parse_certificates(&pem, &certificate_path)?;
    let certificate =
        certificates.first().ok_or_else(|| malformed(&certificate_path, "holds no certificate".into()))?;
    let facts = Facts::of(certificate).map_err(|reason| malformed(&certificate_path, reason))?;
    facts.check_time(&certificate_path, SystemTime::now())?;
    facts.check_domain(&certificate_path, trust_domain)?;
    let key = KeyPair::from_pem(&read_text(&key_path)?)
        .map_err(|error| malformed(&key_path, format!("not a private key in PEM: {error}")))?;
    if key.subject_public_key_info() != facts.public_key {
        return Err(IdentityError::KeyMismatch { key: key_path, certificate: certificate_path });
    }
    let issuer =
        Issuer::from_ca_cert_der(certificate, key).map_err(|error| malformed(&certificate_path, error.to_string()))?;
    Ok(Some(Root { pem, issuer }))
}

fn make_root(out: &Path, trust_domain: &str) -> Result<Root, IdentityError> {
    let params = authority(trust_domain, "root", ROOT_YEARS, 1)?;
    let key = new_key()?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let pem = certificate.pem();
    make_directory(out)?;
    write_file(&out.join(ROOT_KEY), &key.serialize_pem(), 0o600)?;
    write_file(&out.join(ROOT_CERT), &pem, 0o644)?;
    Ok(Root { pem, issuer: Issuer::new(params, key) })
}

fn make_intermediate(directory: &Path, cluster: &str, trust_domain: &str, root: &Root) -> Result<(), IdentityError> {
    let params = authority(trust_domain, cluster, INTERMEDIATE_YEARS, 0)?;
    let key = new_key()?;
    let pem = params.signed_by(&key, &root.issuer).map_err(failed)?.pem();
    make_directory(directory)?;
    write_file(&directory.join(CA_KEY), &key.serialize_pem(), 0o600)?;
    write_file(&directory.join(ROOT_CERT), &root.pem, 0o644)?;
    write_file(&directory.join(CERT_CHAIN), &format!("{pem}{}", root.pem), 0o644)?;
    // Last: its presence says that the directory is complete.
    write_file(&directory.join(CA_CERT), &pem, 0o644)
}

fn authority(trust_domain: &str, name: &str, years: u32, below: u8) -> Result<CertificateParams, IdentityError> {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::from(now - Duration::from_secs(120));
    params.not_after = OffsetDateTime::from(now + YEAR * years);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, format!("Causeway {name}"));
    // X509-SVID section 4.1: a signing certificate may carry its trust domain; we check it on load.
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(failed)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn new_key() -> Result<KeyPair, IdentityError> {
    KeyPair::generate().map_err(failed)
}

fn failed(error: rcgen::Error) -> IdentityError {
    IdentityError::Tls { what: "making a certificate", reason: error.to_string() }
}

fn make_directory(path: &Path) -> Result<(), IdentityError> {
    fs::create_dir_all(path).map_err(|error| io(path, &error))
}

fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .map_err(|error| io(path, &error))?;
    file.write_all(text.as_bytes()).map_err(|error| io(path, &error))
}

fn io(path: &Path, error: &std::io::Error) -> IdentityError {
    IdentityError::Io { path: path.to_owned(), reason: error.to_string() }
}
