//! A real control plane per cluster: etcd, kube-apiserver and istiod in the namespace of one of its nodes. There is no
//! kubelet: the kit writes nodes, pods and their status as a kubelet would.

mod api;
mod objects;
mod operator;
mod pki;

pub use api::Api;
pub use operator::{Operator, helm};

use crate::topology::{ClusterId, NodeId};
use crate::{Error, Place, Pod, Proc, Result, Topology, context, process};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long each of the three may take until it is ready.
const READY: Duration = Duration::from_secs(120);
/// Where istiod serves resources and certificates, with TLS.
const ISTIOD_PORT: u16 = 15012;
/// The name in istiod's certificate.
const ISTIOD_NAME: &str = "istiod.istio-system.svc";

/// Leaves a test early where the control plane was not built.
#[macro_export]
macro_rules! needs_control_plane {
    () => {
        $crate::needs_root!();
        if let Err(reason) = $crate::istiod::tools() {
            $crate::skip!("{reason}");
        }
    };
}

/// The folder with istiod, kube-apiserver and the kinds they need.
///
/// # Errors
/// If they were not built; the text says how.
pub fn tools() -> Result<PathBuf> {
    let here = std::env::current_exe().map_err(context("the path of the running program"))?;
    let folders = here.ancestors().map(|folder| folder.join("tools").join("control-plane"));
    let found = folders.into_iter().find(|folder| folder.join("istiod").is_file() && folder.join("kube").is_file());
    found.ok_or_else(|| Error::from("no control plane is built: cargo xtask setup --with control-plane"))
}

/// The control plane of one cluster; dropping it ends its processes, and the topology's guard would too.
#[derive(Debug)]
pub struct ControlPlane {
    api: Api,
    cluster: ClusterId,
    node: NodeId,
    place: Place,
    folder: PathBuf,
    authority: PathBuf,
    name: String,
    address: String,
    // In the order in which they have to end.
    istiod: Option<Proc>,
    controllers: Option<Proc>,
    apiserver: Option<Proc>,
    _etcd: Proc,
}

impl ControlPlane {
    /// Starts all three on `node`, the first node of `cluster`, and publishes the cluster's nodes, pods and services.
    ///
    /// # Errors
    /// The first step that failed, with the end of the program's log.
    pub fn start(topology: &Topology, cluster: ClusterId) -> Result<Self> {
        let tools = tools()?;
        topology.authorities()?;
        let node = topology.nodes_of(cluster).first().copied().ok_or("the cluster has no node")?;
        let (name, network) = topology.cluster_names(cluster);
        let address = topology.node_ip(node).to_string();
        let folder = topology.scratch().join(format!("control-plane-{name}"));
        std::fs::create_dir_all(&folder).map_err(context(folder.display()))?;
        let authority = folder.join("cacerts");
        copy_folder(&topology.authority(cluster), &authority)?;
        let place = topology.node_place(node).clone();
        let files = pki::create(&folder, name, &address)?;
        let data = folder.join("etcd");
        let etcd = place.spawn(&["etcd", "--data-dir", &text(&data), "--unsafe-no-fsync"])?;
        let apiserver = Some(start_apiserver(&place, &tools, &files, &address)?);
        let api = Api::new(place.clone(), &files, &folder, address.clone());
        let name = name.to_owned();
        let mut plane = Self {
            api,
            cluster,
            node,
            place,
            folder,
            authority,
            name,
            address,
            istiod: None,
            controllers: None,
            apiserver,
            _etcd: etcd,
        };
        plane.wait_api()?;
        for file in ["istio-crds.yaml", "gateway-crds.yaml"] {
            plane.kubectl(&tools, &["apply", "--server-side", "-f", &text(&tools.join(file))])?;
        }
        plane.api.apply_all(&objects::system(network, &plane.address))?;
        plane.start_istiod()?;
        plane.publish(topology)?;
        Ok(plane)
    }

    /// The API server.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The node it runs on.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The folder istiod reads its intermediate and roots from; it notices changes.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// What the nodes' daemons are given as their roots: the file a volume would show them.
    pub fn roots_file(&self) -> PathBuf {
        self.folder.join("root-cert.pem")
    }

    /// Writes nodes, namespaces, service accounts, pods and services of the cluster, pods with their status.
    ///
    /// # Errors
    /// What the API server said.
    pub fn publish(&self, topology: &Topology) -> Result<()> {
        for node in topology.nodes_of(self.cluster) {
            self.api.apply(&objects::node(topology.node_name(node)))?;
            for pod in topology.pods_on(node) {
                let (data, name) = (pod.data(), topology.node_name(node));
                let ip = data.ip4.to_string();
                self.write_pod(&data.name, &data.service_account, name, &ip, topology.is_enrolled(&pod))?;
            }
        }
        Ok(())
    }

    /// Writes a pod that runs on `node`, and its service account.
    ///
    /// # Errors
    /// What the API server said.
    pub fn publish_pod(&self, pod: &Pod, node: &str) -> Result<()> {
        let data = pod.data();
        self.run_pod(&data.name, &data.service_account, node, &data.ip4.to_string())
    }

    /// As [`ControlPlane::publish_pod`] for a pod that is not of the topology.
    ///
    /// # Errors
    /// What the API server said.
    pub fn run_pod(&self, name: &str, account: &str, node: &str, ip: &str) -> Result<()> {
        self.write_pod(name, account, node, ip, true)
    }

    fn write_pod(&self, name: &str, account: &str, node: &str, ip: &str, in_mesh: bool) -> Result<()> {
        let (namespace, name) = name.split_once('/').ok_or("a pod is namespace/name")?;
        self.api.apply_all(&objects::account(namespace, account))?;
        self.api.apply(&objects::pod(namespace, name, account, node, in_mesh))?;
        self.api.apply_status(&objects::pod_status(namespace, name, ip))
    }

    /// The keys of a node's model file that make its daemon use this control plane, with a token bound to a pod there.
    ///
    /// # Errors
    /// What the API server said.
    pub fn section(&self, topology: &Topology, node: NodeId, ttl: &str) -> Result<Value> {
        let name = topology.node_name(node);
        let pod = format!("ztunnel-{name}");
        self.run_pod(&format!("istio-system/{pod}"), "ztunnel", name, &topology.node_ip(node).to_string())?;
        let token = self.folder.join(format!("token-{name}"));
        std::fs::write(&token, self.api.token("istio-system", "ztunnel", &pod)?).map_err(context(token.display()))?;
        let roots = self.roots_file();
        std::fs::copy(self.authority.join("root-cert.pem"), &roots).map_err(context(roots.display()))?;
        let server = format!("https://{}:{ISTIOD_PORT}", self.address);
        Ok(json!({
            "identity": {"ttl": ttl},
            "controlPlane": {
                "caAddress": server,
                "serverName": ISTIOD_NAME,
                "rootCert": roots,
                "token": token,
                "clusterId": self.name,
            },
        }))
    }

    /// As [`ControlPlane::section`], and the mesh comes from here too.
    ///
    /// # Errors
    /// What the API server said.
    pub fn mesh_section(&self, topology: &Topology, node: NodeId, ttl: &str) -> Result<Value> {
        let mut section = self.section(topology, node, ttl)?;
        let plane = section.get_mut("controlPlane").and_then(Value::as_object_mut).ok_or("no controlPlane")?;
        let address = plane.get("caAddress").cloned().unwrap_or_default();
        plane.insert("address".to_owned(), address);
        Ok(section)
    }

    /// Writes a service of all clusters, (service port, application port), whose pods have this service account.
    ///
    /// # Errors
    /// What the API server said.
    pub fn global_service(&self, name: &str, ip: &str, ports: &[(u16, u16)], account: &str) -> Result<()> {
        let (namespace, name) = name.split_once('/').ok_or("a service is namespace/name")?;
        let service = objects::service(namespace, name, ip, ports, account);
        match self.api.apply(&service) {
            // A server that has just started may keep the address, fail to create the service, and trip over the address when
            // it tries again by itself.
            Err(error) if error.to_string().contains("already allocated") => {
                self.api.release_address(ip)?;
                self.api.apply(&service)
            }
            done => done,
        }
    }

    /// Lets this istiod read another cluster, and describes that cluster's entry point.
    ///
    /// # Errors
    /// What the API server said.
    pub fn link(&self, other: &ControlPlane, network: &str, gateway: &str) -> Result<()> {
        self.api.apply_all(&objects::account("istio-eastwest", "eastwest"))?;
        self.gateway_at(network, gateway)?;
        self.api.apply(&other.api.remote_secret(&other.name)?)
    }

    /// Says where the entry point of another network is.
    ///
    /// # Errors
    /// What the API server said.
    pub fn gateway_at(&self, network: &str, address: &str) -> Result<()> {
        self.api.apply(&objects::remote_gateway(network, address))
    }

    /// Starts istiod and waits until it is ready.
    ///
    /// # Errors
    /// If it is not, with the end of its log.
    pub fn start_istiod(&mut self) -> Result<()> {
        let program = text(&tools()?.join("istiod"));
        let kubeconfig = format!("--kubeconfig={}", text(&self.folder.join("kubeconfig")));
        let cluster = format!("--clusterID={}", self.name);
        let line = [program.as_str(), "discovery", &kubeconfig, &cluster, "--ctrlz_port=0", "--domain=cluster.local"];
        let mut command = self.place.command(&line)?;
        command.current_dir(&self.folder).env("ROOT_CA_DIR", &self.authority).env("CLUSTER_ID", &self.name);
        command.envs(objects::ISTIOD.iter().copied());
        self.istiod = Some(self.place.spawn_command(command, std::process::Stdio::null())?);
        let ready = ["curl", "--silent", "--fail", "--max-time", "2", "http://127.0.0.1:8080/ready"];
        let is_ready = process::until(READY, || {
            self.place.run(&ready).is_ok_and(|done| done.status.success())
                || !self.istiod.as_mut().is_some_and(Proc::is_running)
        });
        if is_ready.is_ok() && self.istiod.as_mut().is_some_and(Proc::is_running) {
            return Ok(());
        }
        Err(format!("istiod of {} is not ready:\n{}", self.name, self.istiod_log(30)).into())
    }

    /// Kills istiod.
    pub fn stop_istiod(&mut self) {
        self.istiod = None;
    }

    /// Kills the API server; etcd keeps what it knew.
    pub fn stop_api(&mut self) {
        self.apiserver = None;
    }

    /// Starts the API server again and waits until it is ready.
    ///
    /// # Errors
    /// If it is not.
    pub fn start_api(&mut self) -> Result<()> {
        let files = pki::Files::of(&self.folder);
        self.apiserver = Some(start_apiserver(&self.place, &tools()?, &files, &self.address)?);
        self.wait_api()
    }

    /// The last lines istiod logged.
    pub fn istiod_log(&self, lines: usize) -> String {
        let log = self.istiod.as_ref().map(|proc| proc.stderr() + &proc.stdout()).unwrap_or_default();
        tail(&log, lines)
    }

    fn wait_api(&mut self) -> Result<()> {
        let mut last = String::new();
        let ready = process::until(READY, || {
            match self.api.get("/readyz") {
                Ok(answer) => last = answer,
                Err(error) => last = error.to_string(),
            }
            last == "ok" || !self.apiserver.as_mut().is_some_and(Proc::is_running)
        });
        if ready.is_ok() && last == "ok" {
            return Ok(());
        }
        let log = self.apiserver.as_ref().map(Proc::stderr).unwrap_or_default();
        Err(format!("the API server of {} is not ready ({last}):\n{}", self.name, tail(&log, 30)).into())
    }

    fn kubectl(&self, tools: &Path, arguments: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", text(&self.folder.join("kubeconfig")));
        let program = text(&tools.join("kube"));
        self.place.run_ok(&[&[program.as_str(), "kubectl", &kubeconfig], arguments].concat())
    }
}

fn start_apiserver(place: &Place, tools: &Path, files: &pki::Files, address: &str) -> Result<Proc> {
    let line = objects::apiserver(files, address);
    let program = text(&tools.join("kube"));
    let mut arguments = vec![program.as_str(), "apiserver"];
    arguments.extend(line.iter().map(String::as_str));
    place.spawn(&arguments)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// Copies the files of a folder, each in one step, so that whoever watches sees whole files.
///
/// # Errors
/// The file system's.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(context(to.display()))?;
    for entry in std::fs::read_dir(from).map_err(context(from.display()))?.flatten() {
        let (path, fresh) = (to.join(entry.file_name()), to.join(".new"));
        std::fs::copy(entry.path(), &fresh).map_err(context(fresh.display()))?;
        std::fs::rename(&fresh, &path).map_err(context(path.display()))?;
    }
    Ok(())
}
