//! Istio's own node proxy, where its program is given: one for one pod, inside the pod's namespace, with the redirection
//! that it expects from outside.

use crate::control_plane::Scripted;
use crate::{Error, Place, Pod, Proc, Result, Topology, cgroup, context, process};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// The mark of its own sockets, which redirection has to leave alone.
const MARK: &str = "1337";

/// The program that `CAUSEWAY_TEST_ZTUNNEL` names, if it is there.
pub fn program() -> Option<PathBuf> {
    std::env::var_os("CAUSEWAY_TEST_ZTUNNEL").map(PathBuf::from).filter(|path| path.is_file())
}

/// A running proxy; dropping it stops it.
#[derive(Debug)]
pub struct Ztunnel {
    process: Proc,
    cgroup: PathBuf,
    _authority: Scripted,
}

impl Ztunnel {
    /// The cgroup it is alone in.
    pub fn cgroup(&self) -> &std::path::Path {
        &self.cgroup
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.process.stdout() + &self.process.stderr()
    }
}

/// Starts the proxy in a pod that was declared [`Topology::foreign`]; the topology has its authorities by then.
///
/// # Errors
/// With what it said.
pub fn start(topology: &Topology, pod: &Pod) -> Result<Ztunnel> {
    let program = program().ok_or_else(|| Error::from("CAUSEWAY_TEST_ZTUNNEL names no program"))?;
    let stem = pod.data().name.replace('/', "-");
    let folder = pod.scratch.join(format!("ztunnel-{stem}"));
    let authority = Scripted::start(&folder, Some(&pod.netns))?;
    let mut nodes = topology.nodes();
    let home = nodes.find(|node| topology.pods_on(*node).iter().any(|other| other.data().uid == pod.data().uid));
    let node = home.ok_or("the pod belongs to another topology")?;
    let mut model = topology.model(node)?;
    let section = model.as_object_mut().and_then(|model| model.remove("causeway")).unwrap_or_default();
    let signer = section.pointer("/identity/caDirectory").and_then(serde_json::Value::as_str);
    authority.sign_with(std::path::Path::new(signer.ok_or("the node has no authority of its own")?));
    let text = |key: &str| section.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let file = folder.join("mesh.yaml");
    let model = serde_yaml_ng::to_value(&model).map(with_port_numbers).map_err(context("the model as YAML"))?;
    let written = serde_yaml_ng::to_string(&model).map_err(context("the model as YAML"))?;
    std::fs::write(&file, written).map_err(context(file.display()))?;
    redirect(pod)?;
    let alone = pod.cgroup.join("ztunnel");
    cgroup::create(&alone)?;
    let place = Place { cgroup: alone.clone(), ..pod.place().clone() };
    let mut command = place.command(&[&program.to_string_lossy()])?;
    command
        .env_clear()
        .current_dir(&folder)
        .env("PROXY_MODE", "dedicated")
        .env("PROXY_WORKLOAD_INFO", format!("{}/{}", pod.data().name, pod.data().service_account))
        .env("PACKET_MARK", MARK)
        .env("ENABLE_ORIG_SRC", "false")
        .env("LOCAL_XDS_PATH", &file)
        .env("XDS_ADDRESS", "")
        .env("CA_ADDRESS", authority.url())
        .env("CA_ROOT_CA", authority.root_cert())
        .env("AUTH_TOKEN", authority.token())
        .env("NODE_NAME", text("node"))
        .env("NETWORK", text("network"))
        .env("CLUSTER_ID", text("cluster"))
        .env("INSTANCE_IP", pod.data().ip4.to_string())
        .env("ISTIO_META_DNS_CAPTURE", "false")
        .env("RUST_LOG", "info");
    let mut process = place.spawn_command(command, Stdio::null())?;
    let ready = process::until(Duration::from_secs(30), || {
        !process.is_running()
            || place.run_ok(&["curl", "--silent", "--fail", "http://127.0.0.1:15021/healthz/ready"]).is_ok()
    });
    let proxy = Ztunnel { process, cgroup: alone, _authority: authority };
    match ready {
        Ok(()) if place.run_ok(&["curl", "--silent", "--fail", "http://127.0.0.1:15021/healthz/ready"]).is_ok() => {
            Ok(proxy)
        }
        _ => Err(format!("ztunnel in {} did not become ready:\n{}", pod.data().name, proxy.log()).into()),
    }
}

/// Its reader wants ports as numbers also where they are keys, which JSON cannot say.
fn with_port_numbers(value: serde_yaml_ng::Value) -> serde_yaml_ng::Value {
    use serde_yaml_ng::Value;
    match value {
        Value::Mapping(fields) => Value::Mapping(
            fields
                .into_iter()
                .map(|(key, value)| {
                    let port = key.as_str().and_then(|text| text.parse::<u16>().ok());
                    (port.map_or(key, Value::from), with_port_numbers(value))
                })
                .collect(),
        ),
        Value::Sequence(items) => Value::Sequence(items.into_iter().map(with_port_numbers).collect()),
        other => other,
    }
}

/// What Istio's node agent does for it: TCP that leaves goes to 15001, TCP that comes in the clear to 15006.
fn redirect(pod: &Pod) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        let own = ["-m", "mark", "!", "--mark", MARK];
        let out = [&[program, "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "!", "-o", "lo"], &own[..]].concat();
        pod.run_ok(&[&out[..], &["-j", "REDIRECT", "--to-ports", "15001"]].concat())?;
        let into = [program, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "!", "--dport", "15008"];
        pod.run_ok(&[&into[..], &["-j", "REDIRECT", "--to-ports", "15006"]].concat())?;
    }
    Ok(())
}
