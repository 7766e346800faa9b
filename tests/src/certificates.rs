//! Leaf certificates for peers that are not Causeway, from the authorities of a topology.

use crate::{Result, context};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The files a TLS program wants.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Leaf and intermediate.
    pub chain: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The root to trust.
    pub root: PathBuf,
}

/// Issues a leaf with a SPIFFE name, signed by the intermediate in `authority` (the layout of Istio's `cacerts`), into
/// files in `folder`.
///
/// # Errors
/// If the authority cannot be read, or the files cannot be written.
pub fn issue(authority: &Path, identity: &str, folder: &Path) -> Result<Leaf> {
    issue_for(authority, identity, folder, None)
}

/// As [`issue`], for so long from now on.
///
/// # Errors
/// As [`issue`].
pub fn issue_for(authority: &Path, identity: &str, folder: &Path, life: Option<Duration>) -> Result<Leaf> {
    let read = |name: &str| {
        let path = authority.join(name);
        std::fs::read_to_string(&path).map_err(context(path.display()))
    };
    let (ca, ca_key) = (read("ca-cert.pem")?, read("ca-key.pem")?);
    let ca_key = KeyPair::from_pem(&ca_key).map_err(context("ca-key.pem"))?;
    let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).map_err(context("ca-cert.pem"))?;
    let key = KeyPair::generate().map_err(context("a new key"))?;
    let mut parameters = CertificateParams::new(Vec::new()).map_err(context("certificate"))?;
    parameters.distinguished_name.remove(DnType::CommonName);
    let name = identity.try_into().map_err(context(identity))?;
    parameters.subject_alt_names = vec![SanType::URI(name)];
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    if let Some(life) = life {
        parameters.not_after = (SystemTime::now() + life).into();
    }
    let leaf = parameters.signed_by(&key, &issuer).map_err(context("signing"))?;
    std::fs::create_dir_all(folder).map_err(context(folder.display()))?;
    let stem = identity.rsplit('/').next().unwrap_or("leaf");
    let write = |name: &str, text: &str| {
        let path = folder.join(format!("{stem}-{name}.pem"));
        std::fs::write(&path, text).map_err(context(path.display()))?;
        Ok::<_, crate::Error>(path)
    };
    Ok(Leaf {
        chain: write("chain", &format!("{}{ca}", leaf.pem()))?,
        key: write("key", &key.serialize_pem())?,
        root: authority.join("root-cert.pem"),
    })
}

/// Another intermediate of the root in `root` (as `causeway ca` lays it out), into `folder` in the layout of Istio's `cacerts`.
/// It begins and ends so many days from now; negative numbers are days ago.
///
/// # Errors
/// If the root cannot be read, or the files cannot be written.
pub fn authority_between(root: &Path, folder: &Path, (begin, end): (i64, i64)) -> Result<()> {
    let read = |name: &str| {
        let path = root.join(name);
        std::fs::read_to_string(&path).map_err(context(path.display()))
    };
    let (root, root_key) = (read("root-cert.pem")?, read("root-key.pem")?);
    let root_key = KeyPair::from_pem(&root_key).map_err(context("root-key.pem"))?;
    let issuer = Issuer::from_ca_cert_pem(&root, root_key).map_err(context("root-cert.pem"))?;
    let key = KeyPair::generate().map_err(context("a new key"))?;
    let mut parameters = CertificateParams::new(Vec::new()).map_err(context("certificate"))?;
    parameters.distinguished_name.push(DnType::CommonName, "dated");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let day = |days: i64| {
        let length = Duration::from_secs(days.unsigned_abs() * 86_400);
        if days < 0 { SystemTime::now() - length } else { SystemTime::now() + length }
    };
    (parameters.not_before, parameters.not_after) = (day(begin).into(), day(end).into());
    let ca = parameters.signed_by(&key, &issuer).map_err(context("signing"))?.pem();
    std::fs::create_dir_all(folder).map_err(context(folder.display()))?;
    for (name, text) in [
        ("ca-cert.pem", ca.clone()),
        ("ca-key.pem", key.serialize_pem()),
        ("cert-chain.pem", ca),
        ("root-cert.pem", root),
    ] {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(context(path.display()))?;
    }
    Ok(())
}

/// A revocation list (PEM) of the authority with these files that names one certificate of its own signing.
///
/// # Errors
/// If a file cannot be read or is not what it should be.
pub fn revocation_list(authority: &Path, key: &Path, revoked: &Path) -> Result<String> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(context(path.display()));
    let key = KeyPair::from_pem(&read(key)?).map_err(context(key.display()))?;
    let issuer = Issuer::from_ca_cert_pem(&read(authority)?, key).map_err(context(authority.display()))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(read(revoked)?.as_bytes()).map_err(context(revoked.display()))?;
    let certificate = pem.parse_x509().map_err(context(revoked.display()))?;
    let now = SystemTime::now();
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + Duration::from_secs(3600)).into(),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from_slice(certificate.raw_serial()),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).and_then(|list| list.pem()).map_err(context("signing a revocation list"))
}
