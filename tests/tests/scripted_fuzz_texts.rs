//! Whatever peers, applications and files say, reading it ends and does not panic; what was understood can be said again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::net::SocketAddr;
use std::path::Path;

use causeway::decide::{self, PolicyContext};
use causeway::hbone::{
    Authority, Baggage, EndpointId, Forwarded, GatewaysHint, TraceParent, peer_version, proxy_header,
};
use causeway::identity::SpiffeId;
use causeway::state::{Model, file};
use testkit::fuzz::{Random, run};

const MESH: &str = r#"
workloads:
- {uid: a, name: db-0, namespace: ns, serviceAccount: a, workloadIps: [10.0.0.1, "fd00::1"], protocol: HBONE, node: n1, network: net1, authorizationPolicies: [ns/p], services: {ns/db.ns.svc.cluster.local: {80: 8080}}}
services:
- {name: db, namespace: ns, hostname: db.ns.svc.cluster.local, vips: [], ports: {80: 8080}}
- {name: web, namespace: ns, hostname: web.ns.svc.cluster.local, vips: [net1/10.96.0.1, "net1/fd96::1"], ports: {80: 8080}}
- {name: wild, namespace: ns, hostname: "*.example.com", vips: [net1/240.240.0.1], ports: {443: 443}}
policies:
- name: p
  namespace: ns
  scope: WorkloadSelector
  action: Deny
  dryRun: false
  rules: [[[{principals: [{Prefix: td/}, {Presence: []}], notNamespaces: [{Suffix: x}], sourceIps: [10.0.0.0/8], notDestinationPorts: [81], serviceAccounts: [{namespace: ns, serviceAccount: a}]}]]]
causeway:
  node: n1
  network: net1
  trustDomain: td
  identity: {caDirectory: certs}
  outbound: registry-only
  outboundAllowed: [{cidr: 203.0.113.0/24, ports: [443]}]
  enrol: [{workload: a, netns: a, outbound: allow-any}]
"#;

fn mesh() -> Model {
    file::parse(MESH, Path::new("model.yaml")).unwrap_or_else(|error| panic!("{error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn authorities_of_any_form_never_panic_and_lead_nowhere_but_to_the_mesh() {
    let good: [&[u8]; 6] = [
        b"10.0.0.1:8080",
        b"[fd00::1]:80",
        b"web.ns.svc.cluster.local:80",
        b"db-0.db.ns.svc.cluster.local:8080",
        b"[::ffff:10.0.0.1]:80",
        b"10.96.0.1:15008",
    ];
    let model = mesh();
    let own = model.workload("a").unwrap().clone();
    let local: SocketAddr = "10.0.0.1:15008".parse().unwrap();
    let peer = SpiffeId::parse("spiffe://td/ns/ns/sa/c").unwrap();
    run("authority", &good, |input, random| {
        let Ok(authority) = Authority::parse(&text(input)) else { return };
        assert_eq!(Authority::parse(&authority.to_string()), Ok(authority.clone()), "said again it is the same");
        if let Ok(target) = decide::inbound(&model, &own, local, &authority, Some(&peer)) {
            assert!(target.address == local.ip() && ![15001, 15006, 15008, 0].contains(&target.port), "{authority}");
        }
        let forwarded = decide::gateway(&model, &authority, &peer, &decide::NoLoad, &mut || random.number());
        assert!(forwarded.is_err(), "nothing is exported: {authority}");
    });
}

#[test]
fn headers_of_any_content_never_panic_and_said_again_are_the_same() {
    let good: [&[u8]; 6] = [
        b"k8s.cluster.name=c1,k8s.namespace.name=ns,k8s.deployment.name=web,service.name=web,cloud.region=r1",
        b"for=\"10.0.0.1:4711\";host=web.ns.svc.cluster.local",
        b"for=\"[fd00::1]:4711\"",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        b"172.30.2.1:15008,[fd00::2]:31008",
        b"0123456789abcdef",
    ];
    run("headers", &good, |input, _| {
        let baggage = Baggage::parse(std::iter::once(input));
        let again = baggage.to_header();
        assert_eq!(Baggage::parse(std::iter::once(again.as_bytes())).to_header(), again);
        if let Some(again) = Forwarded::parse(input).to_header() {
            assert_eq!(Forwarded::parse(again.as_bytes()).to_header(), Some(again));
        }
        if let Some(trace) = TraceParent::parse(input) {
            assert!(TraceParent::parse(trace.to_string().as_bytes()).is_some());
        }
        if let Some(gateways) = GatewaysHint::parse(input) {
            assert!(gateways.to_header().is_some());
        }
        let _ = (peer_version(input), EndpointId::parse(input));
    });
}

/// What an application's reader of PROXY headers does: the addresses, and the identity if there is one.
fn read_proxy_header(header: &[u8]) -> (SocketAddr, SocketAddr, Option<Vec<u8>>) {
    assert_eq!((&header[..12], header[12]), (&b"\r\n\r\n\0\r\nQUIT\n"[..], 0x21));
    let body = &header[16..];
    assert_eq!(usize::from(u16::from_be_bytes([header[14], header[15]])), body.len());
    let width = if header[13] == 0x11 { 4 } else { 16 };
    let ip = |bytes: &[u8]| match width {
        4 => std::net::IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
        _ => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
    };
    let port = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let ends = [(0, 2 * width), (width, 2 * width + 2)];
    let [source, destination] = ends.map(|(at, number)| SocketAddr::new(ip(&body[at..at + width]), port(number)));
    let rest = &body[2 * width + 4..];
    let identity = (!rest.is_empty()).then(|| {
        assert_eq!((rest[0], usize::from(u16::from_be_bytes([rest[1], rest[2]]))), (0xd0, rest.len() - 3));
        rest[3..].to_vec()
    });
    (source, destination, identity)
}

#[test]
fn proxy_headers_of_any_connection_say_what_they_were_made_of() {
    let address = |random: &mut Random| {
        let v4 = random.below(2) == 0;
        let bytes: [u8; 16] = std::array::from_fn(|_| random.byte());
        let ip = if v4 { <[u8; 4]>::try_from(&bytes[..4]).unwrap().into() } else { std::net::IpAddr::from(bytes) };
        SocketAddr::new(ip, u16::from_le_bytes([random.byte(), random.byte()]))
    };
    run("PROXY header", &[b"spiffe://td/ns/ns/sa/client"], |input, random| {
        let (source, destination) = (address(random), address(random));
        // Longer than any length field can say.
        let long = if random.below(50) == 0 { 2_000 } else { 1 };
        let identity = (random.below(4) > 0).then(|| text(input).repeat(long));
        let header = proxy_header(source, destination, identity.as_deref());
        let (from, to, read) = read_proxy_header(&header);
        let canonical = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        assert_eq!((canonical(from), canonical(to)), (canonical(source), canonical(destination)));
        if let Some(read) = read {
            assert_eq!(Some(read), identity.map(String::into_bytes));
        }
    });
}

#[test]
fn model_files_of_any_content_are_read_or_refused_with_a_place() {
    let mut accepted = 0;
    run("model file", &[MESH.as_bytes()], |input, _| match file::parse(&text(input), Path::new("model.yaml")) {
        Ok(model) => {
            accepted += 1;
            assert!(model.services().all(|service| model.endpoints(service).len() <= model.members(service).len()));
        }
        Err(error) => assert!(error.to_string().starts_with("model.yaml"), "{error}"),
    });
    assert!(accepted > 0, "a change in a name harms nothing");
}

#[test]
fn policies_of_any_content_decide_the_same_twice() {
    let good: [&[u8]; 4] = [
        b"{principals: [{Exact: td/ns/ns/sa/c}], notSourceIps: [10.0.0.0/8]}",
        b"{namespaces: [{Suffix: s}], destinationPorts: [80, 81], serviceAccounts: [{namespace: ns, serviceAccount: c}]}",
        b"{notPrincipals: [{Presence: []}]}",
        b"{destinationIps: [\"fd00::/8\"], notNamespaces: [{Prefix: \"\"}]}",
    ];
    let peer = SpiffeId::parse("spiffe://td/ns/ns/sa/c").unwrap();
    let mut read = 0;
    run("policy", &good, |input, random| {
        let action = if random.below(2) == 0 { "Deny" } else { "Allow" };
        let rules = format!(
            "- name: p\n  namespace: ns\n  scope: Namespace\n  action: {action}\n  dryRun: false\n  rules: [[[{}]]]\n",
            text(input)
        );
        let (before, after) = MESH.split_once("policies:\n").unwrap();
        let after = after.split_once("causeway:").unwrap().1;
        let mesh = before.replace(", authorizationPolicies: [ns/p]", "");
        let Ok(model) = file::parse(&format!("{mesh}policies:\n{rules}causeway:{after}"), Path::new("model.yaml"))
        else {
            return;
        };
        read += 1;
        let own = model.workload("a").unwrap();
        for identity in [None, Some(&peer)] {
            let context = PolicyContext {
                identity,
                source_ip: if random.below(2) == 0 { [10, 0, 0, 9].into() } else { [192, 0, 2, 9].into() },
                destination_ip: [10, 0, 0, 1].into(),
                destination_port: 80,
            };
            let (first, second) = (decide::policy(&model, own, &context), decide::policy(&model, own, &context));
            assert!(first == second && !first.reason.is_empty());
        }
    });
    assert!(read > 0);
}
