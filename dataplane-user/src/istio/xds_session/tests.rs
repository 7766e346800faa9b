//! What is refused, kept and said, message by message.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use prost::Message as _;

use super::super::wds_policy::{Authorization, Clause, Match, MatchType, Range, Rule, StringMatch};
use super::*;
use crate::state::{Action, PolicyScope};

fn policy_message(name: &str, raw: &Authorization) -> DeltaDiscoveryResponse {
    let body = Any { type_url: AUTHORIZATION_TYPE.into(), value: raw.encode_to_vec().into() };
    let resource = Resource { name: name.into(), resource: Some(body), ..Resource::default() };
    DeltaDiscoveryResponse {
        type_url: AUTHORIZATION_TYPE.into(),
        nonce: "1".into(),
        resources: vec![resource],
        ..DeltaDiscoveryResponse::default()
    }
}

fn with(entry: Match) -> Authorization {
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![entry] }] }];
    Authorization { name: "p".into(), namespace: "ns".into(), scope: 1, action: 1, rules, ..Default::default() }
}

#[test]
fn policy_elements_that_cannot_be_read_refuse_the_whole_policy_by_place() {
    let nothing = || vec![StringMatch { match_type: None }];
    let range = |address: &[u8], length| vec![Range { address: address.to_vec().into(), length }];
    let rows = [
        ("principals: a match of no known kind", Match { principals: nothing(), ..Default::default() }),
        ("not_principals", Match { not_principals: nothing(), ..Default::default() }),
        ("namespaces", Match { namespaces: nothing(), ..Default::default() }),
        ("source_ips: an address has 4 or 16 bytes", Match { source_ips: range(&[1], 8), ..Default::default() }),
        (
            "not_destination_ips: 1.2.3.4/33",
            Match { not_destination_ips: range(&[1, 2, 3, 4], 33), ..Default::default() },
        ),
        ("destination_ports: 65536 is not a port", Match { destination_ports: vec![65_536], ..Default::default() }),
        ("extensions", Match { extensions: vec![wds::Extension::default()], ..Default::default() }),
    ];
    for (reason, entry) in rows {
        let received = Session::default().receive(policy_message("ns/p", &with(entry)));
        let message = received.answer.error_detail.unwrap().message;
        assert!(message.starts_with(&format!("ns/p: rules[0].clauses[0].matches[0].{reason}")), "{message}");
        let stands_in = &received.update.policies[0];
        assert_eq!((stands_in.action, stands_in.rules.len()), (Action::Deny, 1), "{reason}: matches everything");
    }
}

#[test]
fn substitutes_keep_what_is_known_and_otherwise_deny() {
    let bad = || Match { destination_ports: vec![65_536], ..Default::default() };
    let rows = [
        ("ALLOW matches nothing", Authorization { action: 0, ..with(bad()) }, PolicyScope::Namespace, Action::Allow, 0),
        ("DENY matches everything", with(bad()), PolicyScope::Namespace, Action::Deny, 1),
        (
            "unknown action is DENY",
            Authorization { action: 9, ..with(Match::default()) },
            PolicyScope::Namespace,
            Action::Deny,
            1,
        ),
        (
            "unknown scope",
            Authorization { scope: 9, ..with(Match::default()) },
            PolicyScope::Unreadable,
            Action::Deny,
            1,
        ),
    ];
    for (why, raw, scope, action, rules) in rows {
        let received = Session::default().receive(policy_message("ns/p", &raw));
        let policy = &received.update.policies[0];
        assert_eq!((policy.scope, policy.action, policy.rules.len()), (scope, action, rules), "{why}");
        assert_eq!((&*policy.key, &*policy.namespace), ("ns/p", "ns"));
        assert!(policy.unreadable.is_some() && received.refused.len() == 1);
    }
}

#[test]
fn a_refused_policy_leaves_its_last_good_version_and_no_substitute() {
    let mut session = Session::default();
    let text = StringMatch { match_type: Some(MatchType::Exact("a".into())) };
    let good = with(Match { principals: vec![text], ..Default::default() });
    assert!(session.receive(policy_message("ns/p", &good)).refused.is_empty());
    let received =
        session.receive(policy_message("ns/p", &with(Match { destination_ports: vec![65_536], ..Default::default() })));
    assert_eq!((received.refused.len(), received.update.policies.len()), (1, 0));
    let gone = DeltaDiscoveryResponse {
        type_url: AUTHORIZATION_TYPE.into(),
        removed_resources: vec!["ns/p".into()],
        ..DeltaDiscoveryResponse::default()
    };
    assert_eq!(session.receive(gone).update.removed_policies, ["ns/p".into()]);
    assert!(session.is_empty());
}

#[test]
fn versions_of_what_is_held_are_told_as_they_came() {
    for version in ["a46843566d11646", "323eda56f53410e6", "", "0", "007", "v1", "FF", "-1", "+1"] {
        assert_eq!(Version::new(version).text(), version);
    }
}

#[test]
fn names_that_are_not_those_of_the_content_are_refused() {
    let workload = wds::Workload { uid: "u".into(), namespace: "ns".into(), ..Default::default() };
    let address = wds::Address { kind: Some(AddressType::Workload(workload)) };
    let body = Any { type_url: ADDRESS_TYPE.into(), value: address.encode_to_vec().into() };
    let message = |name: &str, body: Option<Any>| DeltaDiscoveryResponse {
        type_url: ADDRESS_TYPE.into(),
        resources: vec![Resource { name: name.into(), resource: body, ..Resource::default() }],
        ..DeltaDiscoveryResponse::default()
    };
    let mut session = Session::default();
    assert!(session.receive(message("u", Some(body.clone()))).refused.is_empty());
    for (name, body, reason) in [
        ("other", Some(body.clone()), "uid: \"u\" is not the resource's name"),
        ("u", Some(Any { type_url: "x".into(), ..body.clone() }), "type_url: \"x\""),
        ("u", None, "type_url: \"\""),
        ("u", Some(Any { value: vec![0xff].into(), ..body.clone() }), "cannot be decoded"),
        ("u", Some(Any { value: Vec::new().into(), ..body }), "type: neither"),
    ] {
        let received = session.receive(message(name, body));
        assert!(received.refused[0].1.starts_with(reason), "{:?}", received.refused);
        assert!(received.update.workloads.is_empty());
    }
    let foreign = DeltaDiscoveryResponse { type_url: "else".into(), ..DeltaDiscoveryResponse::default() };
    assert_eq!(session.receive(foreign).refused.len(), 1);
}

#[test]
fn both_types_must_be_answered_and_on_demand_asks_for_nothing_at_first() {
    let mut session = Session::default();
    let answer =
        |type_url: &str| DeltaDiscoveryResponse { type_url: type_url.into(), ..DeltaDiscoveryResponse::default() };
    assert!(!session.receive(answer(ADDRESS_TYPE)).complete);
    assert!(session.receive(answer(AUTHORIZATION_TYPE)).complete);
    let request = session.subscribe(ADDRESS_TYPE, true);
    assert_eq!(
        (request.resource_names_subscribe, request.resource_names_unsubscribe),
        (vec!["*".into()], vec!["*".into()])
    );
    assert!(session.subscribe(AUTHORIZATION_TYPE, true).resource_names_subscribe.is_empty());
    assert!(session.subscribe(ADDRESS_TYPE, false).resource_names_subscribe.is_empty());
}
