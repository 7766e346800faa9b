//! Two clusters of control planes, and a person who links them.
#![allow(dead_code, reason = "no suite uses all of it")]

use serde_json::{Value, json};
use std::time::Duration;
use testkit::fixture::TwoClusters;
use testkit::istiod::{ControlPlane, Operator};
use testkit::process;

/// The gateway.
pub const GATEWAY: &str = "causeway-gateway";
/// Its namespace.
pub const NAMESPACE: &str = "istio-eastwest";

/// Two clusters with control planes, an operator beside them, and a gateway in the second.
pub struct Stage {
    pub operator: Operator,
    // Ended before the topology's namespaces go.
    pub planes: [ControlPlane; 2],
    pub clusters: TwoClusters,
}

impl Stage {
    /// Two clusters as installed, not exposed and not linked; a gateway runs in the second.
    pub fn start(name: &str) -> Self {
        let mut clusters = TwoClusters::build(name).unwrap();
        let node = clusters.gateway_node;
        let listen = format!("{}:15008", clusters.topology.node_ip(node));
        let identity = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{GATEWAY}");
        clusters.topology.set_section(node, json!({"gateway": {"listen": [listen], "identity": identity}}));
        let mut planes = clusters.clusters.map(|cluster| ControlPlane::start(&clusters.topology, cluster).unwrap());
        for (plane, c) in planes.iter_mut().zip(1_u8..) {
            plane.start_controllers().unwrap();
            plane.describe(&clusters.topology).unwrap();
            plane.global_service("default/web", &format!("10.96.{}.1", 100 + c), &[(80, 8080)], "web").unwrap();
        }
        let operator = Operator::of(&planes).unwrap();
        clusters.topology.start().unwrap();
        Self { operator, planes, clusters }
    }

    pub fn address(&self) -> String {
        self.clusters.topology.node_ip(self.clusters.gateway_node).to_string()
    }

    /// A ready pod of the gateway on a node of the second cluster.
    pub fn gateway_pod(&self, number: u8) {
        let node = if number == 1 { self.clusters.gateway_node } else { self.clusters.server_node };
        let (name, ip) = (self.clusters.topology.node_name(node), self.clusters.topology.node_ip(node).to_string());
        self.planes[1].run_pod(&format!("{NAMESPACE}/{GATEWAY}-{number}"), GATEWAY, name, &ip).unwrap();
    }

    /// The second cluster exposed by a load balancer at `address`, and its gateway published.
    pub fn expose(&self, address: &str) {
        self.operator.run_ok("causeway multicluster expose --context cluster2 --no-pods").unwrap();
        self.gateway_pod(1);
        self.planes[1].balance(NAMESPACE, GATEWAY, address).unwrap();
        self.until_addressed(address);
    }

    pub fn until_addressed(&self, address: &str) {
        let get = format!("kubectl --context cluster2 -n {NAMESPACE} get gateway {GATEWAY} -o json");
        let mut last = String::new();
        let done = process::until(Duration::from_secs(60), || {
            last = self.operator.run_ok(&get).unwrap_or_default();
            let gateway: Value = serde_json::from_str(&last).unwrap_or_default();
            gateway["status"]["addresses"] == json!([{"type": "IPAddress", "value": address}])
        });
        done.unwrap_or_else(|_| panic!("{last}\n{}", self.planes[1].istiod_log(20)));
    }

    /// What a check found that says `text`, and the exit code of the command.
    pub fn finding(&self, check: &str, text: &str) -> (Option<Value>, i32) {
        let done = self.operator.run("causeway multicluster check --contexts cluster1,cluster2 -o json").unwrap();
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{done:?}"));
        let checks = answer["checks"].as_array().unwrap();
        let of_check = checks.iter().find(|row| row["name"] == check).unwrap_or_else(|| panic!("no check {check}"));
        let mut findings = of_check["findings"].as_array().unwrap().iter();
        let found = findings.find(|finding| finding["what"].as_str().unwrap().contains(text)).cloned();
        (found, done.status.code().unwrap())
    }

    /// Breaks one thing, sees it found, and runs the command of the finding, or `instead` where that needs more than this
    /// machine has.
    pub fn breaks(&self, check: &str, line: &str, text: &str, instead: Option<&str>) {
        let (found, _) = self.finding(check, text);
        assert_eq!(found, None, "{check}: found before anything was broken");
        self.operator.run_ok(line).unwrap();
        let (found, code) = self.told(check, text);
        assert_eq!(code, i32::from(found["severity"] == "error"), "{found}");
        let repair = found["repair"].as_str().unwrap();
        self.operator.run_ok(instead.unwrap_or(repair)).unwrap();
        self.gone(check, text);
    }

    /// What a check finds that says `text`, printed as a person would see it, and the exit code.
    pub fn told(&self, check: &str, text: &str) -> (Value, i32) {
        let (found, code) = self.finding(check, text);
        let found = found.unwrap_or_else(|| panic!("{check}: {text:?} was not found"));
        println!(
            "{check}: {}\n  where  {}\n  why    {}\n  repair {}",
            found["what"], found["where"], found["why"], found["repair"]
        );
        (found, code)
    }

    /// Waits until a check no longer finds what says `text`.
    pub fn gone(&self, check: &str, text: &str) {
        process::until(Duration::from_secs(60), || self.finding(check, text).0.is_none())
            .unwrap_or_else(|_| panic!("{check}: {text:?} is still found"));
    }

    /// Waits until nothing is wrong any more.
    pub fn all_is_well(&self) {
        process::until(Duration::from_secs(60), || self.finding("probe", "").1 == 0).unwrap_or_else(|_| {
            panic!("{}", self.operator.run("causeway multicluster check --contexts cluster1,cluster2").unwrap().stdout)
        });
    }

    /// Neither cluster has anything of a link.
    pub fn assert_unlinked(&self) {
        let get = "kubectl --context cluster1 -n istio-system get secrets -l istio/multiCluster=true -o name; \
                   kubectl --context cluster1 get gateways -A -o name 2>/dev/null; \
                   kubectl --context cluster2 -n istio-system get serviceaccounts,secrets -o name | grep causeway-reader; true";
        assert_eq!(self.operator.run_ok(get).unwrap(), "");
    }
}
