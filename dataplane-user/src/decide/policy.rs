//! Authorization of a connection at its destination.

use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::state::{Action, Match, Model, Policy, ServiceAccountMatch, StringMatch, Workload};

/// What policies look at.
#[derive(Debug, Clone, Copy)]
pub struct PolicyContext<'a> {
    /// Identity of the peer; none for plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// Address of the TCP peer.
    pub source_ip: IpAddr,
    /// Own address.
    pub destination_ip: IpAddr,
    /// Final port of the application.
    pub destination_port: u16,
}

/// What the policies say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyVerdict {
    /// Whether the connection may go on.
    pub allowed: bool,
    /// Why.
    pub reason: Arc<str>,
    /// Refused only because a listed policy is not known: it may arrive in a moment, so the caller may ask again.
    pub pending: bool,
    /// Keys of dry-run policies that would have refused.
    pub dry_run: Vec<Arc<str>>,
}

/// Decides whether a connection to `own` may go on: any enforced DENY that matches refuses; then, if there is any enforced
/// ALLOW, one must match.
#[must_use]
pub fn policy(model: &Model, own: &Workload, context: &PolicyContext<'_>) -> PolicyVerdict {
    let mut verdict = PolicyVerdict { allowed: false, reason: "".into(), pending: false, dry_run: Vec::new() };
    let (mut allow_by, mut allows) = (None, 0_usize);
    let mut deny_by = None;
    for policy in model.policies_for(own) {
        let matches = matches_policy(policy, context);
        match (policy.action, policy.dry_run) {
            (Action::Deny, true) if matches => verdict.dry_run.push(policy.key.clone()),
            (Action::Allow, true) if !matches => verdict.dry_run.push(policy.key.clone()),
            (_, true) => {}
            (Action::Deny, false) => {
                if matches {
                    deny_by = deny_by.or(Some(&policy.key));
                }
            }
            (Action::Allow, false) => {
                allows += 1;
                if matches {
                    allow_by = allow_by.or(Some(&policy.key));
                }
            }
        }
    }
    if let Some(key) = deny_by {
        verdict.reason = format!("denied by policy {key}").into();
        return verdict;
    }
    // Nobody knows what an unknown policy forbids.
    if let Some(key) = model.unknown_policies(own).find(|key| concerns(key, context)) {
        verdict.pending = true;
        verdict.reason = format!("policy {key} is listed for {} and not known", own.uid).into();
        return verdict;
    }
    verdict.allowed = allows == 0 || allow_by.is_some();
    verdict.reason = match allow_by {
        Some(key) => format!("allowed by policy {key}").into(),
        None if allows == 0 => "no policy restricts it".into(),
        None => format!("none of {allows} allowing policies matches").into(),
    };
    verdict
}

/// istiod lists policies made from a PeerAuthentication that it then never publishes; their only meaning is "no plaintext",
/// so peers with an identity are not concerned.
fn concerns(key: &str, context: &PolicyContext<'_>) -> bool {
    let from_peer_authentication =
        key.split_once('/').is_some_and(|(_, name)| name.starts_with("converted_peer_authentication_"));
    !(from_peer_authentication && context.identity.is_some())
}

fn matches_policy(policy: &Policy, context: &PolicyContext<'_>) -> bool {
    policy.rules.iter().any(|rule| {
        rule.iter().all(|clause| clause.is_empty() || clause.iter().any(|entry| matches_entry(entry, context)))
    })
}

fn matches_entry(entry: &Match, context: &PolicyContext<'_>) -> bool {
    if *entry == Match::default() {
        return false;
    }
    let identity = context.identity;
    let principal = identity.map(SpiffeId::principal);
    let namespace = identity.map(SpiffeId::namespace).unwrap_or_default();
    // Without an identity no text matches, not even a prefix of nothing.
    let by_principal = |entry: &StringMatch| principal.is_some_and(|text| entry.matches(text));
    let by_account = |entry: &ServiceAccountMatch| {
        identity
            .is_some_and(|id| *entry.namespace == *id.namespace() && *entry.service_account == *id.service_account())
    };
    field(&entry.principals, &entry.not_principals, by_principal)
        && field(&entry.namespaces, &entry.not_namespaces, |e| e.matches(namespace))
        && field(&entry.service_accounts, &entry.not_service_accounts, by_account)
        && field(&entry.source_ips, &entry.not_source_ips, |e| e.contains(context.source_ip))
        && field(&entry.destination_ips, &entry.not_destination_ips, |e| e.contains(context.destination_ip))
        && field(&entry.destination_ports, &entry.not_destination_ports, |e| *e == context.destination_port)
}

/// One positive value must match unless there is none; no negative value may.
fn field<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}
