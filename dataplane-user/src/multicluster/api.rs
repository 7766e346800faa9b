//! Talking to API servers, by the contexts of a kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use serde_json::Value;

use super::objects::{full_name, text};

/// The name under which we change objects.
const MANAGER: &str = "causeway-multicluster";
/// Objects per answer.
const PAGE: u32 = 500;
/// Answers per list: more objects than a cluster can hold.
const PAGES: usize = 10_000;
/// How long an answer may take: the longest is that of an agent which tries its entry points.
const PATIENCE: Duration = Duration::from_secs(35);

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
    /// 403.
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
    let named = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
    let named: Vec<PathBuf> = match &named {
        Some(value) => std::env::split_paths(value).collect(),
        None => std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect(),
    };
    (if files.is_empty() { &named[..] } else { files }).iter().try_for_each(|file| is_text(file))?;
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

/// What the library takes for UTF-16 without looking makes it panic. A file that is not there is its to tell.
fn is_text(file: &Path) -> Result<(), String> {
    let bytes = std::fs::read(file).unwrap_or_default();
    let wide = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
    let whole = if wide { bytes.len().is_multiple_of(2) } else { std::str::from_utf8(&bytes).is_ok() };
    if whole { Ok(()) } else { Err(format!("{} is no text: name a kubeconfig with --kubeconfig", file.display())) }
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
        for _ in 0..PAGES {
            let asked = format!("{path}?limit={PAGE}&continue={}", escaped(&next));
            let mut page = self.call("GET", &asked, None).await?;
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                objects.extend(items);
            }
            let token = text(&page, "/metadata/continue");
            if token.is_empty() {
                return Ok(objects);
            }
            if token == next {
                break;
            }
            token.clone_into(&mut next);
        }
        Err(Failure::Other(format!("{} ({}): the list at {path} has no end", self.context, self.server)))
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
        let place =
            format!("{} ({}): {method} {}", self.context, self.server, path.split('?').next().unwrap_or_default());
        let other = |error: &dyn std::fmt::Display| Failure::Other(format!("{place}: {error}"));
        let kind = if method == "PATCH" { "application/apply-patch+yaml" } else { "application/json" };
        let body = body.map(|object| object.to_string().into_bytes()).unwrap_or_default();
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind).body(body);
        let request = request.map_err(|error| other(&error))?;
        let answer = tokio::time::timeout(PATIENCE, self.client.request(request)).await;
        let answer = answer.map_err(|_| other(&format!("no answer within {} s", PATIENCE.as_secs())))?;
        answer.map_err(|error| match error {
            ::kube::Error::Api(status) => {
                let said = format!("{place}: {} (status {})", status.message, status.code);
                match status.code {
                    404 => Failure::Missing(said),
                    403 => Failure::Forbidden(said),
                    401 => Failure::Other(format!("{said}; the login of this context is refused: renew it")),
                    _ => Failure::Other(said),
                }
            }
            ::kube::Error::SerdeError(error) => {
                other(&format!("what answers speaks no JSON ({error}): is this an API server?"))
            }
            error => other(&causes(&error)),
        })
    }
}

/// An error with all that it came from, each said once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text.push_str(&format!(": {cause}"));
        }
        source = error.source();
    }
    text
}

/// A value of a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_no_kubeconfig() {
        let file = std::env::temp_dir().join(format!("causeway-kubeconfig-{}", std::process::id()));
        for (bytes, fits) in [
            (&b"apiVersion: v1"[..], true),
            (&b"\xff\xfea\0"[..], true),
            (&b"\xff\xfe\0"[..], false),
            (&b"\xfe\xff\0"[..], false),
            (&b"a: \xc3"[..], false),
        ] {
            assert!(std::fs::write(&file, bytes).is_ok());
            assert_eq!(is_text(&file).is_ok(), fits, "{bytes:?}");
        }
        assert!(std::fs::remove_file(&file).is_ok());
        assert_eq!(is_text(&file), Ok(()), "that it is not there, others say");
    }

    #[test]
    fn tokens_are_written_so_that_an_address_may_hold_them() {
        assert_eq!(escaped("aZ9-._~"), "aZ9-._~");
        assert_eq!(escaped("a b&\n/ä"), "a%20b%26%0A%2F%C3%A4");
    }
}
