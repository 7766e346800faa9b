//! Authorities against roots, with real certificates.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use base64::Engine as _;
use serde_json::{Value, json};

use super::certificates::Authorities;
use super::check::{CHECKS, Scene};
use super::facts::{Cluster, Kind};
use crate::identity::ca;

/// Clusters with intermediates of one root, made as `causeway ca` does.
fn clusters(folder: &std::path::Path, names: &[&str]) -> Vec<Cluster> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    ca::create(folder, "cluster.local", &names).unwrap();
    let secret = |name: &String| -> Value {
        let data = |file: &str| {
            let bytes = std::fs::read(folder.join(name).join(file)).unwrap();
            base64::engine::general_purpose::STANDARD.encode(bytes)
        };
        let files = ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"];
        let data: serde_json::Map<String, Value> =
            files.iter().map(|file| ((*file).to_owned(), json!(data(file)))).collect();
        json!({"metadata": {"name": "cacerts", "namespace": "istio-system"}, "data": data})
    };
    let all = names.iter().map(|name| {
        let space = json!({"metadata": {"name": "kube-system", "uid": format!("{}{name}", folder.display())}});
        let mut cluster =
            Cluster { context: name.clone(), istio_namespace: "istio-system".to_owned(), ..Cluster::default() };
        cluster.objects.extend([(Kind::Namespace, vec![space]), (Kind::Secret, vec![secret(name)])]);
        cluster
    });
    all.collect()
}

#[test]
fn intermediates_lead_to_their_own_root_alone_and_have_their_time() {
    let folder = std::env::temp_dir().join(format!("causeway-authorities-{}", std::process::id()));
    let same = clusters(&folder.join("one"), &["c1", "c2"]);
    let other = clusters(&folder.join("two"), &["c3"]);
    let [one, two, three] = [&same[0], &same[1], &other[0]].map(Authorities::of);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(one.lead_to(&two.roots) && two.lead_to(&one.roots));
    assert!(!one.lead_to(&three.roots) && !three.lead_to(&two.roots), "a foreign root of the same name");

    let signing = one.signing.clone().unwrap();
    let check = CHECKS.iter().find(|check| check.name == "certificates").unwrap();
    let (valid, day) = (signing.not_before + 1, 86_400);
    for (clusters, now, expected) in [
        (vec![same[0].clone(), same[1].clone()], valid, None),
        (vec![same[0].clone(), other[0].clone()], valid, Some("leads to no root of c3")),
        (same.clone(), signing.not_after + 1, Some("expired 0 days ago")),
        (same.clone(), signing.not_after - 3 * day, Some("expires in 3 days")),
        (same.clone(), signing.not_before - 1, Some("is not valid yet")),
    ] {
        let scene = Scene { clusters, now, ..Scene::default() };
        let found: Vec<String> = check.findings(&scene).into_iter().map(|finding| finding.what).collect();
        match expected {
            None => assert_eq!(found, Vec::<String>::new()),
            Some(text) => assert!(
                found.iter().any(|what| what.contains(text) && what.contains(&signing.sha256)),
                "{text:?}: {found:?}"
            ),
        }
    }
}

#[test]
fn what_cannot_be_read_is_no_authority_and_told() {
    let folder = std::env::temp_dir().join(format!("causeway-unreadable-{}", std::process::id()));
    let fine = clusters(&folder, &["c1"]).remove(0);
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(Authorities::of(&fine).broken, Vec::<String>::new());
    let encoded = |text: &str| json!(base64::engine::general_purpose::STANDARD.encode(text));
    for (file, value, expected) in [
        ("ca-cert.pem", json!("!!!"), "ca-cert.pem: not in base 64"),
        ("cert-chain.pem", json!(7), "cert-chain.pem: not in base 64"),
        ("root-cert.pem", encoded("x"), "root-cert.pem: no certificate in it"),
    ] {
        let mut cluster = fine.clone();
        cluster.objects.get_mut(&Kind::Secret).unwrap()[0]["data"][file] = value;
        let broken = Authorities::of(&cluster).broken;
        assert_eq!(broken, [expected]);
    }
}
