//! Proof that nothing here works by netfilter: the rule sets of a namespace, in every dialect, must be empty.

use crate::{Place, Result};

/// Every line of rules or chains in the namespace, in the words of the tool that found it; empty is the promise.
///
/// # Errors
/// If one of the tools cannot be run.
pub fn rules(place: &Place) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for tool in ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
        // A kernel without the legacy tables makes those tools fail; then there is nothing they could hide.
        let done = place.run(&[tool])?;
        let lines = done.stdout.lines().filter(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && !line.starts_with("Table")
        });
        found.extend(lines.map(|line| format!("{tool}: {line}")));
    }
    let listed = place.run_ok(&["nft", "list", "ruleset"])?;
    found.extend(listed.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("nft: {line}")));
    Ok(found)
}
