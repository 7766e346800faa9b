//! Connections a pod opens: what is redirected, what is not, and what the application sees.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod redirect_common;

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use causeway::redirect::Exclusions;
use redirect_common::{
    Node, POD4, POD6, accept, addr, counters, helper_entry, ip_addr, is_silent, next_original, runnable,
};

#[test]
fn helper_process() {
    helper_entry();
}

#[test]
fn connections_reach_the_engine_with_their_destination() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    assert!(enrolled.ips.contains(&ip_addr(POD4)) && enrolled.ips.contains(&ip_addr(POD6)), "{:?}", enrolled.ips);
    let original = redirector.original_dst();
    for (dialled, family4) in
        [("198.18.3.4:80", true), ("[2001:db8::7]:443", false), ("[::ffff:198.18.3.5]:8080", true)]
    {
        let stream = node.connect("a", dialled).unwrap_or_else(|error| panic!("{dialled}: {error}"));
        let (accepted, peer) =
            accept(&enrolled.listeners[0].outbound).unwrap_or_else(|| panic!("{dialled}: not accepted"));
        let expected = addr(dialled);
        assert_eq!(stream.peer_addr().unwrap(), expected, "the application sees whom it dialled");
        let canonical = SocketAddr::new(expected.ip().to_canonical(), expected.port());
        assert_eq!(original.get(accepted.as_fd()).unwrap(), Some(canonical), "{dialled}");
        let own = if family4 { POD4 } else { POD6 };
        assert_eq!(stream.local_addr().unwrap().ip().to_canonical(), ip_addr(own), "{dialled}: own address");
        assert_eq!(peer.ip().to_canonical(), ip_addr(own), "{dialled}: address at the engine");
    }
    let counted = counters(&redirector);
    assert_eq!((counted["outbound_redirected"], counted["flow_accepted"]), (3, 3), "{counted:?}");
    redirector.forget("uid-a").unwrap();
}

#[test]
fn local_destinations_are_left_alone() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    // A port of the rewrite range that belongs to the application.
    let application = node.listen("a", "[::]:16500");
    for dialled in ["10.98.1.2:16500", "127.0.0.1:16500", "[::1]:16500", "[fd98::1:2]:16500", "0.0.0.0:16500"] {
        let stream = node.connect("a", dialled).unwrap_or_else(|error| panic!("{dialled}: {error}"));
        assert!(accept(&application).is_some(), "{dialled}: the application gets its own connection");
        drop(stream);
    }
    assert!(is_silent(&enrolled.listeners[0].outbound), "and the engine none of them");
    // Redirected connections never get there, whatever port they are rewritten to.
    let original = redirector.original_dst();
    for number in 0..3000u32 {
        let dialled = format!("198.18.{}.{}:16500", number / 250, number % 250 + 1);
        let _stream = node.connect("a", &dialled).unwrap();
        assert_eq!(next_original(&enrolled, &original), Some(addr(&dialled)));
    }
    assert!(is_silent(&application));
}

#[test]
fn exclusions_apply_and_change_while_running() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut config = node.config(1);
    config.exclusions = Exclusions {
        ports: vec![5432],
        cidrs: vec![(ip_addr("198.18.7.0"), 24), (ip_addr("2001:db8:7::"), 48)],
        inbound_ports: vec![],
    };
    let mut redirector = node.redirector(config);
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let outside: Vec<_> = ["[::]:5432", "[::]:8080"].map(|on| node.listen("x", on)).into();
    let goes_out = |dialled: &str| {
        let stream = node.connect("a", dialled).unwrap_or_else(|error| panic!("{dialled}: {error}"));
        let port = addr(dialled).port();
        let listener = if port == 5432 { &outside[0] } else { &outside[1] };
        let out = accept(listener).is_some_and(|(accepted, _)| accepted.peer_addr().is_ok());
        assert_eq!(stream.peer_addr().unwrap().ip().to_canonical(), addr(dialled).ip().to_canonical());
        out
    };
    for dialled in ["198.18.1.1:5432", "198.18.7.200:8080", "[2001:db8:7::9]:8080", "[::ffff:198.18.7.3]:8080"] {
        assert!(goes_out(dialled), "{dialled} is excluded");
    }
    let original = redirector.original_dst();
    for dialled in ["198.18.8.1:8080", "[2001:db8:8::9]:8080"] {
        let _stream = node.connect("a", dialled).unwrap();
        assert_eq!(next_original(&enrolled, &original), Some(addr(dialled)), "{dialled} is not excluded");
    }
    redirector
        .set_exclusions(&Exclusions { cidrs: vec![(ip_addr("198.18.8.0"), 24)], ..Exclusions::default() })
        .unwrap();
    assert!(goes_out("198.18.8.1:8080"), "now excluded");
    for dialled in ["198.18.1.1:5432", "198.18.7.200:8080"] {
        let _stream = node.connect("a", dialled).unwrap();
        assert_eq!(next_original(&enrolled, &original), Some(addr(dialled)), "{dialled} is not excluded any more");
    }
    let too_long = Exclusions { cidrs: vec![(ip_addr("10.0.0.0"), 33)], ..Exclusions::default() };
    assert!(
        redirector.set_exclusions(&too_long).unwrap_err().to_string().contains("at most 32"),
        "a bad prefix is refused"
    );
}

#[test]
fn a_socket_that_connects_again_is_recorded_anew() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut config = node.config(1);
    config.exclusions.ports = vec![5432];
    let mut redirector = node.redirector(config);
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let outside = node.listen("x", "0.0.0.0:5432");
    let original = redirector.original_dst();
    let stream = node.connect("a", "198.18.0.1:80").unwrap();
    assert_eq!(next_original(&enrolled, &original), Some(addr("198.18.0.1:80")));
    // To an excluded destination with the same socket: the earlier destination is forgotten.
    disconnect(&stream);
    let stream = node.inside("a", move || reconnect(stream, addr("198.18.0.2:5432")));
    assert!(accept(&outside).is_some());
    assert_eq!(stream.peer_addr().unwrap(), addr("198.18.0.2:5432"));
    disconnect(&stream);
    let stream = node.inside("a", move || reconnect(stream, addr("198.18.0.3:80")));
    assert_eq!(next_original(&enrolled, &original), Some(addr("198.18.0.3:80")));
    assert_eq!(stream.peer_addr().unwrap(), addr("198.18.0.3:80"));
}

#[test]
fn a_family_without_address_is_refused() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    redirect_common::ip(&format!("-n {} address flush dev eth0 scope global to {POD6}/64", node.netns("a")));
    let mut redirector = node.redirector(node.config(1));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    assert_eq!(enrolled.ips, [ip_addr(POD4)]);
    let refused = node.connect("a", "[2001:db8::1]:80").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{refused}");
    assert!(node.connect("a", "198.18.0.1:80").is_ok(), "the other family works");
    assert_eq!(counters(&redirector)["outbound_refused_family"], 1);
}

#[test]
fn without_room_for_a_record_connections_are_reset() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    // What would get the connection if it were passed for want of a record.
    let application: Vec<_> = (16384..17408).map(|port| node.listen("a", &format!("0.0.0.0:{port}"))).collect();
    let filled = redirect_common::flows::fill(&node.layout().join("maps/FLOWS"));
    for number in 0..20 {
        let refused = node.connect("a", &format!("198.18.0.{}:80", number + 1)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED), "{refused}");
    }
    assert!(is_silent(&enrolled.listeners[0].outbound));
    assert!(
        application.iter().all(|listener| { listener.set_nonblocking(true).is_ok() && listener.accept().is_err() })
    );
    assert_eq!(counters(&redirector)["flow_failed"], 20);
    filled.clear();
    let _stream = node.connect("a", "198.18.0.1:80").unwrap();
    assert_eq!(next_original(&enrolled, &redirector.original_dst()), Some(addr("198.18.0.1:80")));
}

#[test]
fn multipath_tcp_is_redirected_too() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let outside = node.listen("x", "[::]:80");
    let mut redirector = node.redirector(node.config(1));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let connected = node.inside("a", || {
        let socket = redirect_common::raw::multipath()?;
        Some(redirect_common::raw::connect(socket.as_fd(), addr("198.18.0.1:80")).map(|()| TcpStream::from(socket)))
    });
    let Some(connected) = connected else {
        println!("skipped: this kernel has no multipath TCP");
        return;
    };
    let mut stream = connected.unwrap();
    let (mut accepted, _) = accept(&enrolled.listeners[0].outbound).expect("the engine gets it");
    assert_eq!(redirector.original_dst().get(accepted.as_fd()).unwrap(), Some(addr("198.18.0.1:80")));
    assert!(redirect_common::talks(&mut stream, &mut accepted));
    assert!(is_silent(&outside));
}

/// Dissolves the association of a connected socket.
fn disconnect(stream: &TcpStream) {
    redirect_common::raw::disconnect(stream.as_fd()).unwrap();
}

/// Connects the same socket again.
fn reconnect(stream: TcpStream, to: SocketAddr) -> TcpStream {
    redirect_common::raw::connect(stream.as_fd(), to).unwrap();
    stream
}
