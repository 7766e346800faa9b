//! From messages to the model's policies.
//!
//! A constraint that cannot be read must not vanish: the policy would match more, or less, than it says. So one bad element
//! refuses the whole policy, and where no earlier good version is there, a substitute stands for it that lets nobody pass.

use std::sync::Arc;

use super::wds_convert::{Refusal, extensions, ip, port, required, unknown};
use super::wds_policy::{self as raw, MatchType};
use crate::state::{Action, Cidr, Match, Policy, PolicyScope, ServiceAccountMatch, StringMatch};

/// A policy of resource name `key`.
///
/// # Errors
/// The field that cannot be understood.
pub fn policy(key: &str, policy: raw::Authorization) -> Result<Policy, Refusal> {
    required("name", &policy.name)?;
    let mut rules = Vec::with_capacity(policy.rules.len());
    for (r, rule) in policy.rules.into_iter().enumerate() {
        let mut clauses = Vec::with_capacity(rule.clauses.len());
        for (c, clause) in rule.clauses.into_iter().enumerate() {
            let place = |m: usize| format!("rules[{r}].clauses[{c}].matches[{m}]");
            let matches = clause.matches.into_iter().enumerate().map(|(m, entry)| policy_match(&place(m), entry));
            clauses.push(matches.collect::<Result<Vec<_>, _>>()?);
        }
        rules.push(clauses);
    }
    Ok(Policy {
        key: key.into(),
        scope: scope(policy.scope).ok_or_else(|| unknown("scope", policy.scope))?,
        action: action(policy.action).ok_or_else(|| unknown("action", policy.action))?,
        name: policy.name.into(),
        namespace: policy.namespace.into(),
        dry_run: policy.dry_run,
        rules,
        extensions: extensions(policy.extensions),
        unreadable: None,
    })
}

/// What stands for a policy that was refused and of which no good version is known: DENY that matches everything, ALLOW that
/// matches nothing. What is known of it (scope, action, dry run) stays; an unknown action is DENY.
pub fn substitute(key: &str, policy: Option<&raw::Authorization>, reason: &str) -> Policy {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    let action = policy.and_then(|policy| action(policy.action)).unwrap_or(Action::Deny);
    Policy {
        key: key.into(),
        name: name.into(),
        namespace: policy
            .map(|policy| policy.namespace.as_str())
            .filter(|text| !text.is_empty())
            .unwrap_or(namespace)
            .into(),
        scope: policy.and_then(|policy| scope(policy.scope)).unwrap_or(PolicyScope::Unreadable),
        dry_run: policy.is_some_and(|policy| policy.dry_run),
        // A rule without clauses always matches; no rule never does.
        rules: if action == Action::Deny { vec![Vec::new()] } else { Vec::new() },
        action,
        extensions: Box::default(),
        unreadable: Some(reason.into()),
    }
}

fn scope(number: i32) -> Option<PolicyScope> {
    match number {
        0 => Some(PolicyScope::Global),
        1 => Some(PolicyScope::Namespace),
        2 => Some(PolicyScope::WorkloadSelector),
        _ => None,
    }
}

fn action(number: i32) -> Option<Action> {
    match number {
        0 => Some(Action::Allow),
        1 => Some(Action::Deny),
        _ => None,
    }
}

fn policy_match(place: &str, entry: raw::Match) -> Result<Match, Refusal> {
    if let Some(extension) = entry.extensions.first() {
        return Err(format!("{place}.extensions: a condition {:?} that is not understood here", extension.name));
    }
    let texts = |field: &str, raw: Vec<raw::StringMatch>| texts(&format!("{place}.{field}"), raw);
    let ranges = |field: &str, raw: Vec<raw::Range>| ranges(&format!("{place}.{field}"), raw);
    let ports = |field: &str, raw: Vec<u32>| {
        raw.into_iter().map(|number| port(&format!("{place}.{field}"), number)).collect::<Result<Vec<u16>, _>>()
    };
    Ok(Match {
        namespaces: texts("namespaces", entry.namespaces)?,
        not_namespaces: texts("not_namespaces", entry.not_namespaces)?,
        principals: texts("principals", entry.principals)?,
        not_principals: texts("not_principals", entry.not_principals)?,
        service_accounts: accounts(entry.service_accounts),
        not_service_accounts: accounts(entry.not_service_accounts),
        source_ips: ranges("source_ips", entry.source_ips)?,
        not_source_ips: ranges("not_source_ips", entry.not_source_ips)?,
        destination_ips: ranges("destination_ips", entry.destination_ips)?,
        not_destination_ips: ranges("not_destination_ips", entry.not_destination_ips)?,
        destination_ports: ports("destination_ports", entry.destination_ports)?,
        not_destination_ports: ports("not_destination_ports", entry.not_destination_ports)?,
    })
}

fn texts(place: &str, raw: Vec<raw::StringMatch>) -> Result<Vec<StringMatch>, Refusal> {
    let text = |entry: raw::StringMatch| match entry.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(_)) => Ok(StringMatch::Presence),
        None => Err(format!("{place}: a match of no known kind")),
    };
    raw.into_iter().map(text).collect()
}

fn ranges(place: &str, raw: Vec<raw::Range>) -> Result<Vec<Cidr>, Refusal> {
    let range = |entry: raw::Range| {
        // The prefix counts bits of the address as sent: a mapped one is not made shorter.
        let ip = ip(place, &entry.address)?;
        let mapped = if ip.is_ipv4() && entry.address.len() == 16 { 96 } else { 0 };
        let length = entry.length.checked_sub(mapped).and_then(|length| u8::try_from(length).ok());
        let range = length.and_then(|length| Cidr::new(ip, length));
        range.ok_or_else(|| format!("{place}: {ip}/{} is not a range", entry.length))
    };
    raw.into_iter().map(range).collect()
}

fn accounts(raw: Vec<raw::ServiceAccountMatch>) -> Vec<ServiceAccountMatch> {
    let account = |entry: raw::ServiceAccountMatch| ServiceAccountMatch {
        namespace: Arc::from(entry.namespace),
        service_account: Arc::from(entry.service_account),
    };
    raw.into_iter().map(account).collect()
}
