//! Talking to an API server, with curl from inside its node's namespace.

use super::pki::{ADMIN, Files, base64};
use crate::{Error, Place, Result, context};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// One API server, as its administrator.
#[derive(Debug)]
pub struct Api {
    place: Place,
    ca: PathBuf,
    folder: PathBuf,
    server: String,
    requests: AtomicU32,
}

impl Api {
    pub(super) fn new(place: Place, files: &Files, folder: &Path, address: String) -> Self {
        let server = format!("https://{address}:6443");
        Self { place, ca: files.ca(), folder: folder.to_owned(), server, requests: AtomicU32::new(0) }
    }

    /// Reads a path.
    ///
    /// # Errors
    /// If the server cannot be reached or says something else than 2xx.
    pub fn get(&self, path: &str) -> Result<String> {
        self.call("GET", path, None)
    }

    /// Creates an object or changes it to what is given, as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// What the server said.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let path = format!("{}?fieldManager=testkit&force=true", path_of(object)?);
        self.call("PATCH", &path, Some(object)).map(drop)
    }

    /// As [`Api::apply`], for several.
    ///
    /// # Errors
    /// What the server said of the first it refused.
    pub fn apply_all(&self, objects: &[Value]) -> Result<()> {
        objects.iter().try_for_each(|object| self.apply(object))
    }

    /// As [`Api::apply`], for the status.
    ///
    /// # Errors
    /// What the server said.
    pub fn apply_status(&self, object: &Value) -> Result<()> {
        let path = format!("{}/status?fieldManager=testkit-kubelet&force=true", path_of(object)?);
        self.call("PATCH", &path, Some(object)).map(drop)
    }

    /// Deletes an object at once.
    ///
    /// # Errors
    /// What the server said.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let path = format!("{}?gracePeriodSeconds=0", path_of(object)?);
        self.call("DELETE", &path, None).map(drop)
    }

    /// Lets go of an address that is kept for a service and that no service has.
    ///
    /// # Errors
    /// What the server said.
    pub fn release_address(&self, ip: &str) -> Result<()> {
        self.call("DELETE", &format!("/apis/networking.k8s.io/v1/ipaddresses/{ip}"), None).map(drop)
    }

    /// A token of a service account for istiod, bound to a pod.
    ///
    /// # Errors
    /// What the server said.
    pub fn token(&self, namespace: &str, account: &str, pod: &str) -> Result<String> {
        let found: Value = serde_json::from_str(&self.get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"))?)
            .map_err(context("a pod"))?;
        let uid = found.pointer("/metadata/uid").ok_or("the pod has no uid")?;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
            "audiences": ["istio-ca"],
            "expirationSeconds": 3600,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid},
        }});
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer: Value =
            serde_json::from_str(&self.call("POST", &path, Some(&request))?).map_err(context("a token"))?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or_else(|| Error(format!("the answer holds no token: {answer}")))
    }

    /// The secret that lets another cluster's istiod read this one.
    ///
    /// # Errors
    /// If the kubeconfig cannot be read.
    pub fn remote_secret(&self, cluster: &str) -> Result<Value> {
        let path = self.folder.join("kubeconfig");
        let config = std::fs::read(&path).map_err(context(path.display()))?;
        Ok(json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": format!("istio-remote-secret-{cluster}"), "namespace": "istio-system",
                "labels": {"istio/multiCluster": "true"}, "annotations": {"networking.istio.io/cluster": cluster}},
            "data": {cluster: base64(&config)}}))
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let url = format!("{}{path}", self.server);
        let ca = self.ca.display().to_string();
        let authorization = format!("Authorization: Bearer {ADMIN}");
        let mut line = vec!["curl", "--silent", "--show-error", "--max-time", "20", "--cacert", &ca];
        line.extend(["--request", method, "--header", &authorization, "--write-out", "\n%{http_code}"]);
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.join(format!("request-{number}.json"));
        let data = format!("@{}", file.display());
        let kind = if method == "PATCH" { "application/apply-patch+yaml" } else { "application/json" };
        let kind = format!("Content-Type: {kind}");
        if let Some(body) = body {
            std::fs::write(&file, body.to_string()).map_err(context(file.display()))?;
            line.extend(["--header", &kind, "--data-binary", &data]);
        }
        line.push(&url);
        let answer = self.place.run_ok(&line)?;
        let (text, status) = answer.rsplit_once('\n').unwrap_or(("", &answer));
        if status.starts_with('2') {
            return Ok(text.to_owned());
        }
        Err(format!("{method} {path}: {status} {text}").into())
    }
}

/// Where an object lives, by its kind and name.
fn path_of(object: &Value) -> Result<String> {
    let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let missing = || Error(format!("an object needs apiVersion, kind and a name: {object}"));
    let (version, kind) = field("/apiVersion").zip(field("/kind")).ok_or_else(missing)?;
    let name = field("/metadata/name").ok_or_else(missing)?;
    let prefix = if version.contains('/') { "/apis" } else { "/api" };
    let kind = kind.to_lowercase();
    let plural = match kind.strip_suffix('y') {
        // Gateway ends in a vowel and y.
        Some(stem) if !stem.ends_with('a') => format!("{stem}ies"),
        _ => format!("{kind}s"),
    };
    Ok(match field("/metadata/namespace") {
        Some(namespace) => format!("{prefix}/{version}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{prefix}/{version}/{plural}/{name}"),
    })
}
