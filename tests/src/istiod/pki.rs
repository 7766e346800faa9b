//! Certificates and keys of an API server, its kubeconfig, and the administrator's token.

use crate::{Result, context};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The token with which the kit and istiod may do everything; it works only inside the topology's namespaces.
pub(super) const ADMIN: &str = "test-admin";

/// Where they are.
pub(super) struct Files {
    pub(super) folder: PathBuf,
}

impl Files {
    pub(super) fn of(folder: &Path) -> Self {
        Self { folder: folder.join("pki") }
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }
}

/// Makes all of them.
pub(super) fn create(folder: &Path, cluster: &str, address: &str) -> Result<Files> {
    let files = Files::of(folder);
    std::fs::create_dir_all(&files.folder).map_err(context(files.folder.display()))?;
    let write = |path: PathBuf, text: &str| std::fs::write(&path, text).map_err(context(path.display()));
    let key = || KeyPair::generate().map_err(context("a new key"));

    let ca_key = key()?;
    let mut ca = CertificateParams::new(Vec::new()).map_err(context("certificate"))?;
    ca.distinguished_name.push(DnType::CommonName, format!("{cluster} API"));
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).map_err(context("signing"))?.pem();
    let issuer = Issuer::new(ca, ca_key);

    let server_key = key()?;
    let names = ["localhost", "kubernetes.default.svc", "127.0.0.1", "10.96.0.1", address].map(str::to_owned);
    let mut server = CertificateParams::new(names).map_err(context("certificate"))?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_pem = server.signed_by(&server_key, &issuer).map_err(context("signing"))?.pem();

    let accounts = key()?;
    write(files.ca(), &ca_pem)?;
    write(files.folder.join("api.crt"), &server_pem)?;
    write(files.folder.join("api.key"), &server_key.serialize_pem())?;
    write(files.folder.join("sa.key"), &accounts.serialize_pem())?;
    write(files.folder.join("sa.pub"), &accounts.public_key_pem())?;
    write(files.folder.join("tokens.csv"), &format!("{ADMIN},admin,1,\"system:masters\"\n"))?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": cluster,
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": "admin"}}],
        "users": [{"name": "admin", "user": {"token": ADMIN}}],
        "clusters": [{"name": cluster, "cluster": {
            "server": format!("https://{address}:6443"),
            "certificate-authority-data": base64(ca_pem.as_bytes()),
        }}],
    });
    write(folder.join("kubeconfig"), &kubeconfig.to_string())?;
    Ok(files)
}

/// Base 64 (RFC 4648 section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().enumerate().fold(0, |sum, (at, byte)| sum | (u32::from(*byte) << (16 - 8 * at)));
        for at in 0..4 {
            let index = (number >> (18 - 6 * at)) & 63;
            let letter = ALPHABET.get(index as usize).map_or('=', |letter| char::from(*letter));
            text.push(if at <= chunk.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_of_rfc_4648() {
        let rows =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in rows {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
