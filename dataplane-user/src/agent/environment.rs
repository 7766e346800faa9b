//! The environment variables of ztunnel: each is read, or refused with a reason; none is silently ignored.

use std::{num::NonZeroUsize, time::Duration};

use super::node::Failure;
use crate::{istio::xds_settings::Environment, state::file::Defaults};

/// What is done about a variable that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// It has the meaning that ztunnel gives it.
    Read,
    /// These values say what is done anyway; others cannot be had, for the reason given.
    Only(&'static [&'static str], &'static str),
    /// It cannot be had, for the reason given.
    Refused(&'static str),
}

use Rule::{Only, Read, Refused};

const TRUE: &[&str] = &["true"];
const FALSE: &[&str] = &["false"];
const FIXED: &str = "it is not adjustable here; unset it";

/// Every variable of place, traffic and tuning, and those that would weaken identity.
const RULES: &[(&str, Rule)] = &[
    // Place.
    ("NETWORK", Read),
    ("NODE_NAME", Read),
    ("CLUSTER_ID", Read),
    ("ISTIO_META_CLUSTER_ID", Read),
    ("CLUSTER_DOMAIN", Read),
    ("TRUST_DOMAIN", Read),
    ("POD_NAME", Read),
    ("POD_NAMESPACE", Read),
    ("SERVICE_ACCOUNT", Read),
    ("INSTANCE_IP", Read),
    ("PROXY_MODE", Only(&["shared"], "one daemon serves all pods of its node")),
    (
        "PROXY_WORKLOAD_INFO",
        Refused("it belongs to PROXY_MODE=dedicated; name workloads under enrol in the model file"),
    ),
    // Control plane.
    ("LOCAL_XDS_PATH", Refused("give the file with --model")),
    ("LOCAL_XDS", Refused("write it to a file and give that with --model")),
    ("PROXY_CONFIG", Refused("settings are read from the model file; see \"causeway schema\"")),
    // Identity.
    ("SECRET_TTL", Read),
    ("CRL_PATH", Read),
    ("COMPLIANCE_POLICY", Refused("cipher suites and groups are fixed; a policy that is not kept must not seem to be")),
    ("TLS12_ENABLED", Only(FALSE, "tunnels are TLS 1.3 alone")),
    ("FAKE_CA", Only(FALSE, "identities are proven; for tests make an authority with \"causeway ca\"")),
    ("SKIP_VALIDATE_TRUST_DOMAIN", Only(FALSE, "name each trust domain with its roots under trust in the model file")),
    // Traffic.
    ("PACKET_MARK", Only(&["1337", "0x539"], FIXED)),
    ("IPV6_ENABLED", Only(TRUE, "both families are served; a kernel without IPv6 needs no setting")),
    ("ENABLE_ORIG_SRC", Only(TRUE, "applications always see their client's address")),
    ("LOCALHOST_APP_TUNNEL", Only(TRUE, "PROXY headers are delivered over loopback")),
    ("ENABLE_RESPONSE_BAGGAGE", Only(TRUE, FIXED)),
    ("ISTIO_META_DNS_CAPTURE", Read),
    ("ISTIO_META_DNS_PROXY_ADDR", Refused("DNS is captured without a listener of its own")),
    ("PREFERED_SERVICE_NAMESPACE", Read),
    // Tuning.
    ("ZTUNNEL_WORKER_THREADS", Read),
    ("ZTUNNEL_CPU_LIMIT", Read),
    ("HTTP2_STREAM_WINDOW_SIZE", Only(&["4194304"], FIXED)),
    ("HTTP2_CONNECTION_WINDOW_SIZE", Only(&["67108864"], FIXED)),
    ("HTTP2_FRAME_SIZE", Only(&["262144"], FIXED)),
    ("POOL_MAX_STREAMS_PER_CONNECTION", Only(&["200"], FIXED)),
    ("POOL_UNUSED_RELEASE_TIMEOUT", Only(&["5m", "300s", "5m0s"], FIXED)),
    ("KEEPALIVE_ENABLED", Refused("tunnels are kept alive by HTTP/2 PINGs, every 10 s")),
    ("KEEPALIVE_TIME", Refused("tunnels are kept alive by HTTP/2 PINGs, every 10 s")),
    ("KEEPALIVE_INTERVAL", Refused("tunnels are kept alive by HTTP/2 PINGs, every 10 s")),
    ("KEEPALIVE_RETRIES", Refused("tunnels are kept alive by HTTP/2 PINGs, every 10 s")),
    // Life cycle and logs.
    ("CONNECTION_TERMINATION_DEADLINE", Read),
    ("TERMINATION_GRACE_PERIOD_SECONDS", Read),
    ("RUST_LOG", Read),
    ("LOG_FORMAT", Read),
    ("AUTHZ_POLICY_INFO_LOGGING", Only(FALSE, "the access log names the policy that refused a connection")),
];

/// How long open connections may go on after SIGTERM where nobody says it.
const DRAIN: Duration = Duration::from_secs(5);
/// What the kubelet's patience must leave for closing the rest, and the least patience of which that can be taken.
const CLOSING: (u64, u64) = (5, 10);

/// What the environment says, for what command line and model file leave out.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    /// For the model file.
    pub defaults: Defaults,
    /// The number of workers.
    pub workers: Option<usize>,
    /// How long open connections may go on after SIGTERM.
    pub drain: Duration,
}

impl Settings {
    /// Reads all, for a machine of so many CPUs.
    ///
    /// # Errors
    /// Every variable that cannot be had or does not read, with the reason.
    pub fn read(environment: &Environment, cpus: usize) -> Result<Self, Failure> {
        match (check(environment), defaults(environment), workers(environment, cpus), drain(environment)) {
            (Ok(()), Ok(defaults), Ok(workers), Ok(drain)) => Ok(Self { defaults, workers, drain }),
            (checked, defaults, workers, drain) => {
                let errors = [checked.err(), defaults.err(), workers.err(), drain.err()];
                let errors: Vec<String> = errors.into_iter().flatten().map(|error| error.to_string()).collect();
                Err(errors.join("; ").into())
            }
        }
    }
}

/// Refuses what is set to something else than what is done.
fn check(environment: &Environment) -> Result<(), Failure> {
    let refused = RULES.iter().filter_map(|(name, rule)| {
        let value = environment.get(name)?;
        let why = match rule {
            Read => return None,
            Only(values, _) if values.contains(&value) => return None,
            Only(values, why) => format!("only {} is possible: {why}", values.join(" or ")),
            Refused(why) => (*why).to_owned(),
        };
        Some(format!("environment variable {name}={value}: {why}"))
    });
    let refused: Vec<String> = refused.collect();
    if refused.is_empty() { Ok(()) } else { Err(refused.join("; ").into()) }
}

/// What the model file need not say.
fn defaults(environment: &Environment) -> Result<Defaults, Failure> {
    let text = |name: &str| environment.or(name, "").to_owned();
    let cluster = environment.get("CLUSTER_ID").unwrap_or_else(|| environment.or("ISTIO_META_CLUSTER_ID", ""));
    Ok(Defaults {
        node: text("NODE_NAME"),
        cluster: cluster.to_owned(),
        network: text("NETWORK"),
        trust_domain: text("TRUST_DOMAIN"),
        cluster_domain: text("CLUSTER_DOMAIN"),
        preferred_namespace: text("PREFERED_SERVICE_NAMESPACE"),
        dns: environment.get("ISTIO_META_DNS_CAPTURE").is_none_or(|value| value == "true"),
        ttl: environment.time("SECRET_TTL")?,
        entry: None,
    })
}

/// The number of workers for a machine of so many CPUs, if `ZTUNNEL_WORKER_THREADS` gives it: a number, or a share of
/// `ZTUNNEL_CPU_LIMIT` or else of the CPUs.
fn workers(environment: &Environment, cpus: usize) -> Result<Option<usize>, Failure> {
    let Some(text) = environment.get("ZTUNNEL_WORKER_THREADS") else {
        return Ok(None);
    };
    let wrong = |name: &str, text: &str| {
        format!("environment variable {name}={text}: write a number, as 2, or a share, as 50%")
    };
    let number = |name: &str, text: &str| -> Result<usize, Failure> {
        Ok(text.parse::<NonZeroUsize>().map_err(|_| wrong(name, text))?.get())
    };
    let Some(share) = text.strip_suffix('%') else {
        return number("ZTUNNEL_WORKER_THREADS", text).map(Some);
    };
    let of = match environment.get("ZTUNNEL_CPU_LIMIT") {
        Some(limit) => number("ZTUNNEL_CPU_LIMIT", limit)?,
        None => cpus,
    };
    let share = number("ZTUNNEL_WORKER_THREADS", share).map_err(|_| wrong("ZTUNNEL_WORKER_THREADS", text))?;
    Ok(Some(of.saturating_mul(share).div_ceil(100).max(1)))
}

/// How long open connections may go on: as it is said, or as long as the kubelet waits, less what closing takes.
fn drain(environment: &Environment) -> Result<Duration, Failure> {
    const GRACE: &str = "TERMINATION_GRACE_PERIOD_SECONDS";
    if let Some(deadline) = environment.time("CONNECTION_TERMINATION_DEADLINE")? {
        return Ok(deadline);
    }
    let Some(text) = environment.get(GRACE) else { return Ok(DRAIN) };
    let grace: u64 = text.parse().map_err(|_| format!("environment variable {GRACE}={text}: write seconds, as 30"))?;
    let (closing, least) = CLOSING;
    Ok(if grace > least { Duration::from_secs(grace - closing) } else { DRAIN })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_variable_is_read_or_refused_by_name_and_reason() {
        assert!(check(&environment(&[("PATH", "/bin"), ("HOME", "")])).is_ok(), "others' variables are others'");
        for (name, rule) in RULES {
            let result = |value: &str| check(&environment(&[(name, value)])).map_err(|error| error.to_string());
            assert_eq!(result(""), Ok(()), "{name}: empty is not set");
            match rule {
                Read => assert_eq!(result("anything"), Ok(()), "{name}"),
                Only(values, why) => {
                    assert!(values.iter().all(|value| result(value).is_ok()), "{name}");
                    let error = result("something-else").unwrap_err();
                    assert!(error.contains(&format!("{name}=something-else")) && error.contains(why), "{error}");
                }
                Refused(why) => {
                    let error = result("x").unwrap_err();
                    assert!(error.contains(&format!("{name}=x")) && error.contains(why), "{error}");
                }
            }
        }
        let both = check(&environment(&[("FAKE_CA", "true"), ("TLS12_ENABLED", "true"), ("NETWORK", "n")]));
        let both = both.unwrap_err().to_string();
        assert!(both.contains("FAKE_CA") && both.contains("TLS12_ENABLED") && !both.contains("NETWORK"), "{both}");
    }

    #[test]
    fn time_to_drain() {
        const DEADLINE: &str = "CONNECTION_TERMINATION_DEADLINE";
        const GRACE: &str = "TERMINATION_GRACE_PERIOD_SECONDS";
        let rows = [
            (&[][..], Some(5)),
            (&[(DEADLINE, "")], Some(5)),
            (&[(DEADLINE, "1m30s")], Some(90)),
            (&[(DEADLINE, "0s")], Some(0)),
            (&[(DEADLINE, "2s"), (GRACE, "60")], Some(2)),
            (&[(GRACE, "60")], Some(55)),
            (&[(GRACE, "11")], Some(6)),
            (&[(GRACE, "10")], Some(5)),
            (&[(GRACE, "0")], Some(5)),
            (&[(DEADLINE, "30")], None),
            (&[(GRACE, "60s")], None),
        ];
        for (pairs, seconds) in rows {
            assert_eq!(drain(&environment(pairs)).ok(), seconds.map(Duration::from_secs), "{pairs:?}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let wrong = [
            ("FAKE_CA", "true"),
            ("ZTUNNEL_WORKER_THREADS", "many"),
            ("CONNECTION_TERMINATION_DEADLINE", "soon"),
            ("NETWORK", "n"),
        ];
        let error = Settings::read(&environment(&wrong), 4).unwrap_err().to_string();
        for said in ["FAKE_CA=true", "ZTUNNEL_WORKER_THREADS=many", "CONNECTION_TERMINATION_DEADLINE=soon"] {
            assert!(error.contains(said), "{said}: {error}");
        }
        assert!(!error.contains("NETWORK"), "{error}");
    }

    #[test]
    fn numbers_of_workers() {
        let rows = [
            (&[][..], Some(None)),
            (&[("ZTUNNEL_WORKER_THREADS", "3")], Some(Some(3))),
            (&[("ZTUNNEL_WORKER_THREADS", "50%")], Some(Some(4))),
            (&[("ZTUNNEL_WORKER_THREADS", "1%")], Some(Some(1))),
            (&[("ZTUNNEL_WORKER_THREADS", "50%"), ("ZTUNNEL_CPU_LIMIT", "3")], Some(Some(2))),
            (&[("ZTUNNEL_WORKER_THREADS", "0")], None),
            (&[("ZTUNNEL_WORKER_THREADS", "half")], None),
            (&[("ZTUNNEL_WORKER_THREADS", "50%"), ("ZTUNNEL_CPU_LIMIT", "x")], None),
        ];
        for (pairs, expected) in rows {
            assert_eq!(workers(&environment(pairs), 8).ok(), expected, "{pairs:?}");
        }
    }
}
