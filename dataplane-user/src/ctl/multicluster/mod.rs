//! `causeway multicluster`: expose clusters, link them, and say what is wrong between them.
//!
//! Exit codes: 0 all is well, 1 a check failed or something was refused, 2 the command line cannot be meant.

mod changes;
mod clusters;
mod inspect;

use std::path::PathBuf;
use std::process::ExitCode;

use super::show::Form;
use crate::multicluster::finding::Finding;
use crate::multicluster::{link, names};

/// Expose, link and check clusters.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a cluster's entry point: gateway, service, and the object by which istiod publishes them.
    Expose(Expose),
    /// Let clusters call each other's shared services.
    Link(Link),
    /// Take links away.
    Unlink(Unlink),
    /// Show entry points and links.
    Status(Contexts),
    /// Look for everything that keeps clusters from calling each other.
    Check(Check),
}

/// Where clusters and their parts are.
#[derive(Debug, clap::Args)]
struct Place {
    /// Kubeconfig files; what KUBECONFIG names if absent, else the one in the home directory.
    #[arg(long, value_name = "FILES", value_delimiter = ',')]
    kubeconfig: Vec<PathBuf>,
    /// Where istiod is.
    #[arg(long, value_name = "NAMESPACE", default_value = names::ISTIO_NAMESPACE)]
    istio_namespace: String,
    /// Where gateways are, in every cluster alike.
    #[arg(long, value_name = "NAMESPACE", default_value = names::GATEWAY_NAMESPACE)]
    gateway_namespace: String,
    /// How it is written.
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Debug, clap::Args)]
struct Contexts {
    #[command(flatten)]
    place: Place,
    /// Contexts of the kubeconfig, one for each cluster; all if absent.
    #[arg(long, visible_alias = "context", value_name = "NAMES", value_delimiter = ',')]
    contexts: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Expose {
    #[command(flatten)]
    which: Contexts,
    /// A port of every node instead of a load balancer.
    #[arg(long)]
    node_port: bool,
    /// Image of the gateway; that of the node agent if absent.
    #[arg(long)]
    image: Option<String>,
    /// Only the service and what describes it; pods with the label app: causeway-gateway come from somewhere else.
    #[arg(long, conflicts_with = "image")]
    no_pods: bool,
    /// Services that others may reach, as namespace/hostname; those labelled istio.io/global=true, now and later, if absent.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    exports: Vec<String>,
    /// Pass TLS connections at port 15012 on to istiod, for proxies of other clusters that this cluster's istiod serves.
    #[arg(long)]
    istiod: bool,
    /// Change nothing: print the objects.
    #[arg(long)]
    generate: bool,
}

/// Which links.
#[derive(Debug, clap::Args)]
struct Links {
    #[command(flatten)]
    place: Place,
    /// Contexts of the kubeconfig; each is linked with each, in both directions.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required_unless_present = "from")]
    contexts: Vec<String>,
    /// One direction: the context whose pods call.
    #[arg(long, value_name = "CONTEXT", conflicts_with = "contexts")]
    from: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Link {
    #[command(flatten)]
    links: Links,
    /// One direction: the context whose services are called.
    #[arg(long, value_name = "CONTEXT", requires = "from", required_unless_present = "contexts")]
    to: Option<String>,
    /// Enter by a port of the nodes that run a gateway, instead of a load balancer.
    #[arg(long)]
    node_port: bool,
    /// Which addresses of those nodes.
    #[arg(long, value_name = "TYPE", default_value = "InternalIP", value_parser = ["InternalIP", "ExternalIP"])]
    address_type: String,
    /// Do not try the entry points from this machine.
    #[arg(long)]
    skip_probe: bool,
    /// Where istiods of other clusters find an API server, if that is not what the kubeconfig says: CONTEXT=URL.
    #[arg(long, value_name = "CONTEXT=URL", value_parser = pair)]
    api_server: Vec<(String, String)>,
    /// Change nothing: print the objects.
    #[arg(long)]
    generate: bool,
}

#[derive(Debug, clap::Args)]
struct Unlink {
    #[command(flatten)]
    links: Links,
    /// One direction: the context whose services were called.
    #[arg(long, value_name = "CONTEXT", requires = "from", conflicts_with = "contexts")]
    to: Option<String>,
    /// One direction, to a cluster that is gone: its name.
    #[arg(long, value_name = "CLUSTER", requires = "from", conflicts_with_all = ["contexts", "to"])]
    peer: Option<String>,
    /// Change nothing: print what would be deleted.
    #[arg(long)]
    generate: bool,
}

#[derive(Debug, clap::Args)]
struct Check {
    #[command(flatten)]
    which: Contexts,
    /// Only what can be known before Causeway is installed.
    #[arg(long)]
    precheck: bool,
    /// Do not try the entry points from this machine.
    #[arg(long)]
    skip_probe: bool,
    /// Show what holds, too.
    #[arg(short, long)]
    verbose: bool,
}

/// Why a command ended.
enum Ended {
    /// The command line names what is not there.
    Usage(String),
    /// Something is wrong; nothing was changed.
    Refused(Vec<Finding>),
    /// A request failed.
    Failed(String),
}

impl From<String> for Ended {
    fn from(text: String) -> Self {
        Self::Failed(text)
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (context, url) = text.split_once('=').ok_or("expected CONTEXT=URL")?;
    if url.starts_with("https://") {
        Ok((context.to_owned(), url.to_owned()))
    } else {
        Err("the URL begins with https://".to_owned())
    }
}

impl Link {
    fn way(&self) -> link::Way {
        if self.node_port { link::Way::NodePort(self.address_type.clone()) } else { link::Way::LoadBalancer }
    }
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("causeway: {error}");
            return ExitCode::FAILURE;
        }
    };
    let form = match &args.action {
        Action::Expose(args) => args.which.place.output,
        Action::Link(args) => args.links.place.output,
        Action::Unlink(args) => args.links.place.output,
        Action::Status(args) => args.place.output,
        Action::Check(args) => args.which.place.output,
    };
    let done = runtime.block_on(async {
        match args.action {
            Action::Expose(args) => changes::expose(&args).await,
            Action::Link(args) => changes::link(&args).await,
            Action::Unlink(args) => changes::unlink(&args).await,
            Action::Status(args) => inspect::status(&args).await,
            Action::Check(args) => inspect::check(&args).await,
        }
    });
    match done {
        Ok(code) => code,
        Err(Ended::Usage(text)) => {
            eprintln!("causeway: {text}");
            ExitCode::from(2)
        }
        Err(Ended::Failed(text)) => {
            eprintln!("causeway: {text}");
            ExitCode::FAILURE
        }
        Err(Ended::Refused(findings)) => {
            match form {
                Form::Json => println!("{}", serde_json::json!({"refused": findings})),
                Form::Table => {
                    findings.iter().for_each(|finding| eprint!("{finding}"));
                    eprintln!("causeway: nothing was changed");
                }
            }
            ExitCode::FAILURE
        }
    }
}
