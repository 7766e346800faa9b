//! Causeway in a cluster, by its chart, and an application to try it with.

use super::{Clusters, output, xtask};
use crate::{Error, Result, process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The namespace of istiod, where the agents run beside it.
pub const MESH: &str = "istio-system";
/// The namespace of the application.
pub const SHOP: &str = "shop";
/// The annotation that says a pod is redirected.
const REDIRECTION: &str = r"{.items[*].metadata.annotations.ambient\.istio\.io/redirection}";
/// How long pods may take to come and go.
const PATIENCE: Duration = Duration::from_secs(120);

/// A release in a cluster; dropping it takes it and the application away.
#[derive(Debug)]
pub struct Deployed<'a> {
    clusters: &'a Clusters,
    number: u8,
    gone: bool,
}

/// The folder of the chart.
#[must_use]
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/charts/causeway")
}

impl<'a> Deployed<'a> {
    /// Installs the chart with the program of this build, and waits until every node's agent is ready.
    ///
    /// # Errors
    /// What Helm said, or what the agents write.
    pub fn install(clusters: &'a Clusters, number: u8) -> Result<Self> {
        Self::install_with(clusters, number, &[])
    }

    /// As [`Deployed::install`], with further values in Helm's form.
    ///
    /// # Errors
    /// What Helm said, or what the agents write.
    pub fn install_with(clusters: &'a Clusters, number: u8, values: &[&str]) -> Result<Self> {
        let made = output(xtask(&["image", "--quick"])?)?;
        let archive = made.lines().last().ok_or("no archive")?;
        clusters.load(number, Path::new(archive))?;
        let deployed = Self { clusters, number, gone: false };
        let (chart, cluster, network) = (chart().display().to_string(), deployed.cluster(), format!("network{number}"));
        let sets = [
            "profile=namespaces".to_owned(),
            "image=causeway.test/causeway:1".to_owned(),
            format!("network={network}"),
            format!("multiCluster.clusterName={cluster}"),
        ];
        let mut words = vec!["upgrade", "--install", "causeway", chart.as_str(), "--namespace", MESH];
        let sets = sets.iter().map(String::as_str).chain(values.iter().copied());
        words.extend(sets.flat_map(|set| ["--set", set]));
        clusters.helm(number, &words)?;
        let rollout = ["-n", MESH, "rollout", "status", "daemonset/causeway", "--timeout=120s"];
        clusters.kubectl(number, &rollout).map_err(|error| {
            let pods = clusters.kubectl(number, &["-n", MESH, "describe", "pods", "-l", "app=causeway"]);
            Error(format!("{error}\n{}\n{}", pods.unwrap_or_default(), deployed.logs().unwrap_or_default()))
        })?;
        Ok(deployed)
    }

    /// The name of the cluster.
    #[must_use]
    pub fn cluster(&self) -> String {
        format!("cluster{}", self.number)
    }

    /// Everything the agents wrote.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn logs(&self) -> Result<String> {
        let words = ["-n", MESH, "logs", "-l", "app=causeway", "--tail=-1", "--prefix", "--max-log-requests=9"];
        self.clusters.kubectl(self.number, &words)
    }

    /// The agent's pod of each node, by node.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn agents(&self) -> Result<BTreeMap<String, String>> {
        let path = "{range .items[*]}{.spec.nodeName} {.metadata.name}{\"\\n\"}{end}";
        let words = ["-n", MESH, "get", "pods", "-l", "app=causeway", "-o", &format!("jsonpath={path}")];
        let text = self.clusters.kubectl(self.number, &words)?;
        Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
    }

    /// What an agent says of itself.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn status(&self, agent: &str, format: &str) -> Result<String> {
        let words = ["-n", MESH, "exec", agent, "--", "/usr/local/bin/causeway", "status", "-o", format];
        self.clusters.kubectl(self.number, &words)
    }

    /// Puts the label on the application's namespace, or takes it off, and waits until its pods are redirected, or none is.
    ///
    /// # Errors
    /// If they do not become so, with what the agents write.
    pub fn label(&self, wanted: bool) -> Result<()> {
        let label = if wanted { "istio.io/dataplane-mode=ambient" } else { "istio.io/dataplane-mode-" };
        self.clusters.kubectl(self.number, &["label", "--overwrite", "namespace", SHOP, label])?;
        let path = format!("jsonpath={REDIRECTION}");
        let pods = || self.clusters.kubectl(self.number, &["-n", SHOP, "get", "pods", "-o", "name"]);
        let marked = || self.clusters.kubectl(self.number, &["-n", SHOP, "get", "pods", "-o", &path]);
        let expected = if wanted { pods()?.lines().count() } else { 0 };
        process::until(PATIENCE, || marked().is_ok_and(|text| text.split_whitespace().count() == expected)).map_err(
            |_| {
                let what = if wanted { "not all pods are redirected" } else { "some pods are still redirected" };
                Error(format!("{what}: {:?} of {expected}\n{}", marked(), self.logs().unwrap_or_default()))
            },
        )
    }

    /// Takes the release away as a person would, and waits until its pods are gone.
    ///
    /// # Errors
    /// What Helm said.
    pub fn uninstall(&mut self) -> Result<()> {
        self.gone = true;
        self.take_away()
    }

    fn take_away(&self) -> Result<()> {
        self.clusters
            .helm(self.number, &["uninstall", "causeway", "--namespace", MESH, "--wait", "--timeout", "120s"])?;
        let gone = ["-n", MESH, "wait", "--for=delete", "pods", "-l", "app=causeway", "--timeout=120s"];
        self.clusters.kubectl(self.number, &gone).map(drop)
    }
}

impl Drop for Deployed<'_> {
    fn drop(&mut self) {
        // The application first: pods that are gone need not be released.
        let left = self.clusters.delete_namespace(self.number, SHOP).err();
        let kept = (!self.gone).then(|| self.take_away().err()).flatten();
        if let Some(error) = left.or(kept)
            && !std::thread::panicking()
        {
            panic!("what was deployed cannot be taken away: {error}");
        }
    }
}
