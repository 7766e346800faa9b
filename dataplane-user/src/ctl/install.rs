//! `causeway install --generate`: the manifest that the chart renders, with the few things filled in that differ everywhere.

use clap::ValueEnum;

/// Rendered from the chart by `cargo xtask manifests`; a test compares them with what Helm says.
const GENERIC: &str = include_str!("../../../deploy/manifests/generic.yaml");
const GKE: &str = include_str!("../../../deploy/manifests/gke.yaml");
const OPENSHIFT: &str = include_str!("../../../deploy/manifests/openshift.yaml");

/// Kinds of clusters that need something of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Platform {
    /// Any other cluster
    #[default]
    Generic,
    /// Google's clusters
    Gke,
    /// OpenShift
    Openshift,
}

/// What is printed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print the manifest; nothing is installed. Hand it to "kubectl apply --server-side -f -".
    #[arg(long, required = true)]
    generate: bool,
    /// Kind of the cluster.
    #[arg(long, value_enum, default_value_t)]
    platform: Platform,
    /// Namespace of all objects; that of istiod, whose root certificate is read from a config map there.
    #[arg(long, default_value = "istio-system", value_parser = super::multicluster::namespace)]
    namespace: String,
    /// Name of the cluster, as istiod knows it.
    #[arg(long, default_value = "Kubernetes", value_parser = label)]
    cluster: String,
    /// Network of the cluster, as its namespace's label topology.istio.io/network says; empty without one.
    #[arg(long, default_value = "", value_parser = label)]
    network: String,
    /// Registry, name and tag of the image.
    #[arg(long, default_value_t = format!("causeway.example/causeway:{}", env!("CARGO_PKG_VERSION")), value_parser = image)]
    image: String,
}

/// Texts that may stand anywhere in the manifest without quotes.
fn label(text: &str) -> Result<String, String> {
    let fit = |character: char| character.is_ascii_alphanumeric() || "-._".contains(character);
    let ends = |character: Option<char>| character.is_none_or(|character| character.is_ascii_alphanumeric());
    if text.len() <= 63 && text.chars().all(fit) && ends(text.chars().next()) && ends(text.chars().last()) {
        Ok(text.to_owned())
    } else {
        Err("write at most 63 letters, digits, '-', '.' and '_', with a letter or digit at either end".to_owned())
    }
}

fn image(text: &str) -> Result<String, String> {
    let fit = |character: char| character.is_ascii_alphanumeric() || "-._/:@".contains(character);
    if !text.is_empty() && text.chars().all(fit) {
        Ok(text.to_owned())
    } else {
        Err("write registry/name:tag".to_owned())
    }
}

/// Prints it.
///
/// # Errors
/// None; the arguments were checked when they were read.
pub fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", manifest(args));
    Ok(())
}

fn manifest(args: &Args) -> String {
    let text = match args.platform {
        Platform::Generic => GENERIC,
        Platform::Gke => GKE,
        Platform::Openshift => OPENSHIFT,
    };
    let places = [
        ("causeway-namespace", &args.namespace),
        ("causeway-cluster-name", &args.cluster),
        ("causeway-network-name", &args.network),
        ("causeway.invalid/image:0", &args.image),
    ];
    places.into_iter().fold(text.to_owned(), |text, (place, value)| text.replace(place, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_differs_is_filled_in_and_nothing_is_left_open() {
        for platform in [Platform::Generic, Platform::Gke, Platform::Openshift] {
            let text = manifest(&Args {
                generate: true,
                platform,
                namespace: "mesh".to_owned(),
                cluster: "east".to_owned(),
                network: "n1".to_owned(),
                image: "a.test/b:1".to_owned(),
            });
            for expected in
                ["namespace: mesh", "value: \"east\"", "value: \"n1\"", "image: \"a.test/b:1\"", "mesh:causeway"]
            {
                assert!(text.contains(expected), "{platform:?}: {expected}");
            }
            for left in ["causeway-namespace", "causeway-cluster-name", "causeway-network-name", ".invalid"] {
                assert!(!text.contains(left), "{platform:?}: {left}");
            }
        }
    }

    #[test]
    fn what_could_break_the_manifest_is_refused() {
        assert!(label("").is_ok() && label("-a").is_err() && label("a.").is_err());
        assert!(label("a b").is_err() && label("x\ny").is_err() && label(&"x".repeat(64)).is_err());
        assert!(image("").is_err() && image("a: b").is_err() && image("r.io/a@sha256:12").is_ok());
    }
}
