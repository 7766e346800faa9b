//! `causeway validate`: checks a model file, the environment beside it, and the certificates they name, as `causeway node`
//! would.

use std::error::Error;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::agent::{certificates, control_plane, environment::Settings};
use crate::identity::{CertificateSource, TrustBundle};
use crate::istio::xds_settings::Environment;
use crate::redirect::online_cpus;
use crate::state::file;

/// Check a model file and ztunnel's environment variables, and the certificates and roots they name.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model file (YAML or JSON).
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Check the model only, not the files it names.
    #[arg(long)]
    model_only: bool,
}

/// Runs the command.
///
/// # Errors
/// All problems of the environment or the file, or the first of the certificates.
pub fn run(args: Args) -> Result<(), Box<dyn Error>> {
    check(args, &Environment::of_process())
}

fn check(args: Args, environment: &Environment) -> Result<(), Box<dyn Error>> {
    let settings = Settings::read(environment, online_cpus()?.len())?;
    let text = file::read(&args.file)?;
    let model = file::parse_with(&text, &args.file, &settings.defaults)?;
    println!(
        "{}: {} workloads, {} services, {} policies; node {:?} enrols {}{}",
        args.file.display(),
        model.workloads().count(),
        model.services().count(),
        model.policies().count(),
        model.node.node,
        model.node.enrol.len(),
        if model.node.gateway.is_some() { " and is a gateway" } else { "" },
    );
    for address in control_plane::check(&model.node, environment)? {
        println!("follows {address}; it is not asked here");
    }
    if args.model_only {
        return Ok(());
    }
    let store = certificates::open(&model.node, environment)?;
    let trust = TrustBundle::of_peers(
        model
            .node
            .trust
            .iter()
            .flat_map(|trust| trust.domains.iter().map(|domain| (domain.name.as_str(), domain.roots.as_path()))),
    )?;
    store.set_trust(trust)?;
    if model.node.identity.source == CertificateSource::Authority {
        println!("certificates come from an authority; it is not asked here");
        return Ok(());
    }
    for id in enrolled_identities(&model) {
        let credential = store.obtain(&id, SystemTime::now())?;
        println!("{id}: certificate can be presented, generation {}", credential.generation);
    }
    Ok(())
}

/// Identities this node has to speak for.
fn enrolled_identities(model: &crate::state::Model) -> Vec<crate::identity::SpiffeId> {
    let workloads = model.node.enrol.iter().filter_map(|e| model.workload(&e.workload));
    let mut ids: Vec<_> = workloads.map(|workload| workload.identity.clone()).collect();
    ids.extend(model.node.gateway.iter().map(|role| role.identity.clone()));
    ids.sort();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;
    use crate::ctl;
    use clap::Parser;

    #[derive(Parser)]
    enum Cli {
        Ca(ctl::ca::Args),
        Validate(Args),
    }

    fn run_line(line: &[&str]) -> Result<(), String> {
        run_in(&[], line)
    }

    fn run_in(variables: &[(&str, &str)], line: &[&str]) -> Result<(), String> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let line = std::iter::once("causeway").chain(line.iter().copied());
        match Cli::try_parse_from(line).map_err(|error| error.to_string())? {
            Cli::Ca(args) => ctl::ca::run(args),
            Cli::Validate(args) => check(args, &environment),
        }
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_valid_with_the_certificates_that_ca_makes_and_not_with_others() {
        let folder = std::env::temp_dir().join(format!("causeway-validate-{}", std::process::id()));
        let text = |path: &str| folder.join(path).to_str().unwrap().to_owned();
        run_line(&["ca", "--out", &text("certs"), "--trust-domain", "td", "--cluster", "c1"]).unwrap();
        let model = "
workloads:
- {uid: a, namespace: ns, serviceAccount: a, workloadIps: [10.0.0.1], node: n1, network: net1, protocol: HBONE}
causeway:
  node: n1
  network: net1
  trustDomain: td
  identity: {caDirectory: certs/c1}
  enrol: [{workload: a, netns: a}]
";
        std::fs::write(folder.join("good.yaml"), model).unwrap();
        run_line(&["validate", &text("good.yaml")]).unwrap();

        std::fs::write(folder.join("other.yaml"), model.replace("trustDomain: td", "trustDomain: other")).unwrap();
        let error = run_line(&["validate", &text("other.yaml")]).unwrap_err();
        assert!(error.contains("belongs to trust domain \"td\", configured is \"other\""), "{error}");
        run_line(&["validate", "--model-only", &text("other.yaml")]).unwrap();

        let error = run_line(&["validate", &text("missing.yaml")]).unwrap_err();
        assert!(error.contains("missing.yaml") && error.contains("cannot be read"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    #[test]
    fn the_environment_is_read_as_the_daemon_reads_it() {
        let folder = std::env::temp_dir().join(format!("causeway-validate-environment-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("node.yaml");
        let path = path.to_str().unwrap();
        std::fs::write(path, "causeway: {controlPlane: {token: token}}").unwrap();
        let place = [("NODE_NAME", "n1"), ("NETWORK", "net1"), ("CLUSTER_ID", "c1"), ("CA_ADDRESS", "istiod:15012")];
        let with = |more: &[(&str, &str)]| run_in(&[&place[..], more].concat(), &["validate", path]);
        assert_eq!(with(&[("XDS_ADDRESS", "istiod:15012")]), Ok(()));
        let refused = [
            (("TLS12_ENABLED", "true"), "TLS12_ENABLED=true: only false is possible"),
            (("CONNECTION_TERMINATION_DEADLINE", "soon"), "CONNECTION_TERMINATION_DEADLINE=soon: not a time"),
            (("ZTUNNEL_WORKER_THREADS", "many"), "ZTUNNEL_WORKER_THREADS=many: write a number"),
            (("SECRET_TTL", "long"), "SECRET_TTL=long: not a time"),
            (("XDS_ADDRESS", "istiod"), "control plane \"https://istiod\": host and port are needed"),
            (("CA_ADDRESS", ""), "no source of certificates"),
        ];
        for (variable, said) in refused {
            let error = with(&[variable]).unwrap_err();
            assert!(error.contains(said), "{variable:?}: {error}");
        }
        let error = run_in(&[], &["validate", path]).unwrap_err();
        assert!(error.contains("node"), "without the environment the file is not enough: {error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
