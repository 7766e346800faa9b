//! The node agent where kube-proxy translates service addresses by nftables.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod kubernetes_common;

use testkit::clusters::Clusters;

#[test]
fn pods_speak_hbone_beside_a_kube_proxy_that_works_by_nftables() {
    testkit::needs_root!();
    let clusters = Clusters::with_proxy("nftables").unwrap();
    let rules = clusters.exec("c1n1", &["nft", "list", "tables"]).unwrap();
    assert!(rules.contains("kube-proxy"), "kube-proxy works otherwise: {rules}");
    kubernetes_common::speak_hbone(&clusters);
}
