//! Choice among endpoints: WIRE 10.2 and 10.3.

use std::collections::BTreeMap;

use super::*;

/// Entry point of the other network.
const GATEWAY: &str =
    "  gateways: [{network: net2, addresses: [\"172.30.2.1:15008\"], identities: [\"spiffe://td/ns/gw/sa/gw\"]}]\n";

/// A service with the given load balancer and endpoints (uid and further fields of each). An endpoint whose fields name a
/// gateway is in the other network.
fn mesh(balancer: &str, endpoints: &[(&str, &str)]) -> Model {
    model_with(&text(balancer, endpoints), GATEWAY)
}

fn text(balancer: &str, endpoints: &[(&str, &str)]) -> String {
    let mut text = String::from(
        "workloads:\n- {uid: client, namespace: ns, workloadIps: [10.1.0.1], network: net1, node: n1, clusterId: c1, locality: {region: r1, zone: z1, subzone: s1}}\n",
    );
    for (index, (uid, fields)) in endpoints.iter().enumerate() {
        let (network, ips) = if fields.contains("networkGateway") {
            ("net2", String::new())
        } else {
            ("net1", format!("10.0.0.{}", index + 1))
        };
        text.push_str(&format!(
            "- {{uid: {uid}, namespace: ns, workloadIps: [{ips}], network: {network}, services: {{ns/s.ns.svc: {{}}}}{fields}}}\n"
        ));
    }
    text.push_str(&format!(
        "services:\n- {{name: s, namespace: ns, hostname: s.ns.svc, vips: [net1/10.96.0.1], ports: {{80: 80}}, subjectAltNames: [\"spiffe://td/ns/ns/sa/x\"], loadBalancer: {balancer}}}\n"
    ));
    text
}

/// How often each endpoint is chosen.
fn shares(model: &Model, load: &Load, draws: u32) -> BTreeMap<String, u32> {
    let client = workload(model, "client");
    let mut random = rng(11);
    let mut shares = BTreeMap::new();
    for _ in 0..draws {
        let chosen = match outbound(model, &client, address("10.96.0.1:80"), &[], load, &mut random) {
            Ok(Outbound::Plain { workload, .. }) => workload.uid.to_string(),
            Ok(Outbound::Nested(route)) => route.workload.uid.to_string(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => format!("error: {error}"),
        };
        *shares.entry(chosen).or_default() += 1;
    }
    shares
}

fn chosen(model: &Model) -> Vec<String> {
    shares(model, &Load::default(), 300).into_keys().collect()
}

const REMOTE: &str =
    ", locality: {region: r1, zone: z1}, protocol: HBONE, networkGateway: {destination: net2/172.30.2.1}";

/// WIRE 10.3: rank by preferences, the example's six ranks.
#[test]
fn failover_uses_only_the_best_rank_present() {
    let best = "{mode: Failover, routingPreferences: [Network, Region, Zone], healthPolicy: OnlyHealthy}";
    // From best to worst for a source in net1, r1, z1.
    let (region, elsewhere) = (REMOTE.replace("zone: z1", "zone: z2"), REMOTE.replace("region: r1", "region: r2"));
    let ladder = [
        ("a-same-zone", ", locality: {region: r1, zone: z1}"),
        ("b-same-region", ", locality: {region: r1, zone: z2}"),
        ("c-same-network", ", locality: {region: r2, zone: z1}"),
        ("d-other-network-same-zone", REMOTE),
        ("e-other-network-same-region", region.as_str()),
        ("f-other-network", elsewhere.as_str()),
    ];
    for from in 0..ladder.len() {
        let mut endpoints = ladder[from..].to_vec();
        let expected = endpoints[0].0;
        endpoints.reverse();
        let model = mesh(best, &endpoints);
        assert_eq!(chosen(&model), [expected], "among {endpoints:?}");
    }
}

/// WIRE 10.3: modes and scopes.
#[test]
fn modes_and_scopes() {
    /// Load balancer, endpoints, those chosen, why.
    type Row = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str], &'static str);
    let rows: [Row; 12] = [
        (
            "{mode: Standard, routingPreferences: [Node]}",
            &[("a", ", node: n1"), ("b", ", node: n2")],
            &["a", "b"],
            "standard ignores preferences",
        ),
        (
            "{mode: Strict, routingPreferences: [Node]}",
            &[("a", ", node: n1"), ("b", ", node: n2")],
            &["a"],
            "strict by node",
        ),
        (
            "{mode: Failover, routingPreferences: [Cluster]}",
            &[("a", ", clusterId: c1"), ("b", ", clusterId: c2")],
            &["a"],
            "failover by cluster",
        ),
        (
            "{mode: Failover, routingPreferences: [Region, Zone, Subzone]}",
            &[
                ("a", ", locality: {region: r1, zone: z1, subzone: s1}"),
                ("b", ", locality: {region: r1, zone: z1, subzone: s2}"),
            ],
            &["a"],
            "failover by subzone",
        ),
        (
            "{mode: Failover, routingPreferences: [Region, Zone]}",
            &[("a", ", locality: {region: r2, zone: z1}"), ("b", ", locality: {region: r2, zone: z2}")],
            &["a", "b"],
            "the count stops at the first mismatch",
        ),
        (
            "{mode: Strict, routingPreferences: [Region, Zone]}",
            &[("a", ", locality: {region: r1, zone: z1}"), ("b", ", locality: {region: r1, zone: z2}")],
            &["a"],
            "strict wants every preference",
        ),
        (
            "{mode: Failover, routingPreferences: [Region, Zone, Node]}",
            &[
                ("a", ", locality: {region: r1, zone: z1}, node: n1"),
                ("b", ", locality: {region: r1, zone: z1}, node: n2"),
            ],
            &["a"],
            "failover down to the node",
        ),
        (
            "{mode: Failover, routingPreferences: [Region, Zone]}",
            &[("a", ""), ("b", ", locality: {region: r2}")],
            &["a", "b"],
            "against a source with a locality nothing is not the same",
        ),
        (
            "{mode: Failover, routingPreferences: [Cluster, Node]}",
            &[("a", ", node: n1"), ("b", ", clusterId: c1")],
            &["b"],
            "each preference looks at its own field alone",
        ),
        ("{mode: Standard}", &[("a", ""), ("b", ", status: Unhealthy")], &["a"], "unhealthy endpoints are left out"),
        (
            "{mode: Standard, healthPolicy: AllowAll}",
            &[("a", ""), ("b", ", status: Unhealthy")],
            &["a", "b"],
            "unless the service takes all",
        ),
        ("{mode: Standard}", &[("a", ""), ("b", ", capacity: 0")], &["a"], "capacity 0 is never drawn"),
    ];
    for (balancer, endpoints, expected, why) in rows {
        assert_eq!(chosen(&mesh(balancer, endpoints)), expected, "{why}");
    }
}

/// WIRE 10.3: two empty texts are equal.
#[test]
fn without_a_locality_what_has_none_is_nearest() {
    let endpoints = [("a", ""), ("b", ", locality: {region: r1}"), ("c", REMOTE)];
    let text = text("{mode: Strict, routingPreferences: [Region, Zone]}", &endpoints);
    let source = ", locality: {region: r1, zone: z1, subzone: s1}";
    assert!(text.contains(source));
    assert_eq!(chosen(&model_with(&text.replacen(source, "", 1), GATEWAY)), ["a"]);
}

/// WIRE 10.3: STRICT.
#[test]
fn strict_without_a_match_has_no_upstream() {
    let model = mesh("{mode: Strict, routingPreferences: [Node]}", &[("b", ", node: n2")]);
    let all = chosen(&model);
    assert!(all.len() == 1 && all[0].contains("no endpoint matches all of [Node]"), "{all:?}");
}

/// WIRE 10.2: eligible endpoints and their target ports.
#[test]
fn endpoints_are_eligible_with_a_way_and_a_port() {
    /// Fields of the one endpoint, its own mapping, where the connection goes or words of the error, why.
    type Row = (&'static str, &'static str, Result<&'static str, &'static str>, &'static str);
    let rows: [Row; 9] = [
        ("", "{}", Ok("10.0.0.1:8080"), "the service's target port"),
        ("", "{80: 9090}", Ok("10.0.0.1:9090"), "the endpoint's own mapping first"),
        ("", "{80: 0}", Ok("10.0.0.1:8080"), "0 maps nothing"),
        ("", "{81: 9090}", Ok("10.0.0.1:8080"), "a mapping of another port"),
        (
            ", applicationTunnel: {protocol: NONE, port: 7000}",
            "{}",
            Ok("10.0.0.1:8080"),
            "the tunnel's port is the destination's affair",
        ),
        (", status: Unhealthy", "{}", Err("no healthy endpoint"), "not ready"),
        (", capacity: 0", "{}", Err("have no capacity"), "without weight"),
        (
            ", network: net2, networkGateway: {destination: net2/172.30.2.1}",
            "{}",
            Ok("nested net2"),
            "another network's with a gateway",
        ),
        (", network: net2", "{}", Err("or a gateway"), "another network's without one"),
    ];
    for (fields, mapping, expected, why) in rows {
        let network = if fields.contains("network: net2") { "" } else { ", network: net1" };
        let text = format!(
            "workloads:\n- {{uid: client, namespace: ns, workloadIps: [10.1.0.1], network: net1}}\n\
             - {{uid: a, namespace: ns, workloadIps: [10.0.0.1]{network}, services: {{ns/s.ns.svc: {mapping}}}{fields}}}\n\
             services:\n- {{name: s, namespace: ns, hostname: s.ns.svc, vips: [net1/10.96.0.1], ports: {{80: 8080}}, subjectAltNames: [\"spiffe://td/ns/ns/sa/x\"]}}\n"
        );
        let model = model_with(&text, GATEWAY);
        let result = outbound(&model, &workload(&model, "client"), address("10.96.0.1:80"), &[], &NoLoad, &mut rng(1));
        let told = result.map(|route| match route {
            Outbound::Plain { to, .. } => to.to_string(),
            Outbound::Nested(route) => format!("nested {}", route.network),
            other => format!("{other:?}"),
        });
        match (told, expected) {
            (Ok(told), Ok(expected)) => assert_eq!(told, expected, "{why}"),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{why}: {error}"),
            (told, _) => panic!("{why}: {told:?}, expected {expected:?}"),
        }
    }
    // Without a target port of the service: the endpoint's own, else the service port where a tunnel takes all.
    for (mapping, tunnel, expected) in [
        ("{80: 9090}", "", Ok(9090)),
        ("{}", "", Err(())),
        ("{}", ", applicationTunnel: {protocol: PROXY, port: 7000}", Ok(80)),
    ] {
        let text = format!(
            "workloads:\n- {{uid: client, namespace: ns, workloadIps: [10.1.0.1], network: net1}}\n\
             - {{uid: a, namespace: ns, workloadIps: [10.0.0.1], network: net1, services: {{ns/s.ns.svc: {mapping}}}{tunnel}}}\n\
             services:\n- {{name: s, namespace: ns, hostname: s.ns.svc, vips: [net1/10.96.0.1], ports: {{80: 0}}}}\n"
        );
        let model = model(&text);
        let result = outbound(&model, &workload(&model, "client"), address("10.96.0.1:80"), &[], &NoLoad, &mut rng(1));
        let port = result.map_err(drop).map(|route| match route {
            Outbound::Plain { to, .. } => to.port(),
            other => panic!("{other:?}"),
        });
        assert_eq!(port, expected, "{mapping}{tunnel}");
    }
}

/// WIRE 10.3: the draw by capacity.
#[test]
fn shares_follow_capacity_in_the_long_run() {
    let model = mesh("{}", &[("a", ", capacity: 1"), ("b", ", capacity: 3"), ("c", ", capacity: 1")]);
    // Load must not bend the split between unequal capacities.
    let load = Load { open: HashMap::from([("b".into(), 1000)]), ..Load::default() };
    let shares = shares(&model, &load, 10_000);
    assert!((5700..6300).contains(&shares["b"]), "{shares:?}");
    assert!((1800..2200).contains(&shares["a"]) && (1800..2200).contains(&shares["c"]), "{shares:?}");
}

#[test]
fn among_equals_the_less_busy_of_two_wins() {
    let model = mesh("{}", &[("a", ""), ("b", "")]);
    let load = Load { open: HashMap::from([("a".into(), 5)]), ..Load::default() };
    assert_eq!(shares(&model, &load, 100), BTreeMap::from([("b".into(), 100)]));
    let even = shares(&model, &Load::default(), 10_000);
    assert!((4700..5300).contains(&even["a"]), "{even:?}");
}

#[test]
fn ejected_endpoints_are_left_out_unless_all_are() {
    let model = mesh("{}", &[("a", ""), ("b", "")]);
    let eject = |names: &[&str]| Load { ejected: names.iter().map(ToString::to_string).collect(), ..Load::default() };
    assert_eq!(shares(&model, &eject(&["a"]), 50), BTreeMap::from([("b".into(), 50)]));
    assert_eq!(shares(&model, &eject(&["a", "b"]), 100).len(), 2);
}

#[test]
fn an_ejected_zone_falls_over_to_the_next() {
    let balancer = "{mode: Failover, routingPreferences: [Zone]}";
    let model = mesh(balancer, &[("near", ", locality: {zone: z1}"), ("far", ", locality: {zone: z2}")]);
    let load = Load { ejected: vec!["near".into()], ..Load::default() };
    assert_eq!(shares(&model, &load, 20), BTreeMap::from([("far".into(), 20)]));
}

/// WIRE 10.3: choice of the address.
#[test]
fn address_of_the_family_asked_for_and_allowed() {
    let rows = [
        ("", "10.96.0.1:80", "10.0.0.1"),
        ("", "[fd00:96::1]:80", "fd00::1"),
        (", ipFamilies: IPv6", "10.96.0.1:80", "fd00::1"),
        (", ipFamilies: IPv4", "[fd00:96::1]:80", "10.0.0.1"),
    ];
    for (families, to, expected) in rows {
        let model = model(&format!(
            "workloads:\n- {{uid: client, namespace: ns, workloadIps: [10.1.0.1], network: net1}}\n- {{uid: a, namespace: ns, workloadIps: [10.0.0.1, \"fd00::1\"], network: net1, services: {{ns/s.ns.svc: {{}}}}}}\nservices:\n- {{name: s, namespace: ns, hostname: s.ns.svc, vips: [net1/10.96.0.1, \"net1/fd00:96::1\"], ports: {{80: 80}}{families}}}\n"
        ));
        let result = outbound(&model, &workload(&model, "client"), address(to), &[], &NoLoad, &mut rng(1)).unwrap();
        let Outbound::Plain { to: got, .. } = result else { panic!("{result:?}") };
        assert_eq!(got.ip().to_string(), expected, "{families} {to}");
    }
}

/// Connections of a mesh of these capacities; `stays` says for how many further connections the one to an endpoint is open.
/// Returns how many each endpoint got.
fn live(capacities: &[u32], connections: usize, mut stays: impl FnMut(usize) -> usize, seed: u64) -> Vec<u32> {
    let names: Vec<(String, String)> = capacities
        .iter()
        .enumerate()
        .map(|(index, capacity)| (format!("e{index}"), format!(", capacity: {capacity}")))
        .collect();
    let rows: Vec<(&str, &str)> = names.iter().map(|(uid, fields)| (uid.as_str(), fields.as_str())).collect();
    let model = mesh("{}", &rows);
    let client = workload(&model, "client");
    let mut random = rng(seed);
    let mut load = Load::default();
    let mut ends: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut counts = vec![0; capacities.len()];
    for now in 0..connections {
        for ended in ends.remove(&now).unwrap_or_default() {
            *load.open.get_mut(&ended).unwrap() -= 1;
        }
        let result = outbound(&model, &client, address("10.96.0.1:80"), &[], &load, &mut random).unwrap();
        let Outbound::Plain { workload, .. } = result else { panic!("{result:?}") };
        let index: usize = workload.uid[1..].parse().unwrap();
        counts[index] += 1;
        *load.open.entry(workload.uid.to_string()).or_default() += 1;
        ends.entry(now + 1 + stays(index)).or_default().push(workload.uid.to_string());
    }
    counts
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// Whatever the capacities and however long connections last, the long-run split is that of the capacities.
    #[test]
    fn shares_are_those_of_the_capacities_also_under_load(
        capacities in proptest::collection::vec(0_u32..6, 1..6),
        longest in 1_usize..200,
        seed in 1_u64..1_000_000,
    ) {
        const CONNECTIONS: usize = 4_000;
        let total: u32 = capacities.iter().sum();
        proptest::prop_assume!(total > 0);
        let mut random = rng(seed ^ 0xabcd);
        let counts = live(&capacities, CONNECTIONS, |_| usize::try_from(random() % longest as u64).unwrap(), seed);
        for (capacity, count) in capacities.iter().zip(&counts) {
            let fair = CONNECTIONS as f64 * f64::from(*capacity) / f64::from(total);
            // Six standard deviations of a draw: a run in a billion is further off.
            let slack = 6.0 * (fair * (1.0 - f64::from(*capacity) / f64::from(total))).sqrt() + 1e-9;
            proptest::prop_assert!(
                (f64::from(*count) - fair).abs() <= slack,
                "capacities {:?} got {:?}", capacities, counts
            );
        }
    }

    /// Among equals one whose connections last gets fewer; another capacity's share stays what its weight says.
    #[test]
    fn an_overloaded_endpoint_gets_fewer_than_its_equals(equals in 2_usize..6, seed in 1_u64..1_000_000) {
        const CONNECTIONS: usize = 4_000;
        let mut capacities = vec![1; equals];
        capacities.push(equals as u32);
        let counts = live(&capacities, CONNECTIONS, |index| if index == 0 { 400 } else { 3 }, seed);
        let others = &counts[1..equals];
        proptest::prop_assert!(others.iter().all(|count| counts[0] * 4 < count * 3), "{:?}", counts);
        let share = f64::from(counts[equals]) / CONNECTIONS as f64;
        proptest::prop_assert!((0.45..0.55).contains(&share), "{:?}", counts);
    }
}
