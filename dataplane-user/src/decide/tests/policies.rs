//! Authorization: WIRE 9.

use super::*;
use crate::identity::SpiffeId;

const OWN: &str = "workloads:\n- {uid: own, namespace: ns, workloadIps: [10.0.0.1], network: net1, authorizationPolicies: [LISTED]}\n";

/// A model with one workload and the given policies; all selected ones are listed.
fn mesh(policies: &str, listed: &str) -> Model {
    model(&format!("{}policies:\n{policies}", OWN.replace("LISTED", listed)))
}

struct Peer<'a> {
    identity: &'a str,
    ip: &'a str,
    port: u16,
}

const CLIENT: Peer<'static> = Peer { identity: "spiffe://td/ns/apps/sa/client", ip: "10.1.0.1", port: 80 };
const PLAINTEXT: Peer<'static> = Peer { identity: "", ..CLIENT };

fn ask(model: &Model, peer: &Peer<'_>) -> PolicyVerdict {
    let identity = (!peer.identity.is_empty()).then(|| SpiffeId::parse(peer.identity).unwrap());
    let context = PolicyContext {
        identity: identity.as_ref(),
        source_ip: peer.ip.parse().unwrap(),
        destination_ip: "10.0.0.1".parse().unwrap(),
        destination_port: peer.port,
    };
    policy(model, &workload(model, "own"), &context)
}

/// One mesh-wide policy.
fn one(action: &str, rules: &str) -> String {
    format!("- {{name: p, namespace: root, scope: Global, action: {action}, dryRun: false, rules: {rules}}}\n")
}

/// WIRE 9.2: order.
#[test]
fn order_of_actions() {
    let hit = "[[[{destinationPorts: [80]}]]]";
    let miss = "[[[{destinationPorts: [81]}]]]";
    let line = |name: &str, action: &str, dry: bool, rules: &str| {
        format!("- {{name: {name}, namespace: root, scope: Global, action: {action}, dryRun: {dry}, rules: {rules}}}\n")
    };
    let rows = [
        (vec![], true, "no policy"),
        (vec![line("d", "Deny", false, hit)], false, "deny matches"),
        (vec![line("d", "Deny", false, miss)], true, "deny does not match, no allow"),
        (vec![line("a", "Allow", false, hit)], true, "allow matches"),
        (vec![line("a", "Allow", false, miss)], false, "allow does not match"),
        (vec![line("a", "Allow", false, hit), line("d", "Deny", false, hit)], false, "deny before allow"),
        (vec![line("a", "Allow", false, miss), line("b", "Allow", false, hit)], true, "any allow"),
        (vec![line("d", "Deny", true, hit)], true, "dry-run deny only observes"),
        (vec![line("a", "Allow", true, miss)], true, "dry-run allow only observes"),
        (vec![line("a", "Allow", false, "[]")], false, "allow without rules allows nobody"),
        (vec![line("d", "Deny", false, "[]")], true, "deny without rules denies nobody"),
    ];
    for (policies, allowed, why) in rows {
        let text = if policies.is_empty() { " []".to_owned() } else { policies.concat() };
        let verdict = ask(&mesh(&text, ""), &CLIENT);
        assert_eq!(verdict.allowed, allowed, "{why}: {}", verdict.reason);
        assert!(!verdict.reason.is_empty() && !verdict.pending, "{why}");
    }
}

/// WIRE 9.2, steps 1 and 3.
#[test]
fn dry_run_policies_are_told() {
    let text = "- {name: d, namespace: root, scope: Global, action: Deny, dryRun: true, rules: [[[{destinationPorts: [80]}]]]}\n";
    assert_eq!(ask(&mesh(text, ""), &CLIENT).dry_run, [Arc::from("root/d")]);
    let none = text.replace("Deny", "Allow").replace("[80]", "[81]");
    assert_eq!(ask(&mesh(&none, ""), &CLIENT).dry_run, [Arc::from("root/d")], "none would match");
    assert!(ask(&mesh(&text.replace("[80]", "[81]"), ""), &CLIENT).dry_run.is_empty());
}

/// WIRE 9.3: how rules, clauses and matches combine.
#[test]
fn structure_of_rules() {
    let (hit, miss) = ("{destinationPorts: [80]}", "{destinationPorts: [81]}");
    let rows = [
        (format!("[[[{hit}]], [[{miss}]]]"), true, "rules: any"),
        (format!("[[[{hit}], [{miss}]]]"), false, "clauses: all"),
        (format!("[[[{miss}, {hit}]]]"), true, "matches: any"),
        ("[[]]".into(), true, "rule without clauses matches"),
        ("[[[]]]".into(), true, "clause without matches holds"),
        ("[[[{}]]]".into(), false, "match without fields never matches"),
        (format!("[[[{{}}, {hit}]]]"), true, "and is skipped among others"),
        ("[[[{destinationPorts: [80], sourceIps: [9.9.9.9]}]]]".into(), false, "fields: all"),
        ("[[[{destinationPorts: [79, 80]}]]]".into(), true, "values: any"),
        ("[[[{notDestinationPorts: [79, 80]}]]]".into(), false, "negative values: none"),
        ("[[[{notDestinationPorts: [79]}]]]".into(), true, "negative value that does not match"),
        ("[[[{destinationPorts: [80], notDestinationPorts: [80]}]]]".into(), false, "positive and negative"),
    ];
    for (rules, matches, why) in rows {
        let verdict = ask(&mesh(&one("Allow", &rules), ""), &CLIENT);
        assert_eq!(verdict.allowed, matches, "{why}: {rules}");
    }
}

/// WIRE 9.3: fields.
#[test]
fn fields() {
    let other = Peer { identity: "spiffe://td2/ns/other/sa/x", ip: "192.168.0.1", port: 81 };
    let v6 = Peer { ip: "fd00::9", ..CLIENT };
    let mapped = Peer { ip: "::ffff:10.1.0.1", ..CLIENT };
    let rows: [(&str, &Peer<'_>, bool, &str); 33] = [
        ("principals: [{Exact: td/ns/apps/sa/client}]", &CLIENT, true, "principal exact, without scheme"),
        ("principals: [{Exact: \"spiffe://td/ns/apps/sa/client\"}]", &CLIENT, false, "with scheme it is another text"),
        ("principals: [{Exact: td/ns/apps/sa/client}]", &other, false, "another principal"),
        ("principals: [{Prefix: td/}]", &CLIENT, true, "principal prefix"),
        ("principals: [{Prefix: td/}]", &other, false, "principal prefix of another trust domain"),
        ("principals: [{Suffix: /client}]", &CLIENT, true, "principal suffix"),
        ("principals: [{Presence: []}]", &CLIENT, true, "presence with identity"),
        ("principals: [{Presence: []}]", &PLAINTEXT, false, "presence without identity"),
        ("principals: [{Prefix: \"\"}]", &PLAINTEXT, false, "no identity: no positive principal matches"),
        ("notPrincipals: [{Exact: td/ns/apps/sa/client}]", &PLAINTEXT, true, "no identity: a negative principal holds"),
        ("notPrincipals: [{Presence: []}]", &PLAINTEXT, true, "strict mutual TLS matches plaintext"),
        ("notPrincipals: [{Presence: []}]", &CLIENT, false, "strict mutual TLS leaves identities alone"),
        ("namespaces: [{Exact: apps}]", &CLIENT, true, "namespace"),
        ("namespaces: [{Exact: apps}]", &other, false, "another namespace"),
        ("namespaces: [{Exact: apps}]", &PLAINTEXT, false, "no namespace without identity"),
        ("notNamespaces: [{Exact: apps}]", &PLAINTEXT, true, "empty namespace is not apps"),
        ("notNamespaces: [{Exact: apps}]", &CLIENT, false, "negative namespace"),
        ("serviceAccounts: [{namespace: apps, serviceAccount: client}]", &CLIENT, true, "service account"),
        (
            "serviceAccounts: [{namespace: apps, serviceAccount: client}]",
            &Peer { identity: "spiffe://else/ns/apps/sa/client", ..CLIENT },
            true,
            "its trust domain does not matter",
        ),
        ("serviceAccounts: [{namespace: apps, serviceAccount: x}]", &CLIENT, false, "another service account"),
        ("serviceAccounts: [{namespace: apps, serviceAccount: client}]", &PLAINTEXT, false, "none without identity"),
        (
            "notServiceAccounts: [{namespace: apps, serviceAccount: client}]",
            &PLAINTEXT,
            true,
            "negative holds without identity",
        ),
        ("sourceIps: [10.1.0.0/16]", &CLIENT, true, "source range"),
        ("sourceIps: [10.1.0.0/16]", &mapped, true, "source range and a mapped address"),
        ("sourceIps: [10.1.0.0/16]", &other, false, "outside of the range"),
        ("sourceIps: [0.0.0.0/0]", &v6, false, "all of IPv4 is not IPv6"),
        ("sourceIps: [\"fd00::/8\"]", &v6, true, "IPv6 range"),
        ("notSourceIps: [10.1.0.0/16]", &CLIENT, false, "negative range"),
        ("destinationIps: [10.0.0.1]", &CLIENT, true, "own address"),
        ("notDestinationIps: [10.0.0.1]", &CLIENT, false, "negative own address"),
        ("destinationPorts: [80]", &CLIENT, true, "port"),
        ("destinationPorts: [80]", &other, false, "another port"),
        ("notDestinationPorts: [80]", &other, true, "negative port"),
    ];
    for (field, peer, matches, why) in rows {
        let rules = format!("[[[{{{field}}}]]]");
        let allow = ask(&mesh(&one("Allow", &rules), ""), peer);
        assert_eq!(allow.allowed, matches, "{why}: ALLOW {field}");
        let deny = ask(&mesh(&one("Deny", &rules), ""), peer);
        assert_eq!(deny.allowed, !matches, "{why}: DENY {field}");
    }
}

/// WIRE 9.1: which ones apply.
#[test]
fn scopes() {
    let deny = |namespace: &str, scope: &str| {
        format!("- {{name: p, namespace: {namespace}, scope: {scope}, action: Deny, dryRun: false, rules: [[]]}}\n")
    };
    let rows = [
        ("root", "Global", "", false, "mesh-wide, whatever its namespace"),
        ("ns", "Namespace", "", false, "own namespace"),
        ("else", "Namespace", "", true, "another namespace"),
        ("ns", "WorkloadSelector", "ns/p", false, "listed"),
        ("ns", "WorkloadSelector", "", true, "not listed"),
        ("else", "Namespace", "else/p", true, "listing does not widen a namespace policy"),
    ];
    for (namespace, scope, listed, allowed, why) in rows {
        let verdict = ask(&mesh(&deny(namespace, scope), listed), &CLIENT);
        assert_eq!(verdict.allowed, allowed, "{why}: {}", verdict.reason);
    }
}

/// WIRE 9.5: what istiod makes of a PeerAuthentication, for all ports and for one.
#[test]
fn strict_mutual_tls_is_a_policy_that_denies_whoever_has_no_identity() {
    let strict = |name: &str, ports: &str| {
        format!(
            "- {{name: {name}, namespace: ns, scope: WorkloadSelector, action: Deny, dryRun: false, rules: [[[{{notPrincipals: [{{Presence: []}}]}}]{ports}]]}}\n"
        )
    };
    let (whole, one) = ("istio_converted_static_strict", "converted_peer_authentication_x");
    let plaintext_elsewhere = Peer { port: 81, ..PLAINTEXT };
    let rows = [
        (strict(whole, ""), "ns/istio_converted_static_strict", &PLAINTEXT, false, "plaintext"),
        (strict(whole, ""), "ns/istio_converted_static_strict", &CLIENT, true, "an identity"),
        (strict(whole, ""), "", &PLAINTEXT, true, "a workload that does not list it"),
        (
            strict(one, ", [{destinationPorts: [80]}]"),
            "ns/converted_peer_authentication_x",
            &PLAINTEXT,
            false,
            "its port",
        ),
        (
            strict(one, ", [{destinationPorts: [80]}]"),
            "ns/converted_peer_authentication_x",
            &plaintext_elsewhere,
            true,
            "another port",
        ),
    ];
    for (policy, listed, peer, allowed, why) in rows {
        let verdict = ask(&mesh(&policy, listed), peer);
        assert_eq!(verdict.allowed, allowed, "{why}: {}", verdict.reason);
    }
}

/// The file reader refuses unknown names; the control plane does not.
fn with_unknown(name: &str) -> Model {
    let known = model(&OWN.replace("LISTED", ""));
    let mut own = (*workload(&known, "own")).clone();
    own.policies = vec![name.into()];
    Model::new(known.node.clone(), vec![own], Vec::new(), Vec::new())
}

/// WIRE 9.1: those that are not known.
#[test]
fn unknown_listed_policies_fail_closed() {
    let rows = [
        ("ns/unknown", &CLIENT, false, "nobody knows what it forbids"),
        ("ns/unknown", &PLAINTEXT, false, "nor for plaintext"),
        ("ns/converted_peer_authentication_x", &CLIENT, true, "it can only forbid plaintext"),
        ("ns/converted_peer_authentication_x", &PLAINTEXT, false, "and plaintext it is"),
    ];
    for (name, peer, allowed, why) in rows {
        let verdict = ask(&with_unknown(name), peer);
        assert_eq!(verdict.allowed, allowed, "{why}: {}", verdict.reason);
        assert_eq!(verdict.pending, !allowed, "{why}");
    }
}
