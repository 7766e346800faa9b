//! Start, crash, adoption and removal; several nodes on one kernel; programs of others; wrong input.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod redirect_common;

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use causeway::redirect::{EnrolError, LoadError, NetnsRef, RedirectConfig, Redirector, probe, uninstall};
use redirect_common::{
    BPFFS, Node, POD4, accept, addr, bpf, counters, helper, helper_entry, ip_addr, is_silent, next_original, runnable,
};

#[test]
fn helper_process() {
    helper_entry();
}

/// A daemon in a process of its own, to be killed.
struct Daemon(Child);

#[test]
fn daemon_process() {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(at) = arguments.iter().position(|argument| argument == "causeway-daemon") else { return };
    let (name, root) = (&arguments[at + 1], std::path::PathBuf::from(&arguments[at + 2]));
    fs::write(root.join("system/cgroup.procs"), "0").unwrap();
    let config = RedirectConfig::new(name.clone(), root.clone(), root.join("pods"));
    let mut redirector = Redirector::start(config, helper(1)).unwrap();
    let request = redirect_common::request(format!("{name}-a"), "uid-a");
    let enrolled = redirector.enrol(&request).unwrap();
    println!("\nready");
    enrolled.listeners[0].outbound.set_nonblocking(false).unwrap();
    loop {
        std::mem::forget(enrolled.listeners[0].outbound.accept().unwrap());
    }
}

impl Daemon {
    fn start(node: &Node) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["daemon_process", "--exact", "--nocapture", "--test-threads=1", "causeway-daemon", &node.name])
            .arg(&node.root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.as_mut().unwrap());
        output.lines().map(Result::unwrap).find(|line| line == "ready").expect("the daemon failed");
        Self(child)
    }
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refused(result: io::Result<TcpStream>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED))
}

/// What enrolment changes inside a namespace: rules, the routes of our table, sysctl values.
fn traces(node: &Node, short: &str) -> String {
    let netns = node.netns(short);
    let mut traces = String::new();
    for arguments in ["rule list", "-6 rule list", "route show table 100", "-6 route show table 100"] {
        let output = Command::new("ip").args(["-n", &netns]).args(arguments.split(' ')).output().unwrap();
        traces += &String::from_utf8_lossy(&output.stdout);
    }
    traces += &node.inside(short, || {
        ["ipv4/tcp_fwmark_accept", "core/somaxconn", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"]
            .map(|name| fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap())
            .concat()
    });
    traces
}

#[test]
fn a_killed_daemon_leaves_its_pods_refused_until_the_next_one_adopts_them() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let before = traces(&node, "a");
    let daemon = Daemon::start(&node);
    node.enter("pods/a");
    let application = node.listen("a", "[::]:8080");
    let outside = node.listen("x", "[::]:80");
    assert!(node.connect("a", "198.18.0.1:80").is_ok());
    let running = Redirector::start(node.config(1), helper(1)).unwrap_err();
    assert!(running.to_string().contains("running daemon"), "a second daemon is refused: {running}");
    assert!(uninstall(BPFFS.as_ref(), &node.name, "/proc".as_ref()).is_err(), "and so is removal under a running one");
    daemon.kill();
    for to in ["198.18.0.1:80", "[2001:db8::1]:80"] {
        assert!(refused(node.connect("a", to)), "{to}: outbound is refused");
    }
    for to in ["10.98.1.2:8080", "[fd98::1:2]:8080", "10.98.1.2:15008"] {
        assert!(refused(node.connect("x", to)), "{to}: inbound is reset");
    }
    assert!(is_silent(&application) && is_silent(&outside), "nothing passes in the clear");
    assert_eq!(node.pending_flows(), 0, "records of failed connections are left");
    assert_ne!(traces(&node, "a"), before);

    let mut redirector = node.redirector(node.config(1));
    let adopted = redirector.adopted();
    assert_eq!(adopted.len(), 1);
    assert_eq!((adopted[0].uid.as_str(), adopted[0].netns.ends_with(node.netns("a"))), ("uid-a", true));
    assert!(refused(node.connect("a", "198.18.0.1:80")), "still refused before it is enrolled again");
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    assert!(redirector.adopted().is_empty());
    let _stream = node.connect("a", "198.18.0.1:80").unwrap();
    assert_eq!(next_original(&enrolled, &redirector.original_dst()), Some(addr("198.18.0.1:80")));
    let _stream = node.connect("x", "10.98.1.2:8080").unwrap();
    assert!(accept(&enrolled.listeners[0].plaintext).is_some());
    drop(enrolled);
    redirector.forget("uid-a").unwrap();
    assert_eq!(traces(&node, "a"), before, "the values from before the first daemon are restored");
}

#[test]
fn adopted_pods_that_are_not_wanted_are_swept() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let before = traces(&node, "a");
    Daemon::start(&node).kill();
    let mut redirector = node.redirector(node.config(1));
    let failures = redirector.sweep();
    assert!(failures.is_empty(), "{failures:?}");
    assert!(redirector.adopted().is_empty());
    let outside = node.listen("x", "[::]:80");
    let _stream = node.connect("a", "198.18.0.1:80").unwrap();
    assert!(accept(&outside).is_some(), "connections go out again");
    assert_eq!(traces(&node, "a"), before);
    assert_eq!(fs::read_dir(node.layout().join("pods")).unwrap().count(), 0);
}

#[test]
fn adopted_pods_that_are_wanted_stay_refused_when_they_cannot_be_enrolled() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    Daemon::start(&node).kill();
    let mut redirector = node.redirector(node.config(1));
    let mut request = node.request("a");
    request.netns = NetnsRef::Name("does-not-exist".into());
    assert!(redirector.enrol(&request).is_err());
    assert!(redirector.sweep_unless(|uid| uid == "uid-a").is_empty());
    assert_eq!(redirector.adopted().len(), 1);
    assert!(refused(node.connect("a", "198.18.0.1:80")));
    assert!(refused(node.connect("x", "10.98.1.2:8080")));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let _stream = node.connect("a", "198.18.0.1:80").unwrap();
    assert_eq!(next_original(&enrolled, &redirector.original_dst()), Some(addr("198.18.0.1:80")));
}

#[test]
fn adoption_survives_a_namespace_that_is_gone() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    Daemon::start(&node).kill();
    redirect_common::ip(&format!("netns delete {}", node.netns("a")));
    let redirector = node.redirector(node.config(1));
    drop(redirector);
    let mut redirector = node.redirector(node.config(1));
    assert!(redirector.sweep().is_empty());
    assert!(redirector.adopted().is_empty());
    redirect_common::ip(&format!("netns add {}", node.netns("a")));
}

#[test]
fn uninstall_leaves_nothing() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let before = traces(&node, "a");
    Daemon::start(&node).kill();
    assert!(node.pins().exists());
    // A pin directory of another layout version goes too.
    fs::create_dir_all(node.pins().join("v0/maps")).unwrap();
    let failures = uninstall(BPFFS.as_ref(), &node.name, "/proc".as_ref()).unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    assert!(!node.pins().exists());
    assert_eq!(traces(&node, "a"), before);
    node.enter("pods/a");
    let (inside, outside) = (node.listen("a", "[::]:8080"), node.listen("x", "[::]:80"));
    let _out = node.connect("a", "198.18.0.1:80").unwrap();
    assert!(accept(&outside).is_some());
    let _in = node.connect("x", "10.98.1.2:8080").unwrap();
    assert!(accept(&inside).is_some());
    assert!(uninstall(BPFFS.as_ref(), &node.name, "/proc".as_ref()).unwrap().is_empty(), "twice is fine");
    assert!(uninstall(BPFFS.as_ref(), "../x", "/proc".as_ref()).is_err(), "an instance is not a path");
}

#[test]
fn a_dropped_redirector_is_adopted_in_place() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    for round in 0..3u8 {
        let mut redirector = node.redirector(node.config(1));
        assert_eq!(redirector.adopted().len(), usize::from(round > 0));
        let enrolled = redirector.enrol(&node.request("a")).unwrap();
        let to = std::net::SocketAddr::from(([198, 18, 0, round + 1], 80));
        let _stream = node.connect("a", &to.to_string()).unwrap();
        assert_eq!(next_original(&enrolled, &redirector.original_dst()), Some(to));
        assert_eq!(counters(&redirector)["flow_accepted"], u64::from(round) + 1, "counters go on");
    }
}

#[test]
fn two_nodes_with_the_same_pod_addresses_do_not_see_each_other() {
    if !runnable() {
        return;
    }
    let mut first = Node::new();
    let mut second = Node::another();
    first.add_pod_and_peer();
    second.add_pod_and_peer();
    let mut left = first.redirector(first.config(1));
    let mut right = second.redirector(second.config(1));
    let (one, other) = (left.enrol(&first.request("a")).unwrap(), right.enrol(&second.request("a")).unwrap());
    assert_ne!(one.netns_cookie, other.netns_cookie);
    for (node, mine, theirs, redirector) in [(&first, &one, &other, &left), (&second, &other, &one, &right)] {
        node.enter("pods/a");
        let before = counters(redirector);
        let _out = node.connect("a", "198.18.0.1:80").unwrap();
        let (accepted, _) = accept(&mine.listeners[0].outbound).unwrap();
        assert_eq!(redirector.original_dst().get(accepted.as_fd()).unwrap(), Some(addr("198.18.0.1:80")));
        let _in = node.connect("x", "10.98.1.2:8080").unwrap();
        assert!(accept(&mine.listeners[0].plaintext).is_some());
        assert!(is_silent(&theirs.listeners[0].outbound) && is_silent(&theirs.listeners[0].plaintext));
        let after = counters(redirector);
        assert_eq!(after["outbound_redirected"] - before["outbound_redirected"], 1);
        assert_eq!(after["inbound_plaintext"] - before["inbound_plaintext"], 1);
    }
    // A process of one node in the pod of the other is redirected by neither: its cgroup and its namespace do not agree.
    first.enter("pods/a");
    let outside = second.listen("x", "[::]:80");
    let _stream = second.connect("a", "198.18.0.1:80").unwrap();
    assert!(accept(&outside).is_some());
}

#[test]
fn a_load_balancer_at_the_root_changes_nothing() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let vip = u32::from_ne_bytes([198, 18, 99, 99]);
    let backend = u32::from_ne_bytes([10, 98, 0, 1]);
    let translator = bpf::load_vip_translator(vip, backend).unwrap();
    let outside = node.listen("x", "[::]:80");
    for first in [true, false] {
        let early = first.then(|| bpf::attach_connect4(translator.as_fd(), &node.root).unwrap());
        let mut redirector = node.redirector(node.config(1));
        let late = (!first).then(|| bpf::attach_connect4(translator.as_fd(), &node.root).unwrap());
        let stream = node.connect("a", "198.18.99.99:80").unwrap();
        let (_accepted, _) = accept(&outside).expect("before enrolment the translator works");
        drop(stream);
        let enrolled = redirector.enrol(&node.request("a")).unwrap();
        let stream = node.connect("a", "198.18.99.99:80").unwrap();
        let (accepted, _) = accept(&enrolled.listeners[0].outbound).unwrap();
        let recorded = redirector.original_dst().get(accepted.as_fd()).unwrap();
        assert_eq!(recorded, Some(addr("198.18.99.99:80")), "attached first: {first}");
        assert_eq!(stream.peer_addr().unwrap(), addr("198.18.99.99:80"));
        assert!(is_silent(&outside));
        drop((early, late, enrolled));
        redirector.forget("uid-a").unwrap();
    }
}

#[test]
fn wrong_input_is_refused_with_its_reason() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let before = traces(&node, "x");
    let mut redirector = node.redirector(node.config(1));
    let enrol = |redirector: &mut Redirector, uid: &str, netns: NetnsRef| {
        let request = causeway::redirect::EnrolRequest { uid: uid.into(), netns, ..node.request("a") };
        redirector.enrol(&request)
    };
    let path = |path: &str| NetnsRef::Path(path.into());
    let missing = enrol(&mut redirector, "m", NetnsRef::Name("does-not-exist".into())).unwrap_err();
    assert!(matches!(missing, EnrolError::NoNamespace { .. }), "{missing}");
    assert!(missing.to_string().contains("does-not-exist"), "{missing}");
    let file = enrol(&mut redirector, "f", NetnsRef::Path(std::env::current_exe().unwrap())).unwrap_err();
    assert!(matches!(file, EnrolError::NotANamespace { .. }), "{file}");
    let other_kind = enrol(&mut redirector, "f", path("/proc/self/ns/mnt")).unwrap_err();
    assert!(matches!(other_kind, EnrolError::NotANamespace { .. }), "{other_kind}");
    let own = enrol(&mut redirector, "n", path("/proc/self/ns/net")).unwrap_err();
    assert!(matches!(own, EnrolError::NodeNamespace { .. }), "{own}");
    let enrolled = enrol(&mut redirector, "one", NetnsRef::Name(node.netns("a"))).unwrap();
    let again = enrol(&mut redirector, "one", NetnsRef::Name(node.netns("x"))).unwrap_err();
    assert!(matches!(again, EnrolError::AlreadyEnrolled { .. }), "{again}");
    let taken = enrol(&mut redirector, "two", NetnsRef::Name(node.netns("a"))).unwrap_err();
    assert!(matches!(&taken, EnrolError::NamespaceTaken { other, .. } if other == "one"), "{taken}");
    let mut request = node.request("x");
    request.ips = vec![ip_addr(POD4)];
    let address = redirector.enrol(&request).unwrap_err();
    assert!(matches!(&address, EnrolError::AddressTaken { other, .. } if other == "one"), "{address}");
    request.ips = Vec::new();
    request.cgroup = Some(node.root.join("system"));
    let outside = redirector.enrol(&request).unwrap_err();
    assert!(matches!(outside, EnrolError::CgroupOutside { .. }), "{outside}");
    assert_eq!(traces(&node, "x"), before, "a failed enrolment leaves nothing");
    // What went wrong with others did not touch the one that works.
    let _stream = node.connect("a", "198.18.0.1:80").unwrap();
    assert_eq!(next_original(&enrolled, &redirector.original_dst()), Some(addr("198.18.0.1:80")));
    assert!(matches!(redirector.stop_capture("nobody"), Err(EnrolError::NotEnrolled { .. })));
    assert!(matches!(redirector.forget("nobody"), Err(EnrolError::NotEnrolled { .. })));
}

#[test]
fn a_pod_without_address_is_not_enrolled() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_netns("a");
    let before = traces(&node, "a");
    let mut redirector = node.redirector(node.config(1));
    let error = redirector.enrol(&node.request("a")).unwrap_err();
    assert!(matches!(error, EnrolError::NoAddress { .. }), "{error}");
    assert_eq!(traces(&node, "a"), before);
}

#[test]
fn wrong_settings_are_refused_with_their_name() {
    if !runnable() {
        return;
    }
    let node = Node::new();
    let setting = |change: &dyn Fn(&mut RedirectConfig)| {
        let mut config = node.config(1);
        change(&mut config);
        match Redirector::start(config, helper(1)) {
            Err(LoadError::Config { setting, problem }) => (setting, problem),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(setting(&|config| config.instance = "a/b".into()).0, "instance");
    assert_eq!(setting(&|config| config.port_count = 1000).0, "port_count");
    assert_eq!(setting(&|config| config.port_base = 65_000).0, "port_base");
    assert_eq!(setting(&|config| config.port_base = 14_500).0, "port_base", "15001 is in that range");
    assert_eq!(setting(&|config| config.pods_cgroup = "/proc".into()).0, "pods_cgroup");
    assert_eq!(setting(&|config| config.cgroup_root = node.root.join("nowhere")).0, "cgroup_root");
    assert_eq!(setting(&|config| config.cgroup_root = node.root.join("system")).0, "pods_cgroup");
    let (name, problem) = setting(&|config| config.engine_cgroup = Some(config.pods_cgroup.clone()));
    assert_eq!((name, problem.contains("a cgroup of its own")), ("engine_cgroup", true), "{problem}");
}

#[test]
fn probe_finds_everything_redirection_needs() {
    if !runnable() {
        return;
    }
    for feature in probe() {
        println!("{:60} {:6} {:?}", feature.name, feature.floor, feature.supported);
        assert!(feature.optional || feature.supported == Ok(true), "{feature:?}");
    }
}
