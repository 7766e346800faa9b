//! DNS of enrolled pods as real resolvers see it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testkit::fixture::TwoClusters;
use testkit::topology::address;
use testkit::{Pod, Proc, process, resolver};

const MESH_NAME: &str = "api.shop.mesh.internal";

/// Two clusters with names, and name servers outside the mesh: a real one at the client's node, an echo at the other cluster's.
struct Stage {
    clusters: TwoClusters,
    real: Proc,
    echo: Proc,
    client: Pod,
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/netns_dns").join(name)
}

impl Stage {
    fn start(name: &str) -> Self {
        let mut clusters = TwoClusters::build(name).unwrap();
        let db: Vec<Pod> = (0..2)
            .map(|number| clusters.topology.pod(clusters.client_node, &format!("default/db-{number}")).unwrap())
            .collect();
        let far = clusters.web[1].clone();
        clusters.topology.service("default/db", &[(5432, 5432)], &[&db[0], &db[1], &far]);
        clusters.topology.set_headless("default/db");
        clusters.topology.service("shop/api", &[(80, 8080)], &[&far]);
        clusters.topology.set_hostname("shop/api", MESH_NAME);
        let clusters = clusters.started().unwrap();
        let node = clusters.topology.node_place(clusters.client_node);
        let listen =
            ["--listen-address", &Self::real_at().to_string(), "--listen-address", &Self::real6_at().to_string()];
        let options = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--user=root",
            "--pid-file=",
            "--log-queries",
            "--log-facility=-",
            "--local-ttl=60",
            "--local=/cluster.local/",
            "--host-record=host.upstream.test,192.0.2.80,2001:db8::80",
        ];
        let real = node.spawn(&[&options[..], &listen].concat()).unwrap();
        let script = file("echo.py").to_string_lossy().into_owned();
        let echo_at = clusters.topology.node_ip(clusters.gateway_node).to_string();
        let other = clusters.topology.node_place(clusters.gateway_node);
        let mut echo = other.spawn(&["python3", &script, &echo_at]).unwrap();
        echo.wait_for("ready", Duration::from_secs(10)).unwrap();
        let client = clusters.client.clone();
        let stage = Self { clusters, real, echo, client };
        process::until(Duration::from_secs(10), || stage.dig(&["host.upstream.test"]).contains("192.0.2.80")).unwrap();
        stage
    }

    fn real_at() -> IpAddr {
        address::node4(1, 1).into()
    }

    fn real6_at() -> Ipv6Addr {
        address::node6(1, 1)
    }

    fn dig(&self, arguments: &[&str]) -> String {
        let server = format!("@{}", Self::real_at());
        let line = ["dig", "+tries=1", "+time=3", &server];
        self.client.run(&[&line[..], arguments].concat()).unwrap().stdout
    }

    fn lookup(&self, line: &[&str], server: &str) -> Vec<String> {
        let text = resolver::run_ok(&self.client, &[server], line).unwrap_or_else(|error| panic!("{error}"));
        let words = text.lines().filter_map(|line| line.split_whitespace().next());
        // `dig +short` shows aliases as well.
        let mut found: Vec<_> = words.filter(|word| !word.ends_with('.')).map(str::to_owned).collect();
        found.sort();
        found.dedup();
        found
    }

    /// Checks that a program finds what there is to find; `line` ends before the name.
    fn check(&self, what: &str, line: impl Fn(&str, bool) -> Vec<String>) {
        let topology = &self.clusters.topology;
        let cluster = self.clusters.clusters[0];
        let web = (topology.vip(cluster, "default/web").to_string(), topology.vip6(cluster, "default/web").to_string());
        let api = (topology.vip(cluster, "shop/api").to_string(), topology.vip6(cluster, "shop/api").to_string());
        let db_0 = topology.pods().iter().find(|pod| pod.data().name == "default/db-0").unwrap().data();
        let pod = (db_0.ip4.to_string(), db_0.ip6.to_string());
        let upstream = ("192.0.2.80".to_owned(), "2001:db8::80".to_owned());
        for (name, expected) in [
            ("web", &web),
            ("web.default", &web),
            ("web.default.svc.cluster.local", &web),
            (MESH_NAME, &api),
            ("db-0.db", &pod),
            ("host.upstream.test", &upstream),
        ] {
            for server in [Self::real_at().to_string(), Self::real6_at().to_string()] {
                for (v6, expected) in [(false, &expected.0), (true, &expected.1)] {
                    let line = line(name, v6);
                    let line: Vec<&str> = line.iter().map(String::as_str).collect();
                    let found = self.lookup(&line, &server);
                    assert_eq!(found, [expected.as_str()], "{what}: {name} at {server}, IPv6: {v6}");
                }
            }
        }
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn family(v6: bool) -> &'static str {
    if v6 { "6" } else { "4" }
}

/// Builds a program if its compiler is there.
fn compiled(compiler: &str, arguments: &[&str], environment: &[(&str, &str)]) -> bool {
    match Command::new(compiler).args(arguments).envs(environment.iter().copied()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        done => {
            let done = done.unwrap();
            assert!(done.status.success(), "{compiler}: {}", String::from_utf8_lossy(&done.stderr));
            true
        }
    }
}

#[test]
fn glibc_dig_and_python_get_right_answers_in_both_families() {
    testkit::needs_root!();
    let stage = Stage::start("resolvers");
    stage.check("glibc", |name, v6| words(&["getent", if v6 { "ahostsv6" } else { "ahostsv4" }, name]));
    stage.check("dig", |name, v6| words(&["dig", "+short", "+search", if v6 { "AAAA" } else { "A" }, name]));
    stage.check("dig over TCP", |name, v6| {
        words(&["dig", "+short", "+search", "+tcp", if v6 { "AAAA" } else { "A" }, name])
    });
    let python = "import socket,sys; f={'4':socket.AF_INET,'6':socket.AF_INET6}[sys.argv[2]]\n\
                  for a in socket.getaddrinfo(sys.argv[1], 80, f, socket.SOCK_STREAM): print(a[4][0])";
    stage.check("python", |name, v6| words(&["python3", "-c", python, name, family(v6)]));
}

#[test]
fn musl_gets_right_answers_in_both_families() {
    testkit::needs_root!();
    let folder = std::env::temp_dir().join(format!("causeway-musl-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("resolve").to_string_lossy().into_owned();
    let source = file("resolve.c").to_string_lossy().into_owned();
    if compiled("musl-gcc", &["-static", "-Os", "-o", &program, &source], &[]) {
        Stage::start("musl").check("musl", |name, v6| words(&[&program, name, family(v6)]));
    } else {
        println!("skipped: musl-gcc is not installed");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn go_gets_right_answers_in_both_families() {
    testkit::needs_root!();
    let folder = std::env::temp_dir().join(format!("causeway-go-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join("resolve").to_string_lossy().into_owned();
    let source = file("resolve.go").to_string_lossy().into_owned();
    // Without C it is Go's own resolver.
    if compiled("go", &["build", "-o", &program, &source], &[("CGO_ENABLED", "0"), ("GO111MODULE", "off")]) {
        Stage::start("go").check("go", |name, v6| words(&[&program, name, family(v6)]));
    } else {
        println!("skipped: go is not installed");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_is_not_ours_goes_byte_for_byte_to_the_server_that_was_asked_and_back() {
    testkit::needs_root!();
    let stage = Stage::start("bytes");
    let script = file("ask.py").to_string_lossy().into_owned();
    let echo = stage.clusters.topology.node_ip(stage.clusters.gateway_node).to_string();
    let (real, real6) = (Stage::real_at().to_string(), Stage::real6_at().to_string());
    let done = stage.client.run(&["python3", &script, &echo, &real, &real6]).unwrap();
    assert_eq!(done.stdout.trim(), "all as expected", "{}", done.stderr);
    // The names of the mesh never left the pod.
    assert!(!stage.real.stdout().contains("web.default") && !stage.real.stderr().contains("web.default"));
    let mesh = "03776562".to_owned() + "0764656661756c74";
    assert!(stage.echo.stdout().contains("heard") && !stage.echo.stdout().contains(&mesh));
}

#[test]
fn dig_sees_flags_types_and_the_server_it_asked() {
    testkit::needs_root!();
    let stage = Stage::start("dig");
    let full = stage.dig(&["web.default.svc.cluster.local"]);
    assert!(full.contains("status: NOERROR") && full.contains("flags: qr aa rd ra;"), "{full}");
    assert!(full.contains(&format!("SERVER: {}#53", Stage::real_at())), "{full}");
    assert!(full.contains("EDNS: version: 0"), "{full}");
    let empty = stage.dig(&["TXT", MESH_NAME]);
    assert!(empty.contains("status: NOERROR") && empty.contains("SOA") && empty.contains("ANSWER: 0"), "{empty}");
    let vip = stage.clusters.topology.vip(stage.clusters.clusters[0], "shop/api").to_string();
    assert!(stage.dig(&["-x", &vip]).contains(&format!("PTR\t{MESH_NAME}.")), "{}", stage.dig(&["-x", &vip]));
    let ports = stage.dig(&["+short", "SRV", "web.default.svc.cluster.local"]);
    assert_eq!(ports.trim(), "0 100 80 web.default.svc.cluster.local.");
    // A pod that only the other cluster can have gets an address that stands for its name.
    let reserved = stage.dig(&["+short", "db-9.db.default.svc.cluster.local"]);
    assert!(reserved.starts_with("240.254."), "{reserved}");
    assert_eq!(stage.dig(&["+short", "db-9.db.default.svc.cluster.local"]), reserved);
    let both = stage.dig(&["+short", "db.default.svc.cluster.local"]);
    assert_eq!(both.lines().count(), 2, "{both}");
    let counters = stage.clusters.topology.daemon(stage.clusters.client_node).status().unwrap();
    let count =
        |name: &str| counters.pointer(&format!("/counters/dns/{name}")).and_then(|count| count.as_u64()).unwrap();
    assert!(count("answered") >= 7 && count("upstream_requests") >= 1 && count("upstream_failures") == 0, "{counters}");
}

#[test]
fn curl_reaches_another_cluster_by_name() {
    testkit::needs_root!();
    let stage = Stage::start("curl");
    let server = Stage::real_at().to_string();
    for name in ["web", "web.default.svc.cluster.local", MESH_NAME] {
        let url = format!("http://{name}/");
        let answer = resolver::run_ok(
            &stage.client,
            &[&server],
            &["curl", "--silent", "--show-error", "--max-time", "10", &url],
        );
        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
        assert!(answer.starts_with("pod=default/web-"), "{name}: {answer}");
    }
}

#[test]
fn a_killed_engine_leaves_dns_refused_and_a_new_one_takes_over() {
    testkit::needs_root!();
    let mut stage = Stage::start("killed");
    let node = stage.clusters.client_node;
    assert!(stage.dig(&["+short", "before.upstream.test", "A"]).is_empty());
    stage.clusters.topology.kill_daemon(node).unwrap();
    for arguments in
        [&["leaked.upstream.test"][..], &["+tcp", "leaked.upstream.test"], &["web.default.svc.cluster.local"]]
    {
        let said = stage.dig(arguments);
        assert!(!said.contains("status:"), "{said}");
    }
    let heard = stage.real.stdout() + &stage.real.stderr();
    assert!(heard.contains("before.upstream.test") && !heard.contains("leaked.upstream.test"), "{heard}");
    stage.clusters.topology.launch(node).unwrap();
    stage.clusters.topology.wait_ready(node).unwrap();
    assert!(stage.dig(&["+short", "host.upstream.test"]).contains("192.0.2.80"));
}
