//! The names a question may mean.
//!
//! Resolvers append search domains before or after they ask for the name as it stands, and applications leave out what their
//! own search domains would add. So several names stand behind one question; they are tried in order.

use std::collections::HashSet;

/// One name to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The name, in lower case and without a trailing dot.
    pub name: String,
    /// Whether a search domain was removed from the name that was asked.
    pub stripped: bool,
}

/// The names to look for when a workload of `namespace` asks for `asked`, in order: as it stands, its expansions, then without
/// a trailing search domain and that name's expansions. `domain` is the cluster's.
#[must_use]
pub fn candidates(asked: &str, namespace: &str, domain: &str) -> Vec<Candidate> {
    let own = format!("{namespace}.svc.{domain}");
    let services = format!("svc.{domain}");
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    let mut add = |name: String, stripped: bool| {
        if seen.insert(name.clone()) {
            found.push(Candidate { name, stripped });
        }
    };
    add(asked.to_owned(), false);
    for name in expansions(asked, &own, &services, domain) {
        add(name, false);
    }
    for search in [own.as_str(), services.as_str(), domain] {
        let Some(rest) = without(asked, search) else { continue };
        add(rest.to_owned(), true);
        for name in expansions(rest, &own, &services, domain) {
            add(name, true);
        }
    }
    found
}

/// Full names that a short one may stand for, by the number of its labels: `service`, `service.namespace` (or `pod.service`),
/// `service.namespace.svc` (or `pod.service.namespace`), `pod.service.namespace.svc`.
fn expansions(name: &str, own: &str, services: &str, domain: &str) -> Vec<String> {
    let is_service = name.ends_with(".svc");
    match name.split('.').count() {
        1 => vec![format!("{name}.{own}")],
        2 => vec![format!("{name}.{services}"), format!("{name}.{own}")],
        3 if is_service => vec![format!("{name}.{domain}"), format!("{name}.{services}")],
        3 => vec![format!("{name}.{services}")],
        4 if is_service => vec![format!("{name}.{domain}")],
        _ => Vec::new(),
    }
}

/// `name` without a trailing `.suffix`.
#[must_use]
pub fn without<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    name.strip_suffix(suffix)?.strip_suffix('.').filter(|rest| !rest.is_empty())
}

/// Whether `name` is below `domain`.
#[must_use]
pub fn is_below(name: &str, domain: &str) -> bool {
    without(name, domain).is_some()
}

/// The wildcards that cover `name`, the narrowest first: leading labels are replaced by `*` from the left.
pub fn wildcards(name: &str) -> impl Iterator<Item = String> + '_ {
    name.match_indices('.').map(|(at, _)| format!("*{}", name.get(at..).unwrap_or_default()))
}
