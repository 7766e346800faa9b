//! The model file: ztunnel's local format (`workloads`, `services`, `policies`; `istio/ztunnel`, `src/state`) plus the key
//! `causeway` with what this node does.
//!
//! Reading has three steps: text to raw structures (`raw`), raw structures to the model's types (`convert`), and checks
//! across objects (`check`). All problems of a step are reported together, each with its place.

mod check;
mod convert;
mod convert_egress;
mod convert_entry;
mod convert_mesh;
mod convert_node;
mod convert_telemetry;
mod error;
mod locate;
mod raw;
mod raw_entry;
mod raw_node;
mod watch;

use std::path::Path;
use std::time::Duration;

pub use error::{ModelError, Problem};
pub use watch::{Watch, read};

use super::Model;
use locate::{Place, locate};

/// The trust domain where nobody names one, as in Istio.
const TRUST_DOMAIN: &str = "cluster.local";

/// What holds where the file says nothing; empty text is nothing, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// `node`.
    pub node: String,
    /// `cluster`.
    pub cluster: String,
    /// `network`.
    pub network: String,
    /// `trustDomain`.
    pub trust_domain: String,
    /// `clusterDomain`.
    pub cluster_domain: String,
    /// The namespace whose service a name means that several have, if none of them is the client's or canonical.
    pub preferred_namespace: String,
    /// `dns` of enrolments.
    pub dns: bool,
    /// `ttl` of certificates.
    pub ttl: Option<Duration>,
    /// `entry` and `trustedEntries`, where node ports come from somewhere else than the file.
    pub entry: Option<EntryDefaults>,
}

/// What is known of a node's entry without the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryDefaults {
    /// Namespace and service account in whose name clients enter the mesh.
    pub account: (String, String),
    /// `netns`.
    pub netns: String,
    /// `uplinks`.
    pub uplinks: Vec<String>,
    /// `internalAddresses`.
    pub internal: Vec<String>,
    /// `podRanges` of `trustedEntries`; with them, entries of this cluster are believed about their clients.
    pub pod_ranges: Vec<String>,
}

impl EntryDefaults {
    /// In whose name clients enter the mesh.
    fn identity(&self, trust_domain: &str) -> String {
        let trust_domain = if trust_domain.is_empty() { TRUST_DOMAIN } else { trust_domain };
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.account.0, self.account.1)
    }
}

impl Default for Defaults {
    fn default() -> Self {
        let [node, cluster, network, trust_domain, cluster_domain, preferred_namespace] = Default::default();
        Self {
            node,
            cluster,
            network,
            trust_domain,
            cluster_domain,
            preferred_namespace,
            dns: true,
            ttl: None,
            entry: None,
        }
    }
}

/// [`parse_with`] for a file that has to say everything.
///
/// # Errors
/// All problems found, each with line, column, field and remedy.
pub fn parse(text: &str, path: &Path) -> Result<Model, ModelError> {
    parse_with(text, path, &Defaults::default())
}

/// Reads a model. Relative paths in it are relative to the folder of `path`.
///
/// # Errors
/// All problems found, each with line, column, field and remedy.
pub fn parse_with(text: &str, path: &Path, defaults: &Defaults) -> Result<Model, ModelError> {
    let mut raw: raw::File = serde_yaml_ng::from_str(text).map_err(|error| ModelError::syntax(path, &error))?;
    raw.causeway.fill(defaults);
    let mut problems = Problems::default();
    let base = path.parent().unwrap_or(Path::new(""));
    let model = convert::model(&raw, base, &mut problems);
    if let Some(model) = &model
        && problems.found.is_empty()
    {
        check::references(&raw, model, &mut problems);
    }
    match model {
        Some(model) if problems.found.is_empty() => Ok(model),
        _ => Err(problems.into_error(text, path)),
    }
}

/// JSON schema of the file.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(raw::File).to_value()
}

/// Problems collected during one reading.
#[derive(Default)]
struct Problems {
    found: Vec<(Place, String, String)>,
}

impl Problems {
    fn add(&mut self, place: &Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.found.push((place.clone(), message.into(), remedy.into()));
    }

    fn into_error(self, text: &str, path: &Path) -> ModelError {
        // Each look-up reads the text once more; nobody reads hundreds of problems.
        const LOCATED: usize = 20;
        let problems = self
            .found
            .into_iter()
            .enumerate()
            .map(|(index, (place, message, remedy))| {
                let (line, column) = if index < LOCATED { locate(text, &place).unwrap_or_default() } else { (0, 0) };
                Problem { line, column, field: place.to_string(), message, remedy }
            })
            .collect();
        ModelError { file: path.to_owned(), problems }
    }
}

#[cfg(test)]
mod tests;
