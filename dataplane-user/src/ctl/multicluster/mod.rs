//! `causeway multicluster`: expose clusters, link them, and say what is wrong between them.
//!
//! Exit codes: 0 all is well, 1 a check failed or something was refused, 2 the command line cannot be meant, or a cluster cannot
//! be read or changed.

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
    #[arg(long, value_name = "NAMESPACE", default_value = names::ISTIO_NAMESPACE, value_parser = namespace)]
    istio_namespace: String,
    /// Where gateways are, in every cluster alike.
    #[arg(long, value_name = "NAMESPACE", default_value = names::GATEWAY_NAMESPACE, value_parser = namespace)]
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
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    image: Option<String>,
    /// Only the service and what describes it; pods with the label app: causeway-gateway come from somewhere else.
    #[arg(long, conflicts_with = "image")]
    no_pods: bool,
    /// Services that others may reach, as namespace/hostname; those labelled istio.io/global=true, now and later, if absent.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = export)]
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
    /// Try no entry point and no name, neither from this machine nor from the nodes.
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
    let host = url.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("https"));
    if host.and_then(|uri| uri.host().map(|host| !host.is_empty())) == Some(true) {
        Ok((context.to_owned(), url.to_owned()))
    } else {
        Err("expected a URL such as https://192.0.2.1:6443".to_owned())
    }
}

/// A namespace (RFC 1123 label).
///
/// # Errors
/// How one is written.
pub fn namespace(text: &str) -> Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !text.is_empty() && text.len() <= 63 && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
    {
        Ok(text.to_owned())
    } else {
        Err("a namespace is written with at most 63 lower-case letters, digits and '-'".to_owned())
    }
}

/// As the gateway's model takes it.
fn export(text: &str) -> Result<String, String> {
    let host = |host: &str| {
        let fit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
        !host.is_empty() && host.bytes().all(fit)
    };
    let listed = text.split_once('/').is_some_and(|(space, name)| namespace(space).is_ok() && host(name));
    if listed || ["global", "*"].contains(&text) {
        Ok(text.to_owned())
    } else {
        Err("expected namespace/hostname, such as default/web.default.svc.cluster.local, global, or *".to_owned())
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
        Err(Ended::Usage(text) | Ended::Failed(text)) => {
            if form == Form::Json {
                println!("{}", serde_json::json!({"error": text}));
            }
            eprintln!("causeway: {text}");
            ExitCode::from(2)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_work_is_refused_before_a_cluster_is_asked() {
        for (text, fits) in
            [("istio-system", true), ("a", true), ("", false), ("Bad NS!", false), ("a/../b", false), ("-a", false)]
        {
            assert_eq!(namespace(text).is_ok(), fits, "{text:?}");
        }
        for (text, fits) in [
            ("global", true),
            ("*", true),
            ("shop/web.shop.svc.cluster.local", true),
            ("xyz", false),
            ("", false),
            ("a/b/c", false),
            ("/web", false),
            ("shop/", false),
        ] {
            assert_eq!(export(text).is_ok(), fits, "{text:?}");
        }
        for (text, fits) in [
            ("c1=https://192.0.2.1:6443", true),
            ("c1=https://api.example/x", true),
            ("c1=https://", false),
            ("c1=http://a", false),
            ("https://a", false),
        ] {
            assert_eq!(pair(text).is_ok(), fits, "{text:?}");
        }
    }
}
