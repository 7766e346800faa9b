//! Tables of names over a small model, one for each rule; and arbitrary packets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod messages;
mod rules;

use std::path::Path;
use std::time::Instant;

use super::answer::{Answer, Data, Kind, View};
use super::{Reserved, lookup};
use crate::state::{Model, file};

/// Client `shop/client` of network `net1`, and services of every kind.
const MESH: &str = r#"
workloads:
- {uid: c1//Pod/shop/client, name: client, namespace: shop, serviceAccount: client, workloadIps: [10.0.0.1], protocol: HBONE, node: n1, network: net1, clusterId: c1, trustDomain: td}
- {uid: c1//Pod/shop/db-0, name: db-0, namespace: shop, workloadIps: [10.0.0.10, "fd00::10"], protocol: HBONE, node: n1, network: net1, clusterId: c1, trustDomain: td, services: {"shop/db.shop.svc.cluster.local": {"5432": 15432}}}
- {uid: c1//Pod/shop/db-1, name: db-1, namespace: shop, workloadIps: [10.0.0.11], protocol: HBONE, node: n1, network: net1, clusterId: c1, trustDomain: td, services: {"shop/db.shop.svc.cluster.local": {"5432": 5432}}}
- {uid: c1//Pod/shop/db-2, name: db-2, namespace: shop, workloadIps: [10.0.0.12], protocol: HBONE, node: n1, network: net1, clusterId: c1, trustDomain: td, status: Unhealthy, services: {"shop/db.shop.svc.cluster.local": {"5432": 5432}}}
- {uid: net2/SplitHorizonWorkload/istio-eastwest/eastwest/172.30.2.1/shop/db.shop.svc.cluster.local, name: remote-db, namespace: shop, workloadIps: [], protocol: HBONE, network: net2, clusterId: c2, trustDomain: td, capacity: 3, networkGateway: {destination: net2/172.30.2.1, hboneMtlsPort: 15008}, services: {"shop/db.shop.svc.cluster.local": {"5432": 0}}}
- {uid: NetworkGateway/net2/172.30.2.1/15008, name: eastwest, namespace: istio-eastwest, serviceAccount: eastwest, workloadIps: [172.30.2.1], protocol: TCP, network: net2, clusterId: c2, trustDomain: td}
services:
- {name: web, namespace: shop, hostname: web.shop.svc.cluster.local, vips: [net1/10.96.0.1, "net1/fd96::1", net2/10.97.0.1], ports: {"80": 8080, "443": 8443}}
- {name: four, namespace: shop, hostname: four.shop.svc.cluster.local, vips: [net1/10.96.0.4], ports: {"80": 8080}}
- {name: family, namespace: shop, hostname: family.shop.svc.cluster.local, vips: [net1/10.96.0.5, "net1/fd96::5"], ipFamilies: IPv4, ports: {"80": 8080}}
- {name: pay, namespace: bank, hostname: pay.bank.svc.cluster.local, vips: [net1/10.96.0.2], ports: {"80": 8080}}
- {name: secret, namespace: bank, hostname: secret.bank.svc.cluster.local, vips: [net1/10.96.0.3], ports: {"80": 8080}, visibility: Namespace}
- {name: db, namespace: shop, hostname: db.shop.svc.cluster.local, vips: [], ports: {"5432": 5432}}
- {name: far, namespace: shop, hostname: far.shop.svc.cluster.local, vips: [net2/10.97.0.9], ports: {"80": 8080}}
- {name: api, namespace: shop, hostname: api.example.com, vips: [net1/240.240.0.1, "net1/2001:2::1"], ports: {"443": 443}}
- {name: any, namespace: shop, hostname: "*.wild.example.com", vips: [net1/240.240.0.2], ports: {"443": 443}}
- {name: bare, namespace: shop, hostname: headless.example.com, vips: [], ports: {"443": 443}}
- {name: web-mesh, namespace: shop, hostname: web.shop.mesh.internal, vips: [net1/240.240.0.3, net2/240.240.0.3], ports: {"80": 8080}}
- {name: both, namespace: bank, hostname: both.shop.mesh.internal, vips: [net1/240.240.0.4], ports: {"80": 8080}}
- {name: both, namespace: shop, hostname: both.shop.mesh.internal, vips: [net1/240.240.0.5], ports: {"80": 8080}}
causeway:
  node: n1
  cluster: c1
  network: net1
  trustDomain: td
  identity: {caDirectory: certs}
"#;

struct Mesh {
    model: Model,
    reserved: Reserved,
}

impl Mesh {
    fn new() -> Self {
        let model = file::parse(MESH, Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"));
        Self { model, reserved: Reserved::default() }
    }

    fn view(&self) -> View<'_> {
        let client = self.model.workload("c1//Pod/shop/client").unwrap();
        View { model: &self.model, client, reserved: &self.reserved, now: Instant::now() }
    }

    fn answer(&self, name: &str, kind: Kind) -> Option<Answer> {
        self.view().answer(name, kind, &mut || 0)
    }

    /// Records in order of their value.
    fn data(&self, name: &str, kind: Kind) -> Option<Vec<Data>> {
        let mut data = self.answer(name, kind)?.data;
        data.sort();
        Some(data)
    }

    fn found(&self, name: &str) -> Option<lookup::Found> {
        lookup::find(&self.model, self.view().client, name)
    }
}

fn ips(texts: &[&str]) -> Vec<Data> {
    texts.iter().map(|text| Data::from(text.parse::<std::net::IpAddr>().unwrap())).collect()
}
