//! Connections that arrive at a pod, and connections the engine makes from inside its namespace.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod redirect_common;

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use causeway::redirect::{
    Enrolled, Exclusions, Family, Redirector, SocketKind, SocketSource, connect_start, deliver, delivery_port,
    pin_thread_to_cpu,
};
use redirect_common::{
    Node, PEER4, PEER6, POD4, POD6, accept, addr, connect, counters, helper_entry, ip_addr, is_silent, next_original,
    runnable, talks,
};
use tokio::net::TcpSocket;

#[test]
fn helper_process() {
    helper_entry();
}

fn node_with_pod(workers: usize, exclusions: Exclusions) -> (Node, Redirector, Enrolled) {
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut config = node.config(workers);
    config.exclusions = exclusions;
    let mut redirector = node.redirector(config);
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    (node, redirector, enrolled)
}

#[test]
fn connections_from_outside_reach_the_right_listener() {
    if !runnable() {
        return;
    }
    let exclusions = Exclusions { inbound_ports: vec![9000], ..Exclusions::default() };
    let (node, redirector, enrolled) = node_with_pod(1, exclusions);
    let applications = ["[::]:8080", "10.98.1.2:8081", "[fd98::1:2]:8083", "[::]:16500"].map(|on| node.listen("a", on));
    let excluded = node.listen("a", "[::]:9000");
    let listeners = &enrolled.listeners[0];
    for (to, listener, why) in [
        ("10.98.1.2:8080", &listeners.plaintext, "an application on every address"),
        ("10.98.1.2:8081", &listeners.plaintext, "an application on this address alone"),
        ("[fd98::1:2]:8083", &listeners.plaintext, "the same over IPv6"),
        ("10.98.1.2:9999", &listeners.plaintext, "a port nobody listens on"),
        ("10.98.1.2:16500", &listeners.plaintext, "a port of the rewrite range"),
        ("[fd98::1:2]:8080", &listeners.plaintext, "IPv6"),
        ("10.98.1.2:15008", &listeners.hbone, "HBONE"),
        ("[fd98::1:2]:15008", &listeners.hbone, "HBONE over IPv6"),
        ("10.98.1.2:9000", &excluded, "an excluded port goes to the application"),
    ] {
        let stream = node.connect("x", to).unwrap_or_else(|error| panic!("{to}: {error}"));
        let (accepted, peer) = accept(listener).unwrap_or_else(|| panic!("{to}: not accepted: {why}"));
        let local = accepted.local_addr().unwrap();
        assert_eq!(
            SocketAddr::new(local.ip().to_canonical(), local.port()),
            addr(to),
            "{why}: where it was meant to go"
        );
        assert_eq!(peer.ip().to_canonical(), stream.local_addr().unwrap().ip(), "{why}: the client's address");
    }
    for reserved in ["10.98.1.2:15001", "10.98.1.2:15006", "[fd98::1:2]:15001"] {
        let refused = node.connect("x", reserved).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED), "{reserved}: {refused}");
    }
    assert!(applications.iter().all(is_silent), "no application got anything");
    assert!(is_silent(&listeners.outbound));
    let counted = counters(&redirector);
    assert_eq!(
        (counted["inbound_plaintext"], counted["inbound_hbone"], counted["inbound_reserved"]),
        (6, 2, 3),
        "{counted:?}"
    );
}

#[test]
fn connections_within_the_pod_are_the_applications() {
    if !runnable() {
        return;
    }
    let (node, _redirector, enrolled) = node_with_pod(1, Exclusions::default());
    let application = node.listen("a", "[::]:8080");
    for to in ["10.98.1.2:8080", "[fd98::1:2]:8080", "127.0.0.1:8080", "[::1]:8080"] {
        let _stream = node.connect("a", to).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert!(accept(&application).is_some(), "{to}");
    }
    assert!(is_silent(&enrolled.listeners[0].plaintext));
    for reserved in ["127.0.0.1:15001", "127.0.0.1:15006", "10.98.1.2:15006"] {
        assert!(node.connect("a", reserved).is_err(), "{reserved}: listeners of the engine are not for dialling");
    }
}

/// Runs `action` on a runtime like a worker's, with the pod's sockets.
fn worker<T>(redirector: &mut Redirector, action: impl AsyncFnOnce(&SocketSource) -> T) -> T {
    let channel = redirector.take_channels().pop().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let source = SocketSource::new(channel).unwrap();
        action(&source).await
    })
}

/// Addresses of the pod.
fn own() -> [IpAddr; 2] {
    [POD4, POD6].map(ip_addr)
}

fn blocking(stream: tokio::net::TcpStream) -> TcpStream {
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

#[test]
fn delivery_shows_the_clients_address() {
    if !runnable() {
        return;
    }
    let (node, mut redirector, enrolled) = node_with_pod(1, Exclusions::default());
    let application = node.listen("a", "[::]:8080");
    let loopback = node.listen("a", "127.0.0.1:8084");
    worker(&mut redirector, async |source: &SocketSource| {
        for (client, to, listener) in [
            ("10.98.0.1:0", "10.98.1.2:8080", &application),
            ("203.0.113.7:0", "10.98.1.2:8080", &application),
            ("[2001:db8::5]:0", "[fd98::1:2]:8080", &application),
            ("10.98.0.1:0", "127.0.0.1:8084", &loopback),
            ("10.98.1.2:0", "10.98.1.2:8080", &application),
            ("203.0.113.7:40000", "10.98.1.2:8080", &application),
        ] {
            let client = addr(client);
            let stream = deliver(source, enrolled.pod, &own(), client, addr(to)).await;
            let mut stream = blocking(stream.unwrap_or_else(|error| panic!("{client} to {to}: {error}")));
            let (mut accepted, peer) = accept(listener).unwrap_or_else(|| panic!("{client} to {to}: not accepted"));
            assert_eq!(peer.ip().to_canonical(), client.ip(), "the application sees the client's address");
            if client.port() != 0 {
                assert_eq!(peer.port(), delivery_port(client.port()));
            }
            assert!(talks(&mut stream, &mut accepted), "{client} to {to}: bytes go both ways");
        }
    });
    assert!(is_silent(&enrolled.listeners[0].plaintext), "nothing came back to the engine");
}

#[test]
fn delivery_never_meets_the_connection_it_delivers() {
    if !runnable() {
        return;
    }
    let (node, mut redirector, enrolled) = node_with_pod(1, Exclusions::default());
    let application = node.listen("a", "[::]:8080");
    worker(&mut redirector, async |source: &SocketSource| {
        let mut open = Vec::new();
        for _ in 0..500 {
            let client = node.connect("x", "10.98.1.2:8080").unwrap();
            let (intercepted, peer) = accept(&enrolled.listeners[0].plaintext).unwrap();
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            let delivered = deliver(source, enrolled.pod, &own(), peer, addr("10.98.1.2:8080")).await.unwrap();
            let (accepted, _) = accept(&application).expect("the application gets every delivered connection");
            open.push((client, intercepted, blocking(delivered), accepted));
        }
        for (client, intercepted, delivered, accepted) in &mut open {
            assert!(talks(client, intercepted) && talks(delivered, accepted));
        }
    });
}

/// Connects from the peer to `to` from `from`, which may be where a connection was a moment ago.
fn connect_from(node: &Node, from: &str, to: &str) -> TcpStream {
    let (local, remote) = (addr(from), addr(to));
    let connected = node.inside("x", move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let socket = if local.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(local).unwrap();
            let answered = tokio::time::timeout(Duration::from_secs(5), socket.connect(remote)).await;
            answered.expect("answered").map(blocking)
        })
    });
    connected.unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
}

#[test]
fn a_client_may_connect_from_the_port_its_delivered_connection_has() {
    if !runnable() {
        return;
    }
    let (node, mut redirector, enrolled) = node_with_pod(1, Exclusions::default());
    let application = node.listen("a", "[::]:8080");
    let plaintext = &enrolled.listeners[0].plaintext;
    worker(&mut redirector, async |source: &SocketSource| {
        for (client, to) in [("10.98.0.1", "10.98.1.2:8080"), ("[fd98::1]", "[fd98::1:2]:8080")] {
            let tunnelled = addr(&format!("{client}:0"));
            let mut delivered = blocking(deliver(source, enrolled.pod, &own(), tunnelled, addr(to)).await.unwrap());
            let (mut accepted, peer) = accept(&application).unwrap();
            let from = format!("{client}:{}", peer.port());

            let mut own = connect_from(&node, &from, to);
            let (mut intercepted, seen) = accept(plaintext).expect("the engine gets the client's own connection");
            assert_eq!(seen.port(), peer.port());
            assert!(talks(&mut own, &mut intercepted), "{from}: the client's own connection");
            assert!(talks(&mut delivered, &mut accepted), "{from}: the delivered one beside it");
            drop((own, intercepted));

            // The application closes first and has the connection in TIME_WAIT.
            drop(accepted);
            assert_eq!(delivered.read(&mut [0]).unwrap(), 0);
            drop(delivered);
            let mut own = connect_from(&node, &from, to);
            let (mut intercepted, _) = accept(plaintext).expect("the engine gets the client's own connection");
            assert!(talks(&mut own, &mut intercepted), "{from}: after the delivered one");
        }
    });
}

#[test]
fn upstream_sockets_leave_the_pod_past_the_engine() {
    if !runnable() {
        return;
    }
    let (node, mut redirector, enrolled) = node_with_pod(1, Exclusions::default());
    let outside = node.listen("x", "[::]:80");
    let pod = enrolled.pod;
    worker(&mut redirector, async |source: &SocketSource| {
        for (family, to, own) in [
            (Family::V4, "198.18.0.1:80", POD4),
            (Family::V6, "[2001:db8::1]:80", POD6),
            (Family::V4, "10.98.0.1:80", POD4),
        ] {
            for _ in 0..100 {
                let socket = source.take(pod, SocketKind::Upstream, family).await.unwrap();
                let stream = connect_start(socket, addr(to)).await.unwrap_or_else(|error| panic!("{to}: {error}"));
                assert_eq!(stream.local_addr().unwrap().ip(), ip_addr(own));
                assert!(accept(&outside).is_some());
            }
        }
        // Many at once wait for the same stock without losing each other's answers.
        let sockets = (0..300).map(|number| {
            let kind = if number % 2 == 0 { SocketKind::Upstream } else { SocketKind::Delivery };
            let family = if number % 3 == 0 { Family::V4 } else { Family::V6 };
            source.take(pod, kind, family)
        });
        let mut taken = 0;
        for socket in sockets {
            socket.await.unwrap();
            taken += 1;
        }
        assert_eq!(taken, 300);
        let missing = source.take(causeway::redirect::PodId(9999), SocketKind::Upstream, Family::V4).await.unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT), "{missing}");
    });
    assert!(is_silent(&enrolled.listeners[0].outbound));
}

#[test]
fn open_connections_outlive_enrolment_and_release() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let (inside, outside) = (node.listen("a", "[::]:8080"), node.listen("x", "[::]:80"));
    let pair = |from: &str, to: &str, listener: &TcpListener| {
        let client = node.connect(from, to).unwrap();
        (client, accept(listener).unwrap().0)
    };
    let mut before = [
        pair("x", "10.98.1.2:8080", &inside),
        pair("x", "[fd98::1:2]:8080", &inside),
        pair("a", "198.18.0.1:80", &outside),
        pair("a", "[2001:db8::1]:80", &outside),
    ];
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    assert!(before.iter_mut().all(|(left, right)| talks(left, right)), "open connections live on");
    let mut out = node.connect("a", "198.18.0.1:80").unwrap();
    let (mut engine, _) = accept(&enrolled.listeners[0].outbound).expect("new ones go to the engine");
    redirector.stop_capture("uid-a").unwrap();
    assert!(talks(&mut out, &mut engine), "redirected connections live on after release");
    let (client, _) = pair("a", "198.18.0.1:80", &outside);
    assert_eq!(client.local_addr().unwrap().ip(), ip_addr(POD4), "new ones go out");
    pair("x", "10.98.1.2:8080", &inside);
    drop(enrolled);
    redirector.forget("uid-a").unwrap();
    assert!(before.iter_mut().all(|(left, right)| talks(left, right)), "and still live");
}

#[test]
fn existing_connections_are_closed_on_request() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let (inside, outside) = (node.listen("a", "[::]:8080"), node.listen("x", "[::]:80"));
    let (mut client, mut server) = (node.connect("x", "10.98.1.2:8080").unwrap(), accept(&inside).unwrap().0);
    let (mut own, mut far) = (node.connect("a", "198.18.0.1:80").unwrap(), accept(&outside).unwrap().0);
    let (mut local, mut local_server) = (node.connect("a", "127.0.0.1:8080").unwrap(), accept(&inside).unwrap().0);
    let mut request = node.request("a");
    request.existing = causeway::redirect::Existing::Close;
    if let Err(error) = redirector.enrol(&request) {
        let text = error.to_string();
        assert!(text.contains("tcp_diag") || text.contains("CONFIG_INET_DIAG_DESTROY"), "{text}");
        println!("skipped: {text}");
        return;
    }
    assert!(!talks(&mut client, &mut server), "from outside");
    assert!(!talks(&mut own, &mut far), "to the outside");
    assert!(talks(&mut local, &mut local_server), "connections on loopback never met the mesh");
    let _stream = node.connect("a", "127.0.0.1:8080").expect("listeners of the application stay");
}

#[test]
fn the_worker_of_the_receiving_cpu_accepts() {
    if !runnable() {
        return;
    }
    let workers = causeway::redirect::online_cpus().unwrap().len();
    if workers < 2 {
        println!("skipped: one CPU only");
        return;
    }
    let (node, redirector, enrolled) = node_with_pod(workers, Exclusions::default());
    let original = redirector.original_dst();
    for cpu in 0..workers {
        for number in 0..50u8 {
            let to = SocketAddr::from(([198, 18, cpu as u8, number + 1], 80));
            let stream = node.inside("a", move || {
                pin_thread_to_cpu(cpu).unwrap();
                connect(to).unwrap()
            });
            let (accepted, _) = accept(&enrolled.listeners[cpu].outbound)
                .unwrap_or_else(|| panic!("CPU {cpu}: not accepted by its worker"));
            assert_eq!(original.get(std::os::fd::AsFd::as_fd(&accepted)).unwrap(), Some(to));
            drop(stream);
        }
    }
}

#[test]
fn listeners_yield_to_an_application_on_their_port() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let application = node.listen("a", "0.0.0.0:15006");
    let mut redirector = node.redirector(node.config(2));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let _client = node.connect("x", "10.98.1.2:80").unwrap();
    let accepted = enrolled.listeners.iter().any(|set| accept(&set.plaintext).is_some());
    assert!(accepted, "the engine takes connections on another port");
    assert!(is_silent(&application));
    let _stream = node.connect("a", "198.18.0.1:80").unwrap();
    assert_eq!(next_original(&enrolled, &redirector.original_dst()), Some(addr("198.18.0.1:80")));
    assert_eq!((ip_addr(PEER4), ip_addr(PEER6)), (ip_addr("10.98.0.1"), ip_addr("fd98::1")));
}
