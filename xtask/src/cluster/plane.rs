//! The control plane of a cluster on its first node: etcd, API server, controllers, scheduler.

use super::layout::{self, ADMIN_TOKEN, Cluster, SERVICES, TOOLS_INSIDE};
use super::node::{self, Daemon};
use crate::{Result, paths};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const READY: Duration = Duration::from_secs(180);
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The daemons, in the order in which they start.
pub const DAEMONS: &[&str] = &["etcd", "apiserver", "controllers", "scheduler"];

/// The program that holds all of Kubernetes, seen from a node.
pub fn program() -> String {
    format!("{TOOLS_INSIDE}/control-plane/kube")
}

/// Starts it and waits until objects can be created.
///
/// # Errors
/// The daemon that does not get ready, with the end of its log.
pub fn start(cluster: Cluster) -> Result<()> {
    let node = cluster.first();
    let inside = cluster.inside();
    let data = format!("--data-dir={}/etcd", node.inside());
    let etcd = ["etcd".to_owned(), data, "--unsafe-no-fsync".to_owned()];
    let mut etcd = node::start(node, "etcd", &etcd, &[])?;
    let mut api = node::start(node, "apiserver", &apiserver(cluster), &[])?;
    wait_api(cluster, &mut [&mut etcd, &mut api])?;
    let kubeconfig = format!("--kubeconfig={inside}/kubeconfig");
    let common = ["--leader-elect=false".to_owned(), format!("--cert-dir={inside}/pki"), kubeconfig];
    let line = |name: &str, own: &[String]| [&[program(), name.to_owned()], own, &common[..]].concat();
    let own = [
        format!("--service-account-private-key-file={inside}/pki/sa.key"),
        format!("--root-ca-file={inside}/pki/ca.crt"),
        "--node-monitor-grace-period=40s".to_owned(),
    ];
    let mut controllers = node::start(node, "controllers", &line("controllers", &own), &[])?;
    node::start(node, "scheduler", &line("scheduler", &[]), &[])?;
    // Whatever creates pods needs it.
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    let what = format!("{}: controllers", cluster.name());
    node::until(&what, READY, &mut [&mut controllers], || get(cluster, account).is_some())
}

/// Waits until the API server answers.
///
/// # Errors
/// If it does not.
pub fn wait_api(cluster: Cluster, daemons: &mut [&mut Daemon]) -> Result<()> {
    let what = format!("{}: API server", cluster.name());
    node::until(&what, READY, daemons, || get(cluster, "/readyz").as_deref() == Some("ok"))
}

fn apiserver(cluster: Cluster) -> Vec<String> {
    let pki = format!("{}/pki", cluster.inside());
    let options = [
        ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
        ("bind-address", "0.0.0.0".to_owned()),
        ("advertise-address", cluster.first().address()),
        ("tls-cert-file", format!("{pki}/api.crt")),
        ("tls-private-key-file", format!("{pki}/api.key")),
        ("client-ca-file", format!("{pki}/ca.crt")),
        ("service-account-key-file", format!("{pki}/sa.pub")),
        ("service-account-signing-key-file", format!("{pki}/sa.key")),
        ("service-account-issuer", ISSUER.to_owned()),
        ("api-audiences", format!("{ISSUER},istio-ca")),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("token-auth-file", format!("{pki}/tokens.csv")),
        ("service-cluster-ip-range", SERVICES.to_owned()),
        ("allow-privileged", "true".to_owned()),
        ("kubelet-preferred-address-types", "InternalIP".to_owned()),
        ("cert-dir", pki),
    ];
    let options = options.into_iter().map(|(name, value)| format!("--{name}={value}"));
    [program(), "apiserver".to_owned()].into_iter().chain(options).collect()
}

/// Reads a path of the API, if it can be read; cheaper than a kubectl where something is waited for.
pub fn get(cluster: Cluster, path: &str) -> Option<String> {
    let authority = cluster.folder().join("pki").join("ca.crt");
    let mut command = outside("curl".as_ref());
    command.args(["--silent", "--fail", "--max-time", "5", "--cacert"]).arg(authority);
    command.args(["--header", &format!("Authorization: Bearer {ADMIN_TOKEN}"), &(cluster.server() + path)]);
    let done = command.stderr(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A program in the namespace from which all API servers can be reached, otherwise as here.
pub fn outside(program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", layout::outside())).arg("--").arg(program);
    command
}

/// kubectl for a cluster.
pub fn kubectl(cluster: Cluster) -> Command {
    let mut command = outside(&paths::tools().join("control-plane").join("kube"));
    command.arg("kubectl").arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
    command.arg(format!("--cache-dir={}", cache(cluster).display()));
    command
}

fn cache(cluster: Cluster) -> PathBuf {
    cluster.folder().join("cache")
}

/// Runs kubectl to its end.
///
/// # Errors
/// What it said.
pub fn run_kubectl(cluster: Cluster, words: &[&str]) -> Result<String> {
    let mut command = kubectl(cluster);
    command.args(words).stdin(Stdio::null());
    node::output(&format!("{}: kubectl {}", cluster.name(), words.join(" ")), &mut command)
}

/// Applies a file.
///
/// # Errors
/// What the API server said.
pub fn apply(cluster: Cluster, file: &Path) -> Result<()> {
    let path = file.display().to_string();
    run_kubectl(cluster, &["apply", "--server-side", "--force-conflicts", "-f", &path]).map(drop)
}

/// Helm for a cluster.
pub fn helm_command(cluster: Cluster) -> Command {
    let mut command = outside(&paths::tools().join("cluster").join("helm"));
    command.arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
    for (name, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")] {
        command.env(name, cluster.folder().join("helm").join(folder));
    }
    command
}

/// Runs Helm to its end.
///
/// # Errors
/// What it said.
pub fn helm(cluster: Cluster, words: &[&str]) -> Result<String> {
    let mut command = helm_command(cluster);
    command.args(words).stdin(Stdio::null());
    node::output(&format!("{}: helm {}", cluster.name(), words.join(" ")), &mut command)
}
