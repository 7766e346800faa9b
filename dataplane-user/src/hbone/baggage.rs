//! The `baggage` header: labels of the workload at the other end.
//!
//! The members, their order and the reading rules are those of Istio's node proxy (`istio/ztunnel`, `src/baggage.rs`).
//! Nothing here is ever used to allow or refuse anything.

use std::fmt::Write as _;

/// Kind of the Kubernetes object that owns a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkloadType {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A Pod; what istiod publishes for every pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    /// The word used in a baggage key.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }

    /// Reads the word, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Deployment, Self::CronJob, Self::Pod, Self::Job]
            .into_iter()
            .find(|kind| kind.as_str().eq_ignore_ascii_case(name))
    }
}

/// The labels a baggage header can carry. Empty text never occurs: such a member is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: Option<String>,
    /// `k8s.namespace.name`.
    pub namespace: Option<String>,
    /// The kind in `k8s.<kind>.name`.
    pub workload_type: Option<WorkloadType>,
    /// The value of `k8s.<kind>.name`: the owner's name.
    pub workload_name: Option<String>,
    /// `service.name`: the canonical name.
    pub service_name: Option<String>,
    /// `service.version`: the canonical revision.
    pub service_version: Option<String>,
    /// `cloud.region`.
    pub region: Option<String>,
    /// `cloud.availability_zone`.
    pub zone: Option<String>,
}

impl Baggage {
    /// Reads all `baggage` lines of one message. Later members win; a line with a byte that is not printable ASCII
    /// discards everything.
    #[must_use]
    pub fn parse<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut baggage = Self::default();
        for line in lines {
            let text = match std::str::from_utf8(line) {
                Ok(text) if super::is_visible_ascii(line) => text,
                _ => return Self::default(),
            };
            for member in text.split(',') {
                let mut parts = member.split('=');
                if let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                    baggage.set(key, value);
                }
            }
        }
        baggage
    }

    fn set(&mut self, key: &str, value: &str) {
        let value = (!value.is_empty()).then(|| value.to_owned());
        match key {
            "k8s.cluster.name" => self.cluster = value,
            "k8s.namespace.name" => self.namespace = value,
            "service.name" => self.service_name = value,
            "service.version" => self.service_version = value,
            "cloud.region" => self.region = value,
            "cloud.availability_zone" => self.zone = value,
            // Sent by the reference when it does not know the kind.
            "k8s..name" => {
                self.workload_type = None;
                self.workload_name = value;
            }
            _ => {
                let kind = key
                    .strip_prefix("k8s.")
                    .and_then(|rest| rest.strip_suffix(".name"))
                    .filter(|word| !word.bytes().any(|b| b.is_ascii_uppercase()))
                    .and_then(WorkloadType::from_name);
                if let Some(kind) = kind {
                    self.workload_type = value.is_some().then_some(kind);
                    self.workload_name = value;
                }
            }
        }
    }

    /// The header value; empty when there is nothing to say. A value that the grammar cannot carry (it has no escapes)
    /// is left out, as is a workload name without its kind.
    #[must_use]
    pub fn to_header(&self) -> String {
        let workload_key = match self.workload_type {
            Some(kind) => format!("k8s.{}.name", kind.as_str()),
            None => String::new(),
        };
        let workload_name = if self.workload_type.is_some() { &self.workload_name } else { &None };
        let members: [(&str, &Option<String>); 7] = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (&workload_key, workload_name),
            ("service.name", &self.service_name),
            ("service.version", &self.service_version),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut header = String::new();
        for (key, value) in members {
            let Some(value) = value.as_deref().filter(|value| carries(value)) else {
                continue;
            };
            let comma = if header.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            let _ = write!(header, "{comma}{key}={value}");
        }
        header
    }
}

fn carries(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| matches!(b, 0x21..=0x7e) && b != b',' && b != b'=')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(lines: &[&str]) -> Baggage {
        Baggage::parse(lines.iter().map(|line| line.as_bytes()))
    }

    #[test]
    fn full_baggage_has_the_fixed_order() {
        let baggage = Baggage {
            cluster: Some("c1".into()),
            namespace: Some("default".into()),
            workload_type: Some(WorkloadType::Pod),
            workload_name: Some("web".into()),
            service_name: Some("web".into()),
            service_version: Some("v1".into()),
            region: Some("r".into()),
            zone: Some("z".into()),
        };
        let header = baggage.to_header();
        assert_eq!(
            header,
            "k8s.cluster.name=c1,k8s.namespace.name=default,k8s.pod.name=web,service.name=web,service.version=v1,\
             cloud.region=r,cloud.availability_zone=z"
        );
        assert_eq!(parse(&[&header]), baggage);
    }

    #[test]
    fn reading_follows_the_tolerance_rules() {
        let only_namespace = Baggage { namespace: Some("b".into()), ..Baggage::default() };
        let rows: [(&[&str], Baggage, &str); 9] = [
            (&["k8s.namespace.name=a", "k8s.namespace.name=b"], only_namespace.clone(), "later line wins"),
            (&["k8s.namespace.name=b,rubbish,x=y"], only_namespace.clone(), "members without = and unknown keys"),
            (&["k8s.namespace.name=b=c"], only_namespace.clone(), "value ends at the second ="),
            (
                &["k8s.namespace.name=b, k8s.cluster.name=c"],
                only_namespace.clone(),
                "a leading blank makes the key unknown",
            ),
            (&["k8s.namespace.name=b,service.name="], only_namespace.clone(), "empty value is absent"),
            (&["k8s.namespace.name=a,k8s.namespace.name="], Baggage::default(), "a later empty value removes"),
            (&["k8s.namespace.name=b", "x=\u{7f}"], Baggage::default(), "a line that is not printable discards all"),
            (&["k8s.Pod.name=x"], Baggage::default(), "keys are case-sensitive"),
            (
                &["k8s..name=web"],
                Baggage { workload_name: Some("web".into()), ..Baggage::default() },
                "degenerate key is accepted",
            ),
        ];
        for (lines, expected, why) in rows {
            assert_eq!(parse(lines), expected, "{why}");
        }
    }

    #[test]
    fn what_the_grammar_cannot_carry_is_left_out() {
        let baggage = Baggage {
            cluster: Some("a,b".into()),
            namespace: Some("x y".into()),
            workload_name: Some("kind unknown".into()),
            service_name: Some("ok".into()),
            zone: Some("é".into()),
            ..Baggage::default()
        };
        assert_eq!(baggage.to_header(), "service.name=ok");
        assert_eq!(Baggage::default().to_header(), "");
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic_and_emission_is_a_fixed_point(lines: Vec<Vec<u8>>) {
            let read = Baggage::parse(lines.iter().map(Vec::as_slice));
            let header = read.to_header();
            let again = Baggage::parse(std::iter::once(header.as_bytes()));
            prop_assert_eq!(again.to_header(), header);
        }

        #[test]
        fn carried_values_round_trip(values in prop::collection::vec("[!-+\\--<>-~]{1,12}", 7)) {
            let mut values = values.into_iter();
            let baggage = Baggage {
                cluster: values.next(),
                namespace: values.next(),
                workload_type: Some(WorkloadType::Job),
                workload_name: values.next(),
                service_name: values.next(),
                service_version: values.next(),
                region: values.next(),
                zone: values.next(),
            };
            let header = baggage.to_header();
            prop_assert_eq!(Baggage::parse(std::iter::once(header.as_bytes())), baggage);
        }
    }
}
