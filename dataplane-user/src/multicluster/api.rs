//! Talking to API servers, by the contexts of a kubeconfig.

use std::path::PathBuf;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use serde_json::Value;

use super::objects::{full_name, text};

/// The name under which we change objects.
const MANAGER: &str = "causeway-multicluster";
/// Objects per answer.
const PAGE: u32 = 500;

/// One API server.
#[derive(Clone)]
pub struct Api {
    /// The context that leads to it.
    pub context: String,
    /// Its address.
    pub server: String,
    client: Client,
}

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// 404.
    Missing(String),
    /// 401 or 403.
    Forbidden(String),
    /// Anything else.
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(text) | Self::Forbidden(text) | Self::Other(text) => f.write_str(text),
        }
    }
}

/// The kubeconfig: of these files, else of `KUBECONFIG`, else the one in the home directory.
///
/// # Errors
/// A file cannot be read, or none is there.
pub fn kubeconfig(files: &[PathBuf]) -> Result<Kubeconfig, String> {
    if files.is_empty() {
        return Kubeconfig::read().map_err(|error| format!("no kubeconfig: {error}; name one with --kubeconfig"));
    }
    let mut merged = Kubeconfig::default();
    for file in files {
        let read = Kubeconfig::read_from(file).map_err(|error| format!("{}: {error}", file.display()))?;
        merged = merged.merge(read).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(merged)
}

impl Api {
    /// The API server of a context.
    ///
    /// # Errors
    /// There is no such context, or it cannot be used.
    pub async fn of(config: &Kubeconfig, context: &str) -> Result<Self, String> {
        if !config.contexts.iter().any(|known| known.name == context) {
            let known: Vec<&str> = config.contexts.iter().map(|context| context.name.as_str()).collect();
            return Err(format!("there is no context {context:?} in the kubeconfig; it knows: {}", known.join(", ")));
        }
        let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
        let broken = |error: &dyn std::fmt::Display| format!("context {context}: {error}");
        let config = Config::from_custom_kubeconfig(config.clone(), &options).await.map_err(|error| broken(&error))?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).map_err(|error| broken(&error))?;
        Ok(Self { context: context.to_owned(), server, client })
    }

    /// All objects below a path.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut objects = Vec::new();
        let mut next = String::new();
        loop {
            let mut page = self.call("GET", &format!("{path}?limit={PAGE}&continue={next}"), None).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                objects.extend(items);
            }
            text(&page, "/metadata/continue").clone_into(&mut next);
            if next.is_empty() {
                return Ok(objects);
            }
        }
    }

    /// What a pod answers over HTTP, asked by way of the API server.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn ask(&self, pod: &str, port: u16, path: &str) -> Result<Value, Failure> {
        let (namespace, name) = pod.split_once('/').unwrap_or_default();
        self.call("GET", &format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/{path}"), None).await
    }

    /// Reads an object as it is now.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn get(&self, object: &Value) -> Result<Value, Failure> {
        self.call("GET", &path_of(object)?, None).await
    }

    /// Makes an object what is given, whoever it belonged to.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn apply(&self, object: &Value) -> Result<(), Failure> {
        let path = format!("{}?fieldManager={MANAGER}&force=true", path_of(object)?);
        self.call("PATCH", &path, Some(object)).await.map(drop)
    }

    /// Deletes an object; whether it was there.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn delete(&self, object: &Value) -> Result<bool, Failure> {
        match self.call("DELETE", &path_of(object)?, None).await {
            Ok(_) => Ok(true),
            Err(Failure::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let place = format!("{}: {method} {}", self.context, path.split('?').next().unwrap_or_default());
        let other = |error: &dyn std::fmt::Display| Failure::Other(format!("{place}: {error}"));
        let kind = if method == "PATCH" { "application/apply-patch+yaml" } else { "application/json" };
        let body = body.map(|object| object.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind).body(body);
        let request = request.map_err(|error| other(&error))?;
        self.client.request(request).await.map_err(|error| match error {
            ::kube::Error::Api(status) if status.code == 404 => {
                Failure::Missing(format!("{place}: {}", status.message))
            }
            ::kube::Error::Api(status) if [401, 403].contains(&status.code) => {
                Failure::Forbidden(format!("{place}: {}", status.message))
            }
            ::kube::Error::Api(status) => Failure::Other(format!("{place}: {}", status.message)),
            error => other(&causes(&error)),
        })
    }
}

/// An error with all that it came from.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// Where an object lives.
fn path_of(object: &Value) -> Result<String, Failure> {
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    let plural = match kind {
        "ClusterRole" => "clusterroles",
        "ClusterRoleBinding" => "clusterrolebindings",
        "ConfigMap" => "configmaps",
        "Deployment" => "deployments",
        "Gateway" => "gateways",
        "Namespace" => "namespaces",
        "Secret" => "secrets",
        "Service" => "services",
        "ServiceAccount" => "serviceaccounts",
        _ => return Err(Failure::Other(format!("{kind} {} is of a kind that is not written here", full_name(object)))),
    };
    let prefix = if version.contains('/') { "/apis" } else { "/api" };
    let name = text(object, "/metadata/name");
    Ok(match text(object, "/metadata/namespace") {
        "" => format!("{prefix}/{version}/{plural}/{name}"),
        namespace => format!("{prefix}/{version}/namespaces/{namespace}/{plural}/{name}"),
    })
}
