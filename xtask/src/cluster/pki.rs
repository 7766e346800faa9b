//! Certificates and keys: of an API server, and of the authorities that istiods sign with. They live as long as the clusters.

use super::layout::{ADMIN_TOKEN, API_SERVICE, Cluster, state};
use super::node::{self, write};
use super::template;
use crate::{Result, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files that istiod expects in its secret.
pub const AUTHORITY_FILES: &[&str] = &["ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"];

const DAYS: &str = "365";

/// The root that the authorities of all clusters share.
///
/// # Errors
/// What openssl said.
pub fn root() -> Result<()> {
    let folder = state().join("root");
    make(&folder)?;
    let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root-key.pem -out root-cert.pem -days 3650";
    openssl(&folder, request, &["-subj", "/O=Causeway development/CN=root"])
}

/// The folder with a cluster's intermediate authority.
pub fn authority_folder(cluster: Cluster) -> PathBuf {
    cluster.folder().join("cacerts")
}

/// The intermediate authority of a cluster's istiod.
///
/// # Errors
/// What openssl said.
pub fn authority(cluster: Cluster) -> Result<()> {
    let (folder, root) = (authority_folder(cluster), state().join("root"));
    make(&folder)?;
    let extensions =
        "basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign,digitalSignature\n";
    write(&folder.join("extensions"), &format!("{extensions}subjectAltName=DNS:istiod.istio-system.svc\n"))?;
    let request = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca-key.pem -out ca.csr";
    openssl(&folder, request, &["-subj", &format!("/O=Causeway development/CN={} intermediate", cluster.name())])?;
    let (cert, key) = (path(&root.join("root-cert.pem")), path(&root.join("root-key.pem")));
    let sign = format!("x509 -req -in ca.csr -out ca-cert.pem -days {DAYS} -extfile extensions");
    // A serial of its own for each: clusters are made at the same time, a counter in a file would be shared.
    let serial = cluster.0.to_string();
    openssl(&folder, &sign, &["-CA", &cert, "-CAkey", &key, "-set_serial", &serial])?;
    let read =
        |path: PathBuf| fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    let (own, root) = (read(folder.join("ca-cert.pem"))?, read(root.join("root-cert.pem"))?);
    write(&folder.join("root-cert.pem"), &root)?;
    write(&folder.join("cert-chain.pem"), &(own + &root))
}

/// Everything an API server and its clients need.
///
/// # Errors
/// What openssl said.
pub fn api(cluster: Cluster) -> Result<()> {
    let folder = cluster.folder().join("pki");
    make(&folder)?;
    let subject = |name: &str| format!("/CN={name}");
    openssl(
        &folder,
        &format!("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days {DAYS}"),
        &["-subj", &subject(&format!("{} API", cluster.name()))],
    )?;
    let names = format!(
        "subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:{API_SERVICE},IP:{}\nextendedKeyUsage=serverAuth\n",
        cluster.first().address()
    );
    write(&folder.join("extensions"), &names)?;
    openssl(
        &folder,
        "req -newkey rsa:2048 -nodes -keyout api.key -out api.csr",
        &["-subj", &subject("kube-apiserver")],
    )?;
    let sign = "x509 -req -in api.csr -CA ca.crt -CAkey ca.key -set_serial 2 -out api.crt -extfile extensions -days";
    openssl(&folder, sign, &[DAYS])?;
    openssl(&folder, "genrsa -out sa.key 2048", &[])?;
    openssl(&folder, "rsa -in sa.key -pubout -out sa.pub", &[])?;
    write(&folder.join("tokens.csv"), &format!("{ADMIN_TOKEN},admin,1,\"system:masters\"\n"))?;
    write(&cluster.kubeconfig(), &kubeconfig(&[cluster])?)
}

/// A kubeconfig with one context for each cluster.
///
/// # Errors
/// If a certificate cannot be read.
pub fn kubeconfig(clusters: &[Cluster]) -> Result<String> {
    let (mut servers, mut contexts) = (String::new(), String::new());
    for cluster in clusters {
        let authority = cluster.folder().join("pki").join("ca.crt");
        let data = sh::output("base64", &["-w0".as_ref(), authority.as_os_str()])
            .ok_or_else(|| format!("cannot read {}", authority.display()))?;
        let (name, server) = (cluster.name(), cluster.server());
        servers +=
            &format!("- name: {name}\n  cluster: {{server: \"{server}\", certificate-authority-data: {data}}}\n");
        contexts += &format!("- name: {name}\n  context: {{cluster: {name}, user: admin}}\n");
    }
    let current = clusters.first().map(|cluster| cluster.name()).unwrap_or_default();
    let values =
        [("CURRENT", current.as_str()), ("SERVERS", &servers), ("CONTEXTS", &contexts), ("TOKEN", ADMIN_TOKEN)];
    Ok(template::fill(include_str!("files/kubeconfig.yaml"), &values))
}

fn openssl(folder: &Path, line: &str, more: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(line.split(' ')).args(more).current_dir(folder);
    node::output(&format!("openssl {line}"), &mut command).map(drop)
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))
}

fn path(path: &Path) -> String {
    path.display().to_string()
}
