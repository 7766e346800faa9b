//! What a person with a kubeconfig sees and does: the cluster described as an installation would, and commands over contexts.

use super::pki::base64;
use super::{ControlPlane, objects, pki, text, tools};
use crate::process::{Finished, own_program};
use crate::{Error, Place, Result, Topology, context, process};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Somebody at a terminal, with kubectl, helm and causeway, and a context for each cluster.
#[derive(Debug)]
pub struct Operator {
    place: Place,
    kubeconfigs: String,
    programs: PathBuf,
}

impl Operator {
    /// With contexts for these, on the first one's node.
    ///
    /// # Errors
    /// The programs cannot be put where they are found.
    pub fn of(planes: &[ControlPlane]) -> Result<Self> {
        let first = planes.first().ok_or("no control plane")?;
        let programs = first.folder.join("programs");
        std::fs::create_dir_all(&programs).map_err(context(programs.display()))?;
        let kube = text(&tools()?.join("kube"));
        let script = programs.join("kubectl");
        std::fs::write(&script, format!("#!/bin/sh\nexec {kube} kubectl \"$@\"\n"))
            .map_err(context(script.display()))?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).map_err(context(script.display()))?;
        let mut links = vec![("causeway", own_program("causeway")?)];
        links.extend(helm().ok().map(|path| ("helm", path)));
        for (name, target) in links {
            let link = programs.join(name);
            std::os::unix::fs::symlink(target, &link).map_err(context(link.display()))?;
        }
        let configs: Vec<String> = planes.iter().map(|plane| text(&plane.kubeconfig())).collect();
        Ok(Self { place: first.place.clone(), kubeconfigs: configs.join(":"), programs })
    }

    /// Runs a line of shell to its end.
    ///
    /// # Errors
    /// If it cannot be started, or takes longer than two minutes.
    pub fn run(&self, line: &str) -> Result<Finished> {
        let mut command = self.place.command(&["sh", "-c", line])?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", text(&self.programs))).env("KUBECONFIG", &self.kubeconfigs);
        for name in ["HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, &self.programs);
        }
        self.place.spawn_command(command, std::process::Stdio::null())?.wait(Duration::from_secs(120))
    }

    /// As [`Operator::run`], and what it printed; it must succeed.
    ///
    /// # Errors
    /// What it said.
    pub fn run_ok(&self, line: &str) -> Result<String> {
        let done = self.run(line)?;
        if done.status.success() {
            return Ok(done.stdout);
        }
        Err(format!("{line}: {}\n{}{}", done.status, done.stdout, done.stderr).into())
    }
}

/// Helm, where clusters were built.
///
/// # Errors
/// It was not.
pub fn helm() -> Result<PathBuf> {
    let tools = tools()?;
    let helm = tools.parent().unwrap_or(Path::new("/")).join("cluster").join("helm");
    if helm.is_file() { Ok(helm) } else { Err(Error::from("no helm is built: cargo xtask setup --with kubernetes")) }
}

impl ControlPlane {
    /// The administrator's kubeconfig; its context has the name of the cluster.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// Starts those controllers of Kubernetes that make tokens of accounts and endpoints of services.
    ///
    /// # Errors
    /// If they do not start.
    pub fn start_controllers(&mut self) -> Result<()> {
        let files = pki::Files::of(&self.folder);
        let program = text(&tools()?.join("kube"));
        let line = [
            program,
            "controllers".to_owned(),
            format!("--kubeconfig={}", text(&self.kubeconfig())),
            format!("--service-account-private-key-file={}", text(&files.folder.join("sa.key"))),
            format!("--root-ca-file={}", text(&files.ca())),
            "--controllers=serviceaccount-token-controller,endpointslice-controller".to_owned(),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--cert-dir={}", text(&files.folder)),
        ];
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        self.controllers = Some(self.place.spawn(&line)?);
        Ok(())
    }

    /// What the controllers logged.
    pub fn controllers_log(&self) -> String {
        self.controllers.as_ref().map(|proc| proc.stderr() + &proc.stdout()).unwrap_or_default()
    }

    /// Writes what an installation would have: istiod's deployment, its authority, the node agents, addresses of nodes.
    ///
    /// # Errors
    /// What the API server said.
    pub fn describe(&self, topology: &Topology) -> Result<()> {
        let network = topology.cluster_names(self.cluster).1;
        let mut settings: Vec<(&str, &str)> = objects::ISTIOD.to_vec();
        settings.push(("CLUSTER_ID", &self.name));
        let istiod = workload("Deployment", "istiod", &settings);
        let agent = workload(
            "DaemonSet",
            "causeway",
            &[("NETWORK", network), ("CLUSTER_ID", &self.name), ("ISTIO_META_DNS_CAPTURE", "true")],
        );
        for (object, status) in [
            (istiod, json!({"replicas": 1, "readyReplicas": 1, "availableReplicas": 1})),
            (
                agent,
                json!({"currentNumberScheduled": 1, "desiredNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 1}),
            ),
        ] {
            self.api.apply(&object)?;
            self.api.apply_status(&json!({"apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": object["metadata"]["name"], "namespace": "istio-system"}, "status": status}))?;
        }
        let mut data = serde_json::Map::new();
        for file in ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"] {
            let path = self.authority.join(file);
            let bytes = std::fs::read(&path).map_err(context(path.display()))?;
            data.insert(file.to_owned(), json!(base64(&bytes)));
        }
        self.api.apply(&json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "cacerts", "namespace": "istio-system"}, "data": data}))?;
        for node in topology.nodes_of(self.cluster) {
            let (name, ip) = (topology.node_name(node), topology.node_ip(node).to_string());
            self.api.apply_status(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": ip}]}}))?;
        }
        Ok(())
    }

    /// Gives a service of type LoadBalancer its address, as a cloud would.
    ///
    /// # Errors
    /// What the API server said.
    pub fn balance(&self, namespace: &str, name: &str, address: &str) -> Result<()> {
        self.api.apply_status(&json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "status": {"loadBalancer": {"ingress": [{"ip": address}]}}}))
    }

    /// Everything istiod publishes of workloads and services, as its debug port shows it.
    ///
    /// # Errors
    /// It does not answer.
    pub fn published(&self) -> Result<String> {
        let url = "http://127.0.0.1:8080/debug/ambientz";
        self.place.run_ok(&["curl", "--silent", "--fail", "--max-time", "5", url])
    }

    /// Waits until what istiod publishes is as wanted.
    ///
    /// # Errors
    /// What it published last.
    pub fn until_published(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let mut last = String::new();
        let done = process::until(Duration::from_secs(40), || {
            self.published().map(|text| last = text).is_ok() && wanted(&last)
        });
        done.map_err(|_| Error(format!("{} publishes: {last}\n{}", self.name, self.istiod_log(20))))
    }
}

fn workload(kind: &str, name: &str, settings: &[(&str, &str)]) -> Value {
    let env: Vec<Value> = settings
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    json!({"apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "istio-system", "labels": {"app": name}},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": name, "image": format!("none.invalid/{name}:1"), "env": env}]}}}})
}
