//! What the API says of the pods of this node and of namespaces, cut down to what matters.

use std::net::IpAddr;
use std::sync::Arc;

use ::kube::core::PartialObjectMeta;
use ::kube::runtime::watcher::Event;
use k8s_openapi::api::core::v1::{Namespace, Pod};

use super::Settings;
use super::eligibility::{Candidate, MODE_LABEL, Reason, SIDECAR_ANNOTATION, eligible};
use super::listed::Listed;

/// Annotation that says whether a pod is redirected.
pub(super) const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Its value once capture is proven.
pub(super) const ENABLED: &str = "enabled";
/// A pod may say whether its DNS is captured.
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// The uid of a static pod as its cgroup has it; its object in the API has another.
const STATIC_UID: &str = "kubernetes.io/config.hash";
/// Labels by which Istio's own node parts are known: name, value, and what it is.
const OTHERS: [(&str, &str, &str); 2] = [("k8s-app", "istio-cni-node", "istio-cni"), ("app", "ztunnel", "ztunnel")];

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Uid of the object.
    pub(super) uid: String,
    /// Uid in its cgroup's path.
    pub(super) cgroup_uid: String,
    pub(super) name: String,
    pub(super) candidate: Candidate,
    /// Its service account.
    pub(super) account: Arc<str>,
    /// Addresses, once the kubelet has told them.
    pub(super) ips: Vec<IpAddr>,
    /// What it says of its DNS.
    pub(super) dns: Option<bool>,
    /// Its annotation says that it is redirected.
    pub(super) marked: bool,
    /// The part of another dataplane that it is.
    pub(super) other: Option<&'static str>,
}

impl Facts {
    fn of(pod: &Pod) -> Option<Self> {
        let metadata = &pod.metadata;
        let label = |name: &str| metadata.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
        let annotation = |name: &str| {
            metadata.annotations.as_ref().and_then(|annotations| annotations.get(name)).map(String::as_str)
        };
        let uid = metadata.uid.clone()?;
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let several = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        let other = OTHERS.iter().find(|(name, value, _)| label(name) == Some(value)).map(|(_, _, what)| *what);
        Some(Self {
            cgroup_uid: annotation(STATIC_UID).map_or_else(|| uid.clone(), str::to_owned),
            uid,
            name: metadata.name.clone()?,
            candidate: Candidate {
                namespace: metadata.namespace.clone()?,
                mode: label(MODE_LABEL).map(str::to_owned),
                host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
                sidecar: annotation(SIDECAR_ANNOTATION).is_some(),
                finished: phase == "Succeeded" || phase == "Failed",
            },
            account: spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default").into(),
            ips: several.filter_map(|ip| ip.ip.parse().ok()).collect(),
            dns: annotation(DNS_CAPTURE).and_then(|text| text.parse().ok()),
            marked: annotation(REDIRECTION) == Some(ENABLED),
            other,
        })
    }

    /// The uid of its workload, as the control plane names it.
    pub(super) fn workload(&self, cluster: &str) -> Arc<str> {
        format!("{cluster}//Pod/{}/{}", self.candidate.namespace, self.name).into()
    }
}

/// Everything the API has said.
#[derive(Debug, Default)]
pub(super) struct Known {
    pods: Listed<Facts>,
    /// Value of the label, by name.
    namespaces: Listed<Option<String>>,
}

impl Known {
    pub(super) fn pod(&mut self, event: Event<Pod>) {
        self.pods.take(event, |pod| Facts::of(pod).map(|facts| (facts.uid.clone(), facts)));
    }

    pub(super) fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        self.namespaces.take(event, |namespace| {
            let mode = namespace.metadata.labels.as_ref().and_then(|labels| labels.get(MODE_LABEL)).cloned();
            Some((namespace.metadata.name.clone()?, mode))
        });
    }

    /// Whether both lists were complete once.
    pub(super) fn complete(&self) -> bool {
        self.pods.complete && self.namespaces.complete
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Facts> {
        self.pods.all.values()
    }

    pub(super) fn of_workload(&self, cluster: &str, workload: &str) -> Option<&Facts> {
        self.pods().find(|facts| *facts.workload(cluster) == *workload)
    }

    pub(super) fn has(&self, uid: &str) -> bool {
        self.pods.all.contains_key(uid)
    }

    /// Whether all is known that decides about the pod with this uid in its cgroup's path.
    pub(super) fn decides(&self, cgroup_uid: &str) -> bool {
        let told = |facts: &Facts| {
            facts.cgroup_uid == cgroup_uid && self.namespaces.all.contains_key(&facts.candidate.namespace)
        };
        self.complete() && self.pods().any(told)
    }

    /// Whether a pod belongs to the mesh.
    pub(super) fn verdict(&self, facts: &Facts, settings: &Settings) -> Result<(), Reason> {
        let namespace = self.namespaces.all.get(&facts.candidate.namespace).and_then(Option::as_deref);
        eligible(&facts.candidate, namespace, &settings.excluded)
    }

    /// The running part of another dataplane on this node.
    pub(super) fn other(&self) -> Option<(&'static str, &Facts)> {
        self.pods().filter(|facts| !facts.candidate.finished).find_map(|facts| Some((facts.other?, facts)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    fn known(pods: Vec<Pod>, namespaces: &[(&str, Option<&str>)]) -> Known {
        let mut known = Known::default();
        known.pod(Event::Init);
        pods.into_iter().for_each(|pod| known.pod(Event::InitApply(pod)));
        assert!(!known.complete());
        known.pod(Event::InitDone);
        known.namespace(Event::Init);
        for (name, mode) in namespaces {
            let labels = mode.map(|mode| serde_json::json!({ MODE_LABEL: mode }));
            let object = serde_json::json!({"metadata": {"name": name, "labels": labels}});
            known.namespace(Event::InitApply(serde_json::from_value(object).unwrap()));
        }
        assert!(!known.complete(), "nothing counts before both lists are there");
        known.namespace(Event::InitDone);
        assert!(known.complete());
        known
    }

    fn settings() -> Settings {
        Settings {
            node: "n1".to_owned(),
            cluster: "east".to_owned(),
            proc: "/proc".into(),
            pods_cgroup: "/sys/fs/cgroup/kubepods".into(),
            excluded: ["kube-system".to_owned()].into(),
            dns: true,
            node_ports: Default::default(),
            domain: "cluster.local".to_owned(),
        }
    }

    #[test]
    fn what_matters_is_read_from_a_pod() {
        let facts = Facts::of(&pod(serde_json::json!({
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u1",
                "labels": {"istio.io/dataplane-mode": "ambient"},
                "annotations": {
                    "ambient.istio.io/redirection": "enabled", "ambient.istio.io/dns-capture": "false",
                    "kubernetes.io/config.hash": "h1"
                }
            },
            "spec": {"hostNetwork": true, "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}]}
        })))
        .unwrap();
        assert_eq!(facts.ips, ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::3".parse().unwrap()]);
        assert_eq!((facts.cgroup_uid.as_str(), facts.dns, facts.marked), ("h1", Some(false), true));
        assert!(facts.candidate.host_network && !facts.candidate.finished);
        assert_eq!(&*facts.workload("east"), "east//Pod/shop/web-0");
    }

    #[test]
    fn a_label_of_the_namespace_counts_as_soon_as_it_changes_and_a_new_list_replaces_the_old() {
        let web = || pod(serde_json::json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u1"}}));
        let mut known = known(vec![web()], &[("shop", None)]);
        let verdict = |known: &Known| known.pods().next().map(|facts| known.verdict(facts, &settings()));
        assert_eq!(verdict(&known), Some(Err(Reason::NotLabelled)));
        assert!(known.decides("u1") && !known.decides("u2"));
        known.pod(Event::Apply(pod(serde_json::json!({"metadata": {"name": "x", "namespace": "new", "uid": "u2"}}))));
        assert!(!known.decides("u2"), "its namespace may be labelled");
        known.pod(Event::Delete(pod(serde_json::json!({"metadata": {"name": "x", "namespace": "new", "uid": "u2"}}))));
        let labelled = serde_json::json!({"metadata": {"name": "shop", "labels": {MODE_LABEL: "ambient"}}});
        known.namespace(Event::Apply(serde_json::from_value(labelled).unwrap()));
        assert_eq!(verdict(&known), Some(Ok(())));
        known.pod(Event::Init);
        assert_eq!(verdict(&known), Some(Ok(())), "the old list holds until the new one is complete");
        known.pod(Event::InitDone);
        assert_eq!(verdict(&known), None);
        known.pod(Event::Apply(web()));
        known.pod(Event::Delete(web()));
        assert!(!known.has("u1"));
    }

    #[test]
    fn parts_of_another_dataplane_are_recognised_while_they_run() {
        let other = |phase: &str| {
            pod(serde_json::json!({
                "metadata": {"name": "z-1", "namespace": "istio-system", "uid": "u9", "labels": {"app": "ztunnel"}},
                "status": {"phase": phase}
            }))
        };
        assert_eq!(known(vec![other("Running")], &[]).other().map(|(what, _)| what), Some("ztunnel"));
        assert!(known(vec![other("Succeeded")], &[]).other().is_none());
    }
}
