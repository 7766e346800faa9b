//! Two clusters with Causeway that are linked, and an application in both.

use super::Clusters;
use super::deployed::{Deployed, MESH, SHOP};
use crate::{Error, Place, Result, cgroup, context, process};
use std::collections::BTreeMap;
use std::time::Duration;

/// The namespace of the gateways.
pub const GATEWAYS: &str = "istio-eastwest";
/// What makes the entry points.
pub const EXPOSE: &str =
    "causeway multicluster expose --contexts cluster1,cluster2 --node-port --image causeway.test/causeway:1";
/// What links the clusters, both ways.
pub const LINK: &str = "causeway multicluster link --contexts cluster1,cluster2 --node-port";
/// What takes the links away.
const UNLINK: &str = "causeway multicluster unlink --contexts cluster1,cluster2";
/// What looks for everything that is wrong.
pub const CHECK: &str = "causeway multicluster check --contexts cluster1,cluster2";
/// A client of the application.
pub const CLIENT: &str = "shop/client";
/// Somebody else.
pub const STRANGER: &str = "shop/stranger";
/// The service that both clusters have.
pub const WEB: &str = "http://web.shop.svc.cluster.local/";
/// The database of the second cluster's pod `db-1`, for a client that speaks PostgreSQL.
pub const POSTGRESQL: &str = "host=db-1.db.shop.svc.cluster.local user=postgres connect_timeout=5";
/// The port of every node behind which the service `front` is, for clients outside.
pub const FRONT: u16 = 30090;
/// The policy by which `source`, written as YAML, alone may call the pods of `db`.
#[must_use]
pub fn db_policy(source: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: db, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: db}}}}
  action: ALLOW
  rules: [{{from: [{{source: {source}}}]}}]
"
    )
}

/// The client's identity as a source of a policy.
pub const CLIENT_IDENTITY: &str = "{principals: [cluster.local/ns/shop/sa/client]}";
/// How long it may take until what was configured is in force everywhere.
const PATIENCE: Duration = Duration::from_secs(120);

/// A pair of linked clusters; dropping it takes away what was put into them.
#[derive(Debug)]
pub struct Linked<'a> {
    clusters: &'a Clusters,
    /// The agents.
    pub deployed: [Deployed<'a>; 2],
    gone: bool,
}

impl<'a> Linked<'a> {
    /// Installs, exposes and links both clusters, with the application, and waits until it answers from both sides.
    ///
    /// # Errors
    /// What failed.
    pub fn make(clusters: &'a Clusters) -> Result<Self> {
        let linked = Self::install(clusters)?;
        linked.expose()?;
        clusters.shell(LINK)?;
        linked.application()?;
        linked.settle()?;
        Ok(linked)
    }

    /// Both clusters with agents and nothing else.
    ///
    /// # Errors
    /// What Helm said.
    pub fn install(clusters: &'a Clusters) -> Result<Self> {
        let values = ["nodePort.podRanges={10.244.0.0/16}"];
        let install = |number| Deployed::install_with(clusters, number, &values);
        let deployed = [install(1)?, install(2)?];
        Ok(Self { clusters, deployed, gone: false })
    }

    /// Makes both entry points and waits until their pods are ready.
    ///
    /// # Errors
    /// What the command said, or what the gateways write.
    pub fn expose(&self) -> Result<String> {
        let said = self.clusters.shell(EXPOSE)?;
        for number in [1, 2] {
            let words = ["-n", GATEWAYS, "rollout", "status", "deployment/causeway-gateway", "--timeout=120s"];
            self.clusters.kubectl(number, &words).map_err(|error| {
                let pods = self.clusters.kubectl(number, &["-n", GATEWAYS, "describe", "pods"]).unwrap_or_default();
                Error(format!("{error}\n{pods}\n{}", self.gateway_logs(number).unwrap_or_default()))
            })?;
        }
        Ok(said)
    }

    /// Puts the application into both and waits until its pods are redirected.
    ///
    /// # Errors
    /// What does not get ready.
    pub fn application(&self) -> Result<()> {
        for number in [1, 2] {
            let (cluster, node) = (format!("cluster{number}"), format!("c{number}n1"));
            let pods = if number == 2 { "2" } else { "0" };
            let text = include_str!("linked.yaml");
            let text = text.replace("@CLUSTER@", &cluster).replace("@NODE@", &node).replace("@PODS@", pods);
            self.clusters.apply(number, &text)?;
        }
        for number in [1, 2] {
            for object in ["daemonset/web", "statefulset/db"] {
                self.clusters.kubectl(number, &["-n", SHOP, "rollout", "status", object, "--timeout=120s"])?;
            }
            self.clusters.wait_ready(number, SHOP)?;
        }
        self.deployed.iter().try_for_each(|deployed| deployed.label(true))
    }

    /// Waits until the service is answered by both clusters, for a client in either.
    ///
    /// # Errors
    /// What was answered instead, and the ends of all logs.
    pub fn settle(&self) -> Result<()> {
        for number in [1, 2] {
            let mut last = BTreeMap::new();
            let done = process::until(PATIENCE, || {
                last = self.answers(number, CLIENT, WEB, 8).unwrap_or_default();
                clusters_in(&last) == ["cluster1", "cluster2"] && !last.contains_key("")
            });
            done.map_err(|error| {
                Error(format!("cluster{number}: {error}; the last answers: {last:?}\n{}", self.log_tails()))
            })?;
        }
        Ok(())
    }

    /// Calls a URL from a pod so many times, one connection each: how often each pod answered, as `cluster/pod`; what failed
    /// counts under the empty name.
    ///
    /// # Errors
    /// If kubectl fails.
    pub fn answers(&self, number: u8, pod: &str, url: &str, calls: usize) -> Result<BTreeMap<String, usize>> {
        let line =
            format!("for n in $(seq {calls}); do curl --silent --fail --max-time 5 {url} || echo failed $?; done");
        let text = self.clusters.in_pod(number, pod, &["sh", "-c", &line])?;
        let mut answers = BTreeMap::new();
        for line in text.lines() {
            *answers.entry(who(line).unwrap_or_default()).or_insert(0) += 1;
        }
        Ok(answers)
    }

    /// What the database of the second cluster answers to a pod of a cluster.
    ///
    /// # Errors
    /// What `psql` said.
    pub fn sql(&self, number: u8, pod: &str, statement: &str) -> Result<String> {
        let words =
            ["psql", POSTGRESQL, "--no-align", "--tuples-only", "--quiet", "-v", "ON_ERROR_STOP=1", "-c", statement];
        self.clusters.in_pod(number, pod, &words).map(|text| text.trim().to_owned())
    }

    /// What the gateways of a cluster wrote.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn gateway_logs(&self, number: u8) -> Result<String> {
        self.clusters.kubectl(number, &["-n", GATEWAYS, "logs", "-l", "app=causeway-gateway", "--tail=-1", "--prefix"])
    }

    /// The gateway's pod of each node of a cluster, by node.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn gateways(&self, number: u8) -> Result<BTreeMap<String, String>> {
        let path = "{range .items[*]}{.spec.nodeName} {.metadata.name}{\"\\n\"}{end}";
        let words = ["-n", GATEWAYS, "get", "pods", "-o", &format!("jsonpath={path}")];
        let text = self.clusters.kubectl(number, &words)?;
        Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
    }

    /// The port of the nodes that leads to a cluster's gateways.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn node_port(&self, number: u8) -> Result<u16> {
        let path = "{.spec.ports[?(@.port==15008)].nodePort}";
        let text = self.clusters.field(number, GATEWAYS, "service/causeway-gateway", path)?;
        text.parse().map_err(context(format!("node port {text:?}")))
    }

    /// The last lines of all agents and gateways.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for number in [1, 2] {
            for (space, app) in [(MESH, "app=causeway"), (GATEWAYS, "app=causeway-gateway")] {
                let words = ["-n", space, "logs", "-l", app, "--tail=15", "--prefix", "--max-log-requests=9"];
                text += &self.clusters.kubectl(number, &words).unwrap_or_default();
            }
        }
        text
    }

    /// Takes everything away, as a person would.
    ///
    /// # Errors
    /// What is left.
    pub fn remove(&mut self) -> Result<()> {
        self.gone = true;
        self.take_away()
    }

    fn take_away(&self) -> Result<()> {
        self.clusters.shell(UNLINK)?;
        for number in [1, 2] {
            self.clusters.delete_namespace(number, GATEWAYS)?;
            let name = format!("causeway-gateway-{GATEWAYS}");
            let words = ["delete", "--ignore-not-found", "clusterrole,clusterrolebinding", &name];
            self.clusters.kubectl(number, &words)?;
        }
        Ok(())
    }
}

impl Drop for Linked<'_> {
    fn drop(&mut self) {
        if !self.gone
            && let Err(error) = self.take_away()
            && !std::thread::panicking()
        {
            panic!("what links the clusters cannot be taken away: {error}");
        }
    }
}

/// Where nodes of all clusters meet, as a place for programs. Its folder for files goes with it.
#[derive(Debug)]
pub struct Outside(Place);

impl Outside {
    /// The place.
    ///
    /// # Errors
    /// If its folder cannot be made.
    pub fn of(clusters: &Clusters) -> Result<Self> {
        let scratch = std::env::temp_dir().join(format!("causeway-outside-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).map_err(context(scratch.display()))?;
        Ok(Self(Place { netns: format!("{}-wan", clusters.tag()?), cgroup: cgroup::root()?, scratch }))
    }

    /// The place.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.0
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0.scratch);
    }
}

/// A node whose cable is pulled; it is put back in when this is dropped.
#[derive(Debug)]
pub struct Cut<'a> {
    clusters: &'a Clusters,
    link: String,
}

impl<'a> Cut<'a> {
    /// Pulls it.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn off(clusters: &'a Clusters, node: &str) -> Result<Self> {
        let link = format!("{}-{node}", clusters.tag()?);
        clusters.exec("wan", &["ip", "link", "set", &link, "down"])?;
        Ok(Self { clusters, link })
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        let back = self.clusters.exec("wan", &["ip", "link", "set", &self.link, "up"]);
        if let (Err(error), false) = (back, std::thread::panicking()) {
            panic!("{} stays cut off: {error}", self.link);
        }
    }
}

/// Who answered, as `cluster/pod`.
fn who(answer: &str) -> Option<String> {
    let (cluster, rest) = answer.strip_prefix("cluster=")?.split_once(" pod=")?;
    Some(format!("{cluster}/{}", rest.split(' ').next()?))
}

/// The clusters that answered, each once.
#[must_use]
pub fn clusters_in(answers: &BTreeMap<String, usize>) -> Vec<&str> {
    let mut names: Vec<&str> = answers.keys().filter_map(|name| name.split_once('/')).map(|(name, _)| name).collect();
    names.dedup();
    names
}
