//! What the objects of a cluster mean: names, networks, entry points, peers, shared services.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use serde_json::Value;

use super::names;
use super::objects::{annotation, full_name, label, list, number, text};

/// The kinds of objects that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// All namespaces.
    Namespace,
    /// All nodes.
    Node,
    /// All pods.
    Pod,
    /// All services.
    Service,
    /// Those of the control plane's namespace.
    ConfigMap,
    /// Those of the control plane's namespace.
    Secret,
    /// All deployments.
    Deployment,
    /// All node agents.
    DaemonSet,
    /// All gateways and waypoints.
    Gateway,
    /// All workloads outside of Kubernetes.
    WorkloadEntry,
}

/// A cluster as its API server showed it.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// The context of the kubeconfig that leads there.
    pub context: String,
    /// The API server's address.
    pub server: String,
    /// The control plane's namespace.
    pub istio_namespace: String,
    /// The gateway's namespace.
    pub gateway_namespace: String,
    /// What was read.
    pub objects: BTreeMap<Kind, Vec<Value>>,
    /// What could not be read, and why.
    pub unread: BTreeMap<Kind, Unread>,
    /// What the agents of the nodes say; empty where nobody asked.
    pub reports: Vec<NodeReport>,
}

/// What a node's agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Name of the node.
    pub node: String,
    /// The agent's pod, as `namespace/name`.
    pub pod: String,
    /// Its status, or why it did not say.
    pub said: Result<Value, String>,
    /// What its pods can reach of other networks, tried just now, or why it did not say; nothing where it was not asked.
    pub reached: Result<Value, String>,
}

/// Why a kind could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The cluster does not know the kind.
    NoSuchKind,
    /// Whoever asked may not.
    Forbidden(String),
}

/// istiod, as its deployment describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Istiod {
    /// Name of the deployment.
    pub name: String,
    /// Its settings.
    pub settings: BTreeMap<String, String>,
}

/// The agent of the nodes, as its DaemonSet describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// `namespace/name`.
    pub name: String,
    /// Its settings.
    pub settings: BTreeMap<String, String>,
    /// Its image.
    pub image: String,
    /// Nodes that should have one, and those whose is ready.
    pub pods: (u64, u64),
}

/// A gateway of either class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// `namespace/name`.
    pub name: String,
    /// The network it leads to.
    pub network: String,
    /// The cluster it leads to, where it says so.
    pub cluster: String,
    /// The service account it has to prove.
    pub account: String,
    /// The trust domain it belongs to, where it says so.
    pub trust_domain: String,
    /// Port of the HBONE listener.
    pub port: u16,
    /// Addresses in its specification.
    pub wanted: Vec<String>,
    /// Addresses in its status: those that istiod publishes.
    pub addresses: Vec<String>,
    /// What its status says of `Programmed`: the status, and the message.
    pub programmed: Option<(bool, String)>,
    /// Made by `link`, and removed by `unlink`.
    pub ours: bool,
}

/// The service in front of our entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `namespace/name`.
    pub name: String,
    /// The label.
    pub network: String,
    /// `LoadBalancer` or `NodePort`.
    pub kind: String,
    /// The port of every node that leads to port 15008.
    pub node_port: Option<u16>,
    /// What the load balancer was given.
    pub addresses: Vec<String>,
    /// Which pods are behind it.
    pub selector: BTreeMap<String, String>,
}

/// The right and the way to read another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSecret {
    /// Name of the secret.
    pub name: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Address of its API server.
    pub server: String,
}

/// A service that clusters share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// `namespace/name`.
    pub name: String,
    /// Labelled as shared.
    pub global: bool,
    /// Ports as `number/protocol`.
    pub ports: BTreeSet<String>,
    /// The waypoint in front of it, as `namespace/name`.
    pub waypoint: Option<String>,
    /// Without an address of its own.
    pub headless: bool,
}

impl Cluster {
    /// The objects of a kind.
    pub fn of(&self, kind: Kind) -> &[Value] {
        self.objects.get(&kind).map(Vec::as_slice).unwrap_or_default()
    }

    /// The command that gets pods of the gateway ready, or says why they are not.
    pub fn start_gateways(&self) -> String {
        let (space, name) = (&self.gateway_namespace, names::GATEWAY);
        let deployment = self.named(Kind::Deployment, space, name);
        let command = format!("kubectl --context {} -n {space}", self.context);
        if deployment.is_some_and(|object| number(object, "/spec/replicas") == 0) {
            return format!("{command} scale deployment {name} --replicas=2");
        }
        format!("{command} rollout status deployment {name} --timeout=60s")
    }

    /// The command that links `from` to this cluster, by the way in that this one has.
    pub fn link_from(&self, from: &Self) -> String {
        let by_node_port = self.entries().iter().any(|entry| entry.kind == "NodePort");
        let way = if by_node_port { " --node-port" } else { "" };
        format!("causeway multicluster link --from {} --to {}{way}", from.context, self.context)
    }

    /// The object of this name.
    pub fn named(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Value> {
        let same = |object: &&Value| {
            text(object, "/metadata/name") == name && text(object, "/metadata/namespace") == namespace
        };
        self.of(kind).iter().find(same)
    }

    /// What tells one cluster from all others, whatever leads there.
    pub fn uid(&self) -> &str {
        self.named(Kind::Namespace, "", "kube-system").map(|space| text(space, "/metadata/uid")).unwrap_or_default()
    }

    /// The network, as the control plane's namespace names it.
    pub fn network(&self) -> &str {
        let space = self.named(Kind::Namespace, "", &self.istio_namespace);
        space.map(|space| label(space, names::NETWORK)).unwrap_or_default()
    }

    /// istiod, if there is one.
    pub fn istiod(&self) -> Option<Istiod> {
        let found = self.of(Kind::Deployment).iter().find(|object| self.is_istiod(object))?;
        Some(Istiod { name: text(found, "/metadata/name").to_owned(), settings: settings(found) })
    }

    fn is_istiod(&self, deployment: &Value) -> bool {
        text(deployment, "/metadata/namespace") == self.istio_namespace
            && (label(deployment, "app") == "istiod" || label(deployment, "istio") == "pilot")
    }

    /// The cluster's name, as istiod knows it.
    pub fn name(&self) -> Option<String> {
        let settings = self.istiod()?.settings;
        Some(settings.get("CLUSTER_ID").cloned().unwrap_or_else(|| "Kubernetes".to_owned()))
    }

    /// What other people call it: its name, else its context.
    pub fn label(&self) -> String {
        self.name().unwrap_or_else(|| self.context.clone())
    }

    /// The command that gives istiod another value, and neither a newer version nor fewer defaults with it.
    pub fn istiod_upgrade(&self, set: &str) -> String {
        let chart = self.of(Kind::Deployment).iter().filter(|object| self.is_istiod(object));
        let chart = chart.map(|object| label(object, "helm.sh/chart")).next().unwrap_or_default();
        let version = chart.strip_prefix("istiod-").map(|version| format!(" --version {version}")).unwrap_or_default();
        format!(
            "helm upgrade istiod istio/istiod{version} --kube-context {} -n {} --reset-then-reuse-values --set {set}",
            self.context, self.istio_namespace
        )
    }

    /// Why the mesh's configuration cannot be read, if that is so.
    pub fn mesh_error(&self) -> Option<String> {
        let map = self.named(Kind::ConfigMap, &self.istio_namespace, "istio")?;
        serde_yaml_ng::from_str::<Value>(text(map, "/data/mesh")).err().map(|error| error.to_string())
    }

    /// The mesh's configuration.
    pub fn mesh(&self) -> Option<Value> {
        let map = self.named(Kind::ConfigMap, &self.istio_namespace, "istio")?;
        serde_yaml_ng::from_str(text(map, "/data/mesh")).ok()
    }

    /// The trust domain, as istiod believes.
    pub fn trust_domain(&self) -> String {
        let told = self.mesh().map(|mesh| text(&mesh, "/trustDomain").to_owned()).unwrap_or_default();
        if told.is_empty() { "cluster.local".to_owned() } else { told }
    }

    /// The agents of the nodes, ours or the reference's.
    pub fn agents(&self) -> Vec<Agent> {
        let is_agent = |object: &&Value| {
            ["app", "app.kubernetes.io/name"].iter().any(|key| ["causeway", "ztunnel"].contains(&label(object, key)))
        };
        let agents = self.of(Kind::DaemonSet).iter().filter(is_agent);
        agents
            .map(|object| Agent {
                name: full_name(object),
                settings: settings(object),
                image: text(object, "/spec/template/spec/containers/0/image").to_owned(),
                pods: (number(object, "/status/desiredNumberScheduled"), number(object, "/status/numberReady")),
            })
            .collect()
    }

    /// Ready pods of our node agents, as `namespace/name`, with their nodes.
    pub fn agent_pods(&self) -> Vec<(String, String)> {
        let ours = |pod: &&Value| {
            let ready = list(pod, "/status/conditions").any(|one| one["type"] == "Ready" && one["status"] == "True");
            let owned = list(pod, "/metadata/ownerReferences").any(|owner| owner["kind"] == "DaemonSet");
            ready && owned && ["app", "app.kubernetes.io/name"].iter().any(|key| label(pod, key) == "causeway")
        };
        let pods = self.of(Kind::Pod).iter().filter(ours);
        pods.map(|pod| (full_name(pod), text(pod, "/spec/nodeName").to_owned())).collect()
    }

    /// The gateways of a class.
    pub fn gateways(&self, class: &str) -> Vec<Gateway> {
        let of_class = |object: &&Value| text(object, "/spec/gatewayClassName") == class;
        self.of(Kind::Gateway).iter().filter(of_class).map(gateway).collect()
    }

    /// The services in front of our entry point.
    pub fn entries(&self) -> Vec<Entry> {
        let is_entry = |object: &&Value| {
            text(object, "/metadata/namespace") == self.gateway_namespace
                && list(object, "/spec/ports").any(|port| number(port, "/port") == u64::from(names::HBONE_PORT))
        };
        self.of(Kind::Service).iter().filter(is_entry).map(entry).collect()
    }

    /// Pods that an entry leads to: those that are ready, and how many there are.
    pub fn behind(&self, entry: &Entry) -> (Vec<&Value>, usize) {
        let selected = |pod: &&Value| {
            let namespace = entry.name.split('/').next().unwrap_or_default();
            text(pod, "/metadata/namespace") == namespace
                && !entry.selector.is_empty()
                && entry.selector.iter().all(|(key, value)| label(pod, key) == value)
        };
        let pods: Vec<&Value> = self.of(Kind::Pod).iter().filter(selected).collect();
        let count = pods.len();
        (pods.into_iter().filter(|pod| is_ready(pod)).collect(), count)
    }

    /// Addresses of the nodes on which a ready pod of the entry runs, of one type (`InternalIP`, `ExternalIP`), IPv4 first.
    pub fn node_addresses(&self, entry: &Entry, kind: &str) -> Vec<String> {
        let (ready, _) = self.behind(entry);
        let nodes: BTreeSet<&str> = ready.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
        let here = self.of(Kind::Node).iter().filter(|node| nodes.contains(text(node, "/metadata/name")));
        let addresses = here.filter_map(|node| {
            let of_kind = list(node, "/status/addresses").filter(|address| text(address, "/type") == kind);
            let of_kind: Vec<&str> = of_kind.map(|address| text(address, "/address")).collect();
            of_kind.iter().find(|address| !address.contains(':')).or(of_kind.first()).map(|found| (*found).to_owned())
        });
        let addresses: BTreeSet<String> = addresses.collect();
        addresses.into_iter().collect()
    }

    /// The clusters that istiod reads.
    pub fn remote_secrets(&self) -> Vec<RemoteSecret> {
        let remote = |object: &&Value| label(object, names::REMOTE_SECRET) == "true";
        let secrets = self.of(Kind::Secret).iter().filter(remote);
        secrets
            .flat_map(|secret| {
                let data = secret.pointer("/data").and_then(Value::as_object).into_iter().flatten();
                data.map(|(cluster, config)| RemoteSecret {
                    name: text(secret, "/metadata/name").to_owned(),
                    cluster: cluster.clone(),
                    server: server(config).unwrap_or_default(),
                })
            })
            .collect()
    }

    /// All services with what clusters have to agree on.
    pub fn services(&self) -> Vec<Shared> {
        let system = ["kube-system", self.istio_namespace.as_str(), self.gateway_namespace.as_str()];
        let services =
            self.of(Kind::Service).iter().filter(|service| !system.contains(&text(service, "/metadata/namespace")));
        services
            .map(|service| {
                let ports = list(service, "/spec/ports");
                let protocol = |port: &Value| match text(port, "/protocol") {
                    "" => "TCP".to_owned(),
                    named => named.to_owned(),
                };
                Shared {
                    name: full_name(service),
                    global: label(service, names::GLOBAL) == "true",
                    ports: ports.map(|port| format!("{}/{}", number(port, "/port"), protocol(port))).collect(),
                    waypoint: self.waypoint_of(service),
                    headless: text(service, "/spec/clusterIP") == "None",
                }
            })
            .collect()
    }

    fn waypoint_of(&self, service: &Value) -> Option<String> {
        let namespace = text(service, "/metadata/namespace");
        let space = self.named(Kind::Namespace, "", namespace);
        let named =
            [Some(service), space].into_iter().flatten().find(|object| !label(object, names::WAYPOINT).is_empty())?;
        let name = label(named, names::WAYPOINT);
        let key = format!("{}-namespace", names::WAYPOINT);
        let place = match label(named, &key) {
            "" => namespace,
            told => told,
        };
        (name != "none").then(|| format!("{place}/{name}"))
    }
}

fn gateway(object: &Value) -> Gateway {
    let listener = list(object, "/spec/listeners").find(|listener| text(listener, "/protocol") == "HBONE");
    let values = |pointer| list(object, pointer).map(|address| text(address, "/value").to_owned()).collect();
    let condition = list(object, "/status/conditions").find(|condition| text(condition, "/type") == "Programmed");
    let class = text(object, "/spec/gatewayClassName");
    let name = text(object, "/metadata/name");
    let account = match annotation(object, names::ACCOUNT) {
        "" if class == names::REMOTE => format!("{name}-{class}"),
        "" => name.to_owned(),
        told => told.to_owned(),
    };
    let (key, value) = names::MANAGED_BY;
    Gateway {
        name: full_name(object),
        network: label(object, names::NETWORK).to_owned(),
        cluster: label(object, names::CLUSTER).to_owned(),
        account,
        trust_domain: annotation(object, names::TRUST_DOMAIN).to_owned(),
        port: listener.and_then(|listener| u16::try_from(number(listener, "/port")).ok()).unwrap_or_default(),
        wanted: values("/spec/addresses"),
        addresses: values("/status/addresses"),
        programmed: condition.map(|found| (text(found, "/status") == "True", text(found, "/message").to_owned())),
        ours: label(object, key) == value,
    }
}

fn entry(object: &Value) -> Entry {
    let port = list(object, "/spec/ports").find(|port| number(port, "/port") == u64::from(names::HBONE_PORT));
    let node_port = port.and_then(|port| u16::try_from(number(port, "/nodePort")).ok()).filter(|port| *port != 0);
    let ingress = list(object, "/status/loadBalancer/ingress");
    let addresses = ingress.flat_map(|address| ["/ip", "/hostname"].map(|key| text(address, key).to_owned()));
    let selector = object.pointer("/spec/selector").and_then(Value::as_object).into_iter().flatten();
    Entry {
        name: full_name(object),
        network: label(object, names::NETWORK).to_owned(),
        kind: text(object, "/spec/type").to_owned(),
        node_port,
        addresses: addresses.filter(|address| !address.is_empty()).collect(),
        selector: selector.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
    }
}

/// The API server that a kubeconfig in base 64 leads to.
fn server(config: &Value) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(config.as_str()?).ok()?;
    let config: Value = serde_yaml_ng::from_slice(&bytes).ok()?;
    Some(text(&config, "/clusters/0/cluster/server").to_owned())
}

/// What the containers of a deployment or DaemonSet are told by their environment.
fn settings(object: &Value) -> BTreeMap<String, String> {
    let containers = list(object, "/spec/template/spec/containers");
    let all = containers.flat_map(|container| list(container, "/env"));
    all.map(|env| (text(env, "/name").to_owned(), text(env, "/value").to_owned()))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// Whether a pod says that it is ready, and is not going.
pub(super) fn is_ready(pod: &Value) -> bool {
    let ready = |condition: &Value| text(condition, "/type") == "Ready" && text(condition, "/status") == "True";
    pod.pointer("/metadata/deletionTimestamp").is_none() && list(pod, "/status/conditions").any(ready)
}
