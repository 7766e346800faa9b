//! One test for each rule about names: WIRE 16, in its order.

use super::*;
use crate::dns::names::{candidates, wildcards};

const FORWARDED: Option<&[&str]> = None;
const EMPTY: Option<&[&str]> = Some(&[]);

fn check(rows: &[(&str, Kind, Option<&[&str]>, &str)]) {
    let mesh = Mesh::new();
    for (name, kind, expected, why) in rows {
        assert_eq!(mesh.data(name, *kind), expected.map(ips), "{name} {kind:?}: {why}");
    }
}

#[test]
fn a_and_aaaa_of_known_services_are_answered_and_all_else_is_forwarded() {
    check(&[
        ("web.shop.svc.cluster.local", Kind::A, Some(&["10.96.0.1"]), "its address in the client's network"),
        ("web.shop.svc.cluster.local", Kind::Aaaa, Some(&["fd96::1"]), "the same over IPv6"),
        ("www.example.org", Kind::A, FORWARDED, "not the mesh's"),
        ("nobody.shop.svc.cluster.local", Kind::A, FORWARDED, "the cluster's own DNS knows whether it exists"),
        ("web.shop.svc.cluster.local.example.org", Kind::A, FORWARDED, "the domain in the middle means nothing"),
        ("localhost", Kind::A, FORWARDED, "not a service"),
    ]);
}

#[test]
fn candidates_come_in_order_as_asked_expanded_then_stripped() {
    let domain = "cluster.local";
    let expanded = |name: &str| (name.to_owned(), false);
    let stripped = |name: &str| (name.to_owned(), true);
    for (asked, expected) in [
        ("web", vec![expanded("web"), expanded("web.shop.svc.cluster.local")]),
        (
            "web.bank",
            vec![
                expanded("web.bank"),
                expanded("web.bank.svc.cluster.local"),
                expanded("web.bank.shop.svc.cluster.local"),
            ],
        ),
        (
            "web.bank.svc",
            vec![
                expanded("web.bank.svc"),
                expanded("web.bank.svc.cluster.local"),
                expanded("web.bank.svc.svc.cluster.local"),
            ],
        ),
        ("db-0.db.bank", vec![expanded("db-0.db.bank"), expanded("db-0.db.bank.svc.cluster.local")]),
        ("db-0.db.bank.svc", vec![expanded("db-0.db.bank.svc"), expanded("db-0.db.bank.svc.cluster.local")]),
        ("a.b.c.d.e", vec![expanded("a.b.c.d.e")]),
        (
            "api.example.com.shop.svc.cluster.local",
            vec![
                expanded("api.example.com.shop.svc.cluster.local"),
                stripped("api.example.com"),
                stripped("api.example.com.svc.cluster.local"),
                stripped("api.example.com.shop"),
                stripped("api.example.com.shop.svc"),
            ],
        ),
    ] {
        let got: Vec<_> =
            candidates(asked, "shop", domain).into_iter().map(|found| (found.name, found.stripped)).collect();
        let head: Vec<_> = got.iter().take(expected.len()).cloned().collect();
        if asked.starts_with("api") {
            assert!(expected.iter().all(|name| got.contains(name)), "{asked}: {got:?}");
            assert_eq!(got.first(), expected.first(), "{asked}");
        } else {
            assert_eq!(head, expected, "{asked}");
            assert_eq!(got.len(), expected.len(), "{asked}: {got:?}");
        }
    }
}

#[test]
fn short_names_are_expanded_for_the_clients_namespace() {
    check(&[
        ("web", Kind::A, Some(&["10.96.0.1"]), "one label: the own namespace"),
        ("pay", Kind::A, FORWARDED, "another namespace's service needs that namespace"),
        ("pay.bank", Kind::A, Some(&["10.96.0.2"]), "two labels: service and namespace"),
        ("pay.bank.svc", Kind::A, Some(&["10.96.0.2"]), "three labels that end in svc"),
        ("db-0.db", Kind::A, Some(&["10.0.0.10"]), "two labels: pod and service of the own namespace"),
        ("db-0.db.shop", Kind::A, Some(&["10.0.0.10"]), "three labels: pod, service, namespace"),
        ("db-0.db.shop.svc", Kind::A, Some(&["10.0.0.10"]), "four labels that end in svc"),
    ]);
}

#[test]
fn names_with_a_search_domain_too_many_are_stripped_and_answered_with_an_alias() {
    let mesh = Mesh::new();
    for (asked, alias, address) in [
        ("api.example.com.shop.svc.cluster.local", Some("api.example.com"), "240.240.0.1"),
        ("api.example.com.svc.cluster.local", Some("api.example.com"), "240.240.0.1"),
        ("api.example.com.cluster.local", Some("api.example.com"), "240.240.0.1"),
        ("web.shop.shop.svc.cluster.local", Some("web.shop.svc.cluster.local"), "10.96.0.1"),
        ("web.shop.svc.cluster.local", None, "10.96.0.1"),
        ("web", None, "10.96.0.1"),
    ] {
        let answer = mesh.answer(asked, Kind::A).unwrap_or_else(|| panic!("{asked} was forwarded"));
        assert_eq!((answer.alias.as_deref(), answer.data), (alias, ips(&[address])), "{asked}");
    }
}

#[test]
fn wildcards_replace_leading_labels_from_the_left_and_give_no_alias() {
    let names: Vec<_> = wildcards("a.b.c").collect();
    assert_eq!(names, ["*.b.c", "*.c"]);
    let mesh = Mesh::new();
    for (asked, expected) in [
        ("x.wild.example.com", Some(&["240.240.0.2"][..])),
        ("y.x.wild.example.com", Some(&["240.240.0.2"])),
        ("x.wild.example.com.shop.svc.cluster.local", Some(&["240.240.0.2"])),
        ("wild.example.com", None),
        ("xwild.example.com", None),
    ] {
        let answer = mesh.answer(asked, Kind::A);
        assert_eq!(answer.as_ref().map(|answer| answer.data.clone()), expected.map(ips), "{asked}");
        assert_eq!(answer.and_then(|answer| answer.alias), None, "{asked}");
    }
}

#[test]
fn services_without_addresses_count_only_under_the_service_domain_with_one_address_of_each_endpoint() {
    check(&[
        ("db.shop.svc.cluster.local", Kind::A, Some(&["10.0.0.10", "10.0.0.11"]), "ready endpoints of this network"),
        ("db.shop.svc.cluster.local", Kind::Aaaa, Some(&["fd00::10"]), "those that have such an address"),
        ("headless.example.com", Kind::A, FORWARDED, "elsewhere it is somebody else's name"),
    ]);
}

#[test]
fn only_addresses_of_the_clients_network_are_given() {
    check(&[
        ("web.shop.svc.cluster.local", Kind::A, Some(&["10.96.0.1"]), "not that of net2"),
        ("far.shop.svc.cluster.local", Kind::A, EMPTY, "known, and without an address here"),
    ]);
}

#[test]
fn known_names_without_such_a_record_or_family_are_answered_empty() {
    check(&[
        ("four.shop.svc.cluster.local", Kind::Aaaa, EMPTY, "no IPv6 address"),
        ("family.shop.svc.cluster.local", Kind::Aaaa, EMPTY, "a family the service does not have"),
        ("family.shop.svc.cluster.local", Kind::A, Some(&["10.96.0.5"]), "the one it has"),
        ("web.shop.svc.cluster.local", Kind::Other, EMPTY, "another type of a name of the mesh"),
        ("web.shop.mesh.internal", Kind::Other, EMPTY, "another type of a name of the mesh"),
        (
            "web.shop.mesh.internal",
            Kind::Binding,
            EMPTY,
            "curl asks for it and must not hear that there is no such name",
        ),
        ("api.example.com", Kind::Binding, EMPTY, "hints in such a record would lead past the mesh"),
        ("api.example.com", Kind::Other, FORWARDED, "mail for a public name goes where it always went"),
        ("api.example.com", Kind::Srv, FORWARDED, "so do its other records"),
    ]);
    let zones = [("web.shop.svc.cluster.local", "cluster.local"), ("web.shop.mesh.internal", "mesh.internal")];
    for (name, zone) in zones {
        assert_eq!(Mesh::new().answer(name, Kind::Other).unwrap().zone, zone);
    }
}

#[test]
fn services_a_client_may_not_see_are_forwarded() {
    check(&[("secret.bank.svc.cluster.local", Kind::A, FORWARDED, "visible in its own namespace only")]);
}

#[test]
fn order_is_shuffled() {
    let mesh = Mesh::new();
    let mut number = 0u64;
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut random = || {
            number += 1;
            number
        };
        let answer = mesh.view().answer("db.shop.svc.cluster.local", Kind::A, &mut random).unwrap();
        first.insert(answer.data[0].clone());
    }
    assert_eq!(first.len(), 2);
}

#[test]
fn pods_of_headless_services_are_answered_by_name() {
    check(&[
        ("db-0.db.shop.svc.cluster.local", Kind::A, Some(&["10.0.0.10"]), "a pod of this network"),
        ("db-0.db.shop.svc.cluster.local", Kind::Aaaa, Some(&["fd00::10"]), "its IPv6 address"),
        ("db-1.db.shop.svc.cluster.local", Kind::Aaaa, EMPTY, "it has none"),
        ("db-2.db.shop.svc.cluster.local", Kind::A, EMPTY, "not ready, and still nobody else's name"),
        ("web-0.web.shop.svc.cluster.local", Kind::A, FORWARDED, "pods of other services have no names"),
    ]);
}

#[test]
fn pods_of_headless_services_in_other_networks_get_an_address_kept_for_their_name() {
    let mesh = Mesh::new();
    let asked = "db-7.db.shop.svc.cluster.local";
    let data = mesh.data(asked, Kind::A).unwrap();
    let [Data::A(ip)] = data[..] else { panic!("{data:?}") };
    assert_eq!(ip.octets()[..2], [240, 254]);
    assert_eq!(mesh.data(asked, Kind::A).unwrap(), data, "the same every time");
    let name = mesh.reserved.name_of(ip.into()).unwrap();
    assert_eq!((&*name.service, &*name.pod, &*name.network), ("shop/db.shop.svc.cluster.local", "db-7", "net2"));
    assert_eq!(mesh.data(asked, Kind::Aaaa), Some(Vec::new()));
    let [_, _, high, low] = ip.octets();
    let reverse = format!("{low}.{high}.254.240.in-addr.arpa");
    assert_eq!(mesh.data(&reverse, Kind::Ptr), Some(vec![Data::Ptr(asked.to_owned())]));
    assert_ne!(mesh.data("db-8.db.shop.svc.cluster.local", Kind::A).unwrap(), data, "another pod, another address");
}

#[test]
fn mesh_names_work_as_they_stand_also_when_several_services_have_them() {
    check(&[
        ("web.shop.mesh.internal", Kind::A, Some(&["240.240.0.3"]), "the address allocated to it"),
        ("both.shop.mesh.internal", Kind::A, Some(&["240.240.0.5"]), "of two, that of the client's namespace"),
        ("gone.shop.mesh.internal", Kind::A, FORWARDED, "unknown"),
    ]);
    assert_eq!(
        Mesh::new().found("web.shop.mesh.internal.shop.svc.cluster.local").unwrap().name,
        "web.shop.mesh.internal"
    );
}

#[test]
fn of_several_services_none_of_which_is_the_clients_the_preferred_namespaces_counts() {
    let name = "both.shop.mesh.internal";
    let hosts = ["bank", "attic", "zoo"].map(|namespace| {
        format!("- {{name: both, namespace: {namespace}, hostname: three.mesh.internal, vips: [net1/240.240.1.{}], ports: {{\"80\": 80}}}}\n", namespace.len())
    });
    let text = MESH.replace("services:\n- {name: web,", &format!("services:\n{}- {{name: web,", hosts.concat()));
    for (preferred, expected) in [("", "240.240.1.5"), ("zoo", "240.240.1.3"), ("nowhere", "240.240.1.5")] {
        let defaults = file::Defaults { preferred_namespace: preferred.into(), ..file::Defaults::default() };
        let model = file::parse_with(&text, Path::new("model.yaml"), &defaults).unwrap();
        let mesh = Mesh { model, reserved: Reserved::default() };
        assert_eq!(mesh.data("three.mesh.internal", Kind::A), Some(ips(&[expected])), "{preferred:?}");
        assert_eq!(mesh.data(name, Kind::A), Some(ips(&["240.240.0.5"])), "the client's own always counts first");
    }
}

#[test]
fn allocated_addresses_of_external_names_are_given_in_both_families() {
    check(&[
        ("api.example.com", Kind::A, Some(&["240.240.0.1"]), "allocated"),
        ("api.example.com", Kind::Aaaa, Some(&["2001:2::1"]), "allocated"),
    ]);
}

#[test]
fn ports_are_told_by_number() {
    let mesh = Mesh::new();
    let srv = |port, host: &str| Data::Srv(port, host.to_owned());
    let web = "web.shop.svc.cluster.local";
    let db = ["db-0.db.shop.svc.cluster.local", "db-1.db.shop.svc.cluster.local"];
    for (asked, expected, why) in [
        (web, Some(vec![srv(80, web), srv(443, web)]), "every port of the service"),
        ("_80._tcp.web.shop.svc.cluster.local", Some(vec![srv(80, web)]), "one port"),
        ("_81._tcp.web.shop.svc.cluster.local", None, "it has no such port"),
        ("_http._tcp.web.shop.svc.cluster.local", None, "the cluster's own DNS knows names of ports"),
        (
            "db.shop.svc.cluster.local",
            Some(vec![srv(5432, db[1]), srv(15432, db[0])]),
            "each pod of a headless service",
        ),
    ] {
        assert_eq!(mesh.data(asked, Kind::Srv), expected, "{asked}: {why}");
    }
    let answer = mesh.answer("db.shop.svc.cluster.local", Kind::Srv).unwrap();
    assert!(answer.additional.contains(&(db[0].to_owned(), "10.0.0.10".parse().unwrap())), "{answer:?}");
}

#[test]
fn addresses_of_services_have_names() {
    let mesh = Mesh::new();
    let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.d.f.ip6.arpa";
    let name = |text: &str| Some(vec![Data::Ptr(text.to_owned())]);
    for (asked, expected, why) in [
        ("1.0.96.10.in-addr.arpa", name("web.shop.svc.cluster.local"), "a virtual address"),
        (six, name("web.shop.svc.cluster.local"), "the same over IPv6"),
        ("1.0.240.240.in-addr.arpa", name("api.example.com"), "an allocated address"),
        ("2.0.240.240.in-addr.arpa", None, "a wildcard is no name"),
        ("3.0.96.10.in-addr.arpa", None, "a service the client may not see"),
        ("1.0.97.10.in-addr.arpa", None, "an address of another network"),
        ("9.9.9.9.in-addr.arpa", None, "not ours"),
        ("1.0.96.10.9.in-addr.arpa", None, "no address"),
        ("x.in-addr.arpa", None, "no address"),
    ] {
        assert_eq!(mesh.data(asked, Kind::Ptr), expected, "{asked}: {why}");
    }
}

#[test]
fn services_that_names_tell_by_their_form_can_be_asked_for() {
    let mesh = Mesh::new();
    let rows: [(&str, &[&str], &str); 9] = [
        ("new.shop.svc.cluster.local", &["shop/new.shop.svc.cluster.local"], "a service"),
        ("p-0.new.shop.svc.cluster.local", &["shop/new.shop.svc.cluster.local"], "a pod of one"),
        ("new.shop.mesh.internal", &["shop/new.shop.mesh.internal"], "a service of any cluster"),
        (
            "new.bank.svc.cluster.local.shop.svc.cluster.local",
            &["bank/new.bank.svc.cluster.local"],
            "and a search domain",
        ),
        ("web.shop.svc.cluster.local", &[], "known"),
        ("db-9.db.shop.svc.cluster.local", &[], "a pod of a known one"),
        ("www.example.com", &[], "no namespace in it"),
        ("shop.svc.cluster.local", &[], "a namespace alone"),
        ("www.example.com.shop.svc.cluster.local", &[], "a foreign name and a search domain"),
    ];
    for (asked, expected, why) in rows {
        assert_eq!(lookup::unknown_services(&mesh.model, mesh.view().client, asked), expected, "{asked}: {why}");
    }
}
