//! `cargo xtask manifests`: what the chart renders, as the plain manifests that `causeway install --generate` fills in.

use crate::{Result, cluster, paths};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Manifest and the profile it is rendered with.
const MANIFESTS: &[(&str, &str)] = &[("generic", ""), ("gke", "gke"), ("openshift", "openshift")];

/// What `causeway install` replaces.
const PLACES: &[(&str, &str)] = &[
    ("istioNamespace", "causeway-namespace"),
    ("excludeNamespaces", "{causeway-namespace,kube-system}"),
    ("network", "causeway-network-name"),
    ("multiCluster.clusterName", "causeway-cluster-name"),
    ("image", "causeway.invalid/image:0"),
];

const HEAD: &str = "# Rendered from deploy/charts/causeway by `cargo xtask manifests`; `causeway install --generate` fills in the names.\n";

/// Writes them, or with `check` says whether they are what the chart renders.
///
/// # Errors
/// Helm is missing, says that the chart is wrong, or a manifest is old.
pub fn run(check: bool) -> Result<()> {
    for (name, profile) in MANIFESTS {
        let text = render(profile)?;
        let path = folder().join(format!("{name}.yaml"));
        if !check {
            fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            return Err(format!("{} is not what the chart renders: cargo xtask manifests", path.display()));
        }
    }
    println!("{} manifests are what the chart renders", MANIFESTS.len());
    Ok(())
}

fn folder() -> PathBuf {
    paths::root().join("deploy").join("manifests")
}

fn render(profile: &str) -> Result<String> {
    let chart = paths::root().join("deploy").join("charts").join("causeway");
    let mut command = Command::new(cluster::helm()?);
    command.args(["template", "causeway"]).arg(&chart);
    command.args(["--namespace", "causeway-namespace", "--no-hooks", "--kube-version", "1.35.0"]);
    command.args(["--set", &format!("profile={profile}")]);
    for (name, value) in PLACES {
        command.args(["--set", &format!("{name}={value}")]);
    }
    let done = command.output().map_err(|error| format!("cannot start helm: {error}"))?;
    if !done.status.success() {
        return Err(format!("helm template: {}", String::from_utf8_lossy(&done.stderr).trim()));
    }
    Ok(HEAD.to_owned() + &plain(&String::from_utf8_lossy(&done.stdout)))
}

/// Without what only means something to Helm.
fn plain(text: &str) -> String {
    let ours = |line: &&str| {
        let line = line.trim_start();
        !["helm.sh/", "app.kubernetes.io/managed-by:", "# Source:"].iter().any(|start| line.starts_with(start))
    };
    text.lines().filter(ours).map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn marks_of_helm_are_left_out() {
        let text =
            "---\n# Source: a\nkind: X\nlabels:\n  helm.sh/chart: c\n  app.kubernetes.io/managed-by: Helm\n  a: b  \n";
        assert_eq!(plain(text), "---\nkind: X\nlabels:\n  a: b\n");
    }
}
