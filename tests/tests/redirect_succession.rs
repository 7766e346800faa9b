//! Two daemons of one instance, one after the other: no connection finds neither.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod redirect_common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use causeway::redirect::{RedirectConfig, Redirector};
use redirect_common::{Node, accept, addr, helper, helper_entry, is_silent, runnable, talks};

#[test]
fn helper_process() {
    helper_entry();
}

/// Starts a daemon beside one that makes way when it is asked.
fn succeed(node: &Node, earlier: &mut Redirector) -> Redirector {
    node.enter("system");
    let config = RedirectConfig { succeed: true, ..node.config(1) };
    let helper = helper(1);
    let starting = std::thread::spawn(move || Redirector::start(config, helper).map_err(|error| error.to_string()));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !earlier.is_asked_to_make_way() {
        assert!(Instant::now() < deadline && !starting.is_finished(), "it is not asked");
        std::thread::sleep(Duration::from_millis(5));
    }
    earlier.make_way();
    let later = starting.join().unwrap().unwrap();
    node.enter("pods/a");
    later
}

#[test]
fn a_later_daemon_takes_new_connections_and_the_earlier_one_keeps_what_it_has() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut earlier = node.redirector(node.config(1));
    assert!(!earlier.succeeds() && !earlier.is_asked_to_make_way());
    let first = earlier.enrol(&node.request("a")).unwrap();
    let mut old_client = node.connect("a", "198.18.3.4:80").unwrap();
    let (mut old_server, _) = accept(&first.listeners[0].outbound).unwrap();

    let mut later = succeed(&node, &mut earlier);
    assert!(later.succeeds() && !earlier.is_asked_to_make_way() && !earlier.is_deserted());
    // Until the later one has enrolled the pod the earlier one serves it.
    let _between = node.connect("a", "198.18.3.5:80").unwrap();
    assert!(accept(&first.listeners[0].outbound).is_some());
    // One that waits to be accepted there is not lost.
    let mut waiting = node.connect("a", "198.18.3.6:80").unwrap();
    let second = later.enrol(&node.request("a")).unwrap();
    let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
    assert_ne!(port(&first.listeners[0].outbound), port(&second.listeners[0].outbound), "queues are apart");
    let mut new_client = node.connect("a", "198.18.3.7:80").unwrap();
    let (mut new_server, _) = accept(&second.listeners[0].outbound).expect("the later one takes new connections");
    assert_eq!(later.original_dst().get(new_server.as_fd()).unwrap(), Some(addr("198.18.3.7:80")));
    let (mut accepted, _) = accept(&first.listeners[0].outbound).expect("what was queued");
    assert_eq!(earlier.original_dst().get(accepted.as_fd()).unwrap(), Some(addr("198.18.3.6:80")));
    assert!(is_silent(&first.listeners[0].outbound));

    assert!(talks(&mut old_client, &mut old_server) && talks(&mut waiting, &mut accepted));
    drop(first);
    earlier.leave();
    assert!(talks(&mut new_client, &mut new_server) && talks(&mut old_client, &mut old_server));
    let _after = node.connect("a", "198.18.3.8:80").unwrap();
    assert!(accept(&second.listeners[0].outbound).is_some(), "nothing went with the earlier one");
    later.forget("uid-a").unwrap();
}

#[test]
fn a_daemon_that_has_made_way_notices_when_its_successor_has_ended() {
    if !runnable() {
        return;
    }
    let node = Node::new();
    let mut earlier = node.redirector(node.config(1));
    let later = succeed(&node, &mut earlier);
    assert!(!earlier.is_deserted());
    drop(later);
    assert!(earlier.is_deserted());
    drop(earlier);
    let next = node.redirector(RedirectConfig { succeed: true, ..node.config(1) });
    assert!(!next.succeeds(), "nobody had to make way");
}
