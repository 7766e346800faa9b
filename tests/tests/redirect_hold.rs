//! Pods that are to be enrolled and are not yet: what they open waits, without a byte on the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod redirect_common;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use causeway::redirect::{Exclusions, Redirector};
use redirect_common::{
    Node, POD4, POD6, accept, addr, counters, helper_entry, ip_addr, is_silent, runnable, spawn_in, talks,
};

/// Longer than any connection here has to wait.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn helper_process() {
    helper_entry();
}

/// The id of the cgroup of a node's pod.
fn cgroup(node: &Node, pod: &str) -> u64 {
    std::fs::metadata(node.root.join("pods").join(pod)).unwrap().ino()
}

/// Connects from pod `a`, for as long as it takes.
fn dial(node: &Node, to: &str) -> JoinHandle<io::Result<TcpStream>> {
    let to = addr(to);
    spawn_in(&node.netns("a"), move || TcpStream::connect_timeout(&to, PATIENCE))
}

/// Waits until so many SYNs were dropped.
fn dropped(redirector: &Redirector, count: u64) {
    let deadline = Instant::now() + PATIENCE;
    while counters(redirector)["outbound_held_syn"] < count {
        assert!(Instant::now() < deadline, "nothing is held: {:?}", counters(redirector));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Listeners of everybody outside the pod.
fn outside(node: &Node) -> [TcpListener; 2] {
    ["[::]:80", "[::]:5432"].map(|on| node.listen("x", on))
}

#[test]
fn what_a_held_pod_opens_waits_for_the_enrolment_and_reaches_the_engine_with_its_destination() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let mut holds = redirector.holds().unwrap();
    assert!(holds.get().is_empty());
    holds.set(&BTreeSet::from([cgroup(&node, "a")])).unwrap();
    let outside = outside(&node);
    for (dialled, own) in [("198.18.3.4:80", POD4), ("[2001:db8::7]:80", POD6), ("[::ffff:198.18.3.5]:80", POD4)] {
        let before = counters(&redirector)["outbound_held_syn"];
        let waiting = dial(&node, dialled);
        dropped(&redirector, before + 3);
        assert!(!waiting.is_finished() && is_silent(&outside[0]), "{dialled}: it waits, and nobody hears of it");
        let enrolled = redirector.enrol(&node.request("a")).unwrap();
        let mut stream = waiting.join().unwrap().unwrap_or_else(|error| panic!("{dialled}: {error}"));
        let (mut accepted, _) =
            accept(&enrolled.listeners[0].outbound).unwrap_or_else(|| panic!("{dialled}: not accepted"));
        let expected = addr(dialled);
        let original = redirector.original_dst().get(accepted.as_fd()).unwrap().unwrap();
        assert_eq!((original.ip(), original.port()), (expected.ip().to_canonical(), expected.port()), "{dialled}");
        assert_eq!(stream.peer_addr().unwrap(), expected, "{dialled}: the application sees whom it dialled");
        assert_eq!(stream.local_addr().unwrap().ip().to_canonical(), ip_addr(own), "{dialled}: own address");
        assert!(talks(&mut stream, &mut accepted), "{dialled}");
        assert!(is_silent(&outside[0]), "{dialled}: past the engine");
        redirector.forget("uid-a").unwrap();
    }
    assert_eq!(counters(&redirector)["outbound_held"], 3);
    assert_eq!(node.pending_flows(), 0);
}

#[test]
fn what_needs_no_engine_does_not_wait_nor_do_other_pods() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut config = node.config(1);
    config.exclusions = Exclusions { ports: vec![5432], ..Exclusions::default() };
    let redirector = node.redirector(config);
    let mut holds = redirector.holds().unwrap();
    holds.set(&BTreeSet::from([cgroup(&node, "a")])).unwrap();
    let outside = outside(&node);
    let application = node.listen("a", "127.0.0.1:8080");
    let _local = node.connect("a", "127.0.0.1:8080").unwrap();
    assert!(accept(&application).is_some(), "loopback");
    let _excluded = node.connect("a", "198.18.1.1:5432").unwrap();
    assert!(accept(&outside[1]).is_some(), "an excluded port");
    assert_eq!(counters(&redirector)["outbound_held"], 0);
    holds.set(&BTreeSet::from([cgroup(&node, "b")])).unwrap();
    let _free = node.connect("a", "198.18.1.1:80").unwrap();
    assert!(accept(&outside[0]).is_some(), "another pod is held");
}

#[test]
fn a_pod_that_is_not_held_any_more_fails_what_waits_and_opens_anew() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let redirector = node.redirector(node.config(1));
    let mut holds = redirector.holds().unwrap();
    holds.set(&BTreeSet::from([cgroup(&node, "a")])).unwrap();
    let outside = outside(&node);
    let waiting = dial(&node, "198.18.3.4:80");
    dropped(&redirector, 2);
    holds.set(&BTreeSet::new()).unwrap();
    let error = waiting.join().unwrap().expect_err("it was directed to where nobody listens");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert!(is_silent(&outside[0]));
    let _free = node.connect("a", "198.18.3.4:80").unwrap();
    assert!(accept(&outside[0]).is_some());
}

#[test]
fn without_a_daemon_held_pods_wait_for_the_next_one() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let redirector = node.redirector(node.config(1));
    let held = BTreeSet::from([cgroup(&node, "a")]);
    redirector.holds().unwrap().set(&held).unwrap();
    drop(redirector);
    let outside = outside(&node);
    let waiting = dial(&node, "198.18.3.4:80");
    assert!(is_silent(&outside[0]) && !waiting.is_finished());
    let mut redirector = node.redirector(node.config(1));
    assert_eq!(redirector.holds().unwrap().get(), held, "the next daemon knows whom");
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let _stream = waiting.join().unwrap().unwrap();
    let (accepted, _) = accept(&enrolled.listeners[0].outbound).expect("served");
    assert_eq!(redirector.original_dst().get(accepted.as_fd()).unwrap(), Some(addr("198.18.3.4:80")));
    assert!(is_silent(&outside[0]));
    redirector.forget("uid-a").unwrap();
}

/// Lets an unknown pod wait for so long.
fn unknown(node: &Node, pod: &str, patience: Duration) -> BTreeMap<u64, Instant> {
    BTreeMap::from([(cgroup(node, pod), Instant::now() + patience)])
}

#[test]
fn what_an_unknown_pod_opens_goes_where_it_was_dialled_once_the_pod_is_known_not_to_be_of_the_mesh() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let mut holds = redirector.holds().unwrap();
    let outside = outside(&node);
    for dialled in ["198.18.3.4:80", "[2001:db8::7]:80", "[::ffff:198.18.3.5]:80"] {
        let before = counters(&redirector)["outbound_held_syn"];
        holds.set_unknown(&unknown(&node, "a", PATIENCE)).unwrap();
        assert!(holds.get().is_empty(), "nobody has said that it is of the mesh");
        let waiting = dial(&node, dialled);
        dropped(&redirector, before + 3);
        assert!(!waiting.is_finished() && is_silent(&outside[0]), "{dialled}: it waits, and nobody hears of it");
        holds.set_unknown(&BTreeMap::new()).unwrap();
        let mut stream = waiting.join().unwrap().unwrap_or_else(|error| panic!("{dialled}: {error}"));
        let (mut accepted, _) = accept(&outside[0]).unwrap_or_else(|| panic!("{dialled}: not accepted"));
        assert!(talks(&mut stream, &mut accepted), "{dialled}");
        // It is one like any other now: it lives on when its pod comes into the mesh.
        holds.set(&BTreeSet::from([cgroup(&node, "a")])).unwrap();
        let _enrolled = redirector.enrol(&node.request("a")).unwrap();
        assert!(talks(&mut stream, &mut accepted), "{dialled}: after the enrolment");
        redirector.forget("uid-a").unwrap();
        holds.set(&BTreeSet::new()).unwrap();
    }
}

#[test]
fn an_unknown_pod_waits_no_longer_than_its_time_also_without_a_daemon() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let redirector = node.redirector(node.config(1));
    let outside = outside(&node);
    redirector.holds().unwrap().set_unknown(&unknown(&node, "a", Duration::from_secs(1))).unwrap();
    let waiting = dial(&node, "198.18.3.4:80");
    dropped(&redirector, 3);
    assert!(is_silent(&outside[0]));
    drop(redirector);
    let _late = waiting.join().unwrap().expect("it passes when the time is over");
    assert!(accept(&outside[0]).is_some());
    let _free = node.connect("a", "198.18.3.4:80").unwrap();
    assert!(accept(&outside[0]).is_some(), "without waiting");
}

#[test]
fn nothing_that_an_unknown_pod_opened_passes_when_it_turns_out_to_be_of_the_mesh() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let mut holds = redirector.holds().unwrap();
    let outside = outside(&node);
    holds.set_unknown(&unknown(&node, "a", PATIENCE)).unwrap();
    let (early, later) = (dial(&node, "198.18.3.4:80"), dial(&node, "[2001:db8::7]:80"));
    dropped(&redirector, 6);
    let held = BTreeSet::from([cgroup(&node, "a")]);
    holds.set(&held).unwrap();
    holds.set_unknown(&unknown(&node, "a", PATIENCE)).unwrap();
    assert_eq!(holds.get(), held, "what is known is not unknown again");
    // What is opened from now on is for the engine.
    let waiting = dial(&node, "198.18.3.4:80");
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let _stream = waiting.join().unwrap().expect("served");
    assert!(accept(&enrolled.listeners[0].outbound).is_some());
    for lost in [early, later] {
        let error = lost.join().unwrap().expect_err("it was not for the engine, and may not pass");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
    assert!(is_silent(&outside[0]));
    redirector.forget("uid-a").unwrap();
}
