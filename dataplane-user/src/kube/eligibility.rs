//! Which pods of the node belong to the mesh: a pure function of their labels and of their namespace's.

use std::collections::BTreeSet;
use std::fmt;

/// Label of pods and namespaces.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Annotation that a sidecar injector leaves behind.
pub const SIDECAR_ANNOTATION: &str = "sidecar.istio.io/status";

/// What a pod says that matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its namespace.
    pub namespace: String,
    /// Value of [`MODE_LABEL`] on it.
    pub mode: Option<String>,
    /// It uses the node's own network.
    pub host_network: bool,
    /// It has a proxy of its own.
    pub sidecar: bool,
    /// All its containers have ended for good.
    pub finished: bool,
}

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing asks for it.
    NotLabelled,
    /// Its own label says `none`.
    OptedOut,
    /// Its namespace is excluded.
    Excluded,
    /// It is on the node's own network.
    HostNetwork,
    /// It has a sidecar.
    Sidecar,
    /// It has ended.
    Finished,
}

impl Reason {
    /// Whether somebody asked for the mesh and cannot have it.
    #[must_use]
    pub fn surprises(self) -> bool {
        matches!(self, Self::HostNetwork | Self::Sidecar | Self::Excluded)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLabelled => "neither it nor its namespace is labelled istio.io/dataplane-mode=ambient",
            Self::OptedOut => "its label istio.io/dataplane-mode says none",
            Self::Excluded => "its namespace is excluded (excludeNamespaces)",
            Self::HostNetwork => {
                "it uses the node's network (hostNetwork), which cannot be redirected for one pod alone"
            }
            Self::Sidecar => "it has a sidecar; remove that and restart the pod to use the node's proxy instead",
            Self::Finished => "its containers have ended",
        })
    }
}

/// Whether the pod belongs to the mesh; `namespace_mode` is the value of [`MODE_LABEL`] on its namespace.
///
/// # Errors
/// Why it does not.
pub fn eligible(pod: &Candidate, namespace_mode: Option<&str>, excluded: &BTreeSet<String>) -> Result<(), Reason> {
    match (pod.mode.as_deref(), namespace_mode) {
        (Some("none"), _) => return Err(Reason::OptedOut),
        (Some("ambient"), _) | (_, Some("ambient")) => {}
        _ => return Err(Reason::NotLabelled),
    }
    if pod.finished {
        Err(Reason::Finished)
    } else if excluded.contains(&pod.namespace) {
        Err(Reason::Excluded)
    } else if pod.host_network {
        Err(Reason::HostNetwork)
    } else if pod.sidecar {
        Err(Reason::Sidecar)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_who_belongs_to_the_mesh() {
        let excluded = BTreeSet::from(["kube-system".to_owned()]);
        let pod = |mode: Option<&str>| Candidate {
            namespace: "shop".to_owned(),
            mode: mode.map(str::to_owned),
            ..Candidate::default()
        };
        let ambient = Some("ambient");
        let rows = [
            (pod(None), None, Err(Reason::NotLabelled), "nothing says so"),
            (pod(None), ambient, Ok(()), "the namespace does"),
            (pod(ambient), None, Ok(()), "the pod does"),
            (pod(ambient), Some("none"), Ok(()), "the pod does, whatever its namespace says"),
            (pod(Some("none")), ambient, Err(Reason::OptedOut), "the pod does not want to"),
            (pod(Some("sidecar")), None, Err(Reason::NotLabelled), "another mode"),
            (pod(Some("sidecar")), ambient, Ok(()), "a mode nobody knows is none of its own"),
            (pod(None), Some("Ambient"), Err(Reason::NotLabelled), "values are exact"),
            (Candidate { host_network: true, ..pod(None) }, ambient, Err(Reason::HostNetwork), "the node's network"),
            (Candidate { sidecar: true, ..pod(ambient) }, None, Err(Reason::Sidecar), "a proxy of its own"),
            (Candidate { finished: true, ..pod(ambient) }, None, Err(Reason::Finished), "a job that is done"),
            (
                Candidate { namespace: "kube-system".to_owned(), ..pod(ambient) },
                ambient,
                Err(Reason::Excluded),
                "an excluded namespace, also by its own label",
            ),
            (
                Candidate { host_network: true, ..pod(None) },
                None,
                Err(Reason::NotLabelled),
                "no surprise where nobody asked",
            ),
        ];
        for (pod, namespace, expected, why) in rows {
            assert_eq!(eligible(&pod, namespace, &excluded), expected, "{why}: {pod:?} in {namespace:?}");
        }
    }

    #[test]
    fn reasons_tell_what_to_do_or_why() {
        for reason in [Reason::HostNetwork, Reason::Sidecar, Reason::Excluded] {
            assert!(reason.surprises() && reason.to_string().len() > 20, "{reason}");
        }
        assert!(!Reason::OptedOut.surprises() && !Reason::NotLabelled.surprises() && !Reason::Finished.surprises());
    }
}
