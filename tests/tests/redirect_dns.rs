//! DNS a pod sends over UDP: it reaches the engine, and answers come from the very server that was asked.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod redirect_common;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use causeway::redirect::{DnsServers, Enrolled, Exclusions, Redirector, is_own};
use causeway_ebpf::abi::DNS_SERVERS;
use redirect_common::{Node, POD4, POD6, addr, counters, helper_entry, ip_addr, runnable};

#[test]
fn helper_process() {
    helper_entry();
}

/// The engine's part: answers every datagram with the server it was meant for, a bar, and what was sent.
struct Engine {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    fn start(enrolled: &mut Enrolled, servers: DnsServers) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sockets, cookie, ips) = (std::mem::take(&mut enrolled.dns), enrolled.netns_cookie, enrolled.ips.clone());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                for socket in &sockets {
                    let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                    assert!(is_own(client.ip(), &ips), "{client} is of the pod");
                    let server = servers.get(cookie, socket.local_addr().unwrap()).unwrap();
                    let server = server.expect("whose port is used stands for a server");
                    let answer = format!("{server}|{}", String::from_utf8_lossy(&buffer[..length]));
                    socket.send_to(answer.as_bytes(), client).unwrap();
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

fn engine(node: &Node, redirector: &mut Redirector) -> Engine {
    let mut enrolled = redirector.enrol(&node.request("a")).unwrap();
    assert_eq!(enrolled.dns.len(), 2 * DNS_SERVERS, "one socket for each server and family");
    Engine::start(&mut enrolled, redirector.dns_servers().unwrap())
}

/// A UDP socket in the pod that gives up after a second.
fn socket(node: &Node, on: &str) -> UdpSocket {
    let on = addr(on);
    let socket = node.inside("a", move || UdpSocket::bind(on).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

fn hear(socket: &UdpSocket) -> io::Result<(String, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn one_socket_that_asks_several_servers_hears_each_from_its_own_address() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let _engine = engine(&node, &mut redirector);
    for (on, servers) in [
        ("0.0.0.0:0", ["198.18.0.53:53", "198.18.1.53:53", "198.18.2.53:53"]),
        ("[::]:0", ["[2001:db8::53]:53", "[2001:db8::54]:53", "[2001:db8::55]:53"]),
        ("[::]:0", ["[::ffff:198.18.0.53]:53", "[::ffff:198.18.3.53]:53", "[2001:db8::53]:53"]),
        ("10.98.1.2:0", ["198.18.0.53:53", "198.18.1.53:53", "198.18.0.53:53"]),
        ("127.0.0.1:0", ["198.18.0.53:53", "198.18.1.53:53", "198.18.0.53:53"]),
    ] {
        let socket = socket(&node, on);
        for (number, server) in servers.iter().enumerate() {
            socket.send_to(format!("q{number}").as_bytes(), addr(server)).unwrap();
        }
        // In any order, each from whom it was asked.
        let mut heard: Vec<_> = servers.iter().map(|_| hear(&socket).unwrap()).collect();
        heard.sort_by_key(|(text, _)| text.rsplit('|').next().map(str::to_owned));
        for ((number, server), (text, from)) in servers.iter().enumerate().zip(heard) {
            assert_eq!(from, addr(server), "{on}: the answer to q{number} comes from whom it was asked");
            assert_eq!(text, format!("{}|q{number}", canonical(addr(server))));
        }
    }
}

#[test]
fn connected_sockets_see_the_server_as_their_peer() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let _engine = engine(&node, &mut redirector);
    for (on, server, own) in [
        ("0.0.0.0:0", "198.18.0.53:53", POD4),
        ("[::]:0", "[2001:db8::53]:53", POD6),
        ("[::]:0", "[::ffff:198.18.0.54]:53", POD4),
    ] {
        let socket = socket(&node, on);
        let to = addr(server);
        let socket = node.inside("a", move || socket.connect(to).map(|()| socket)).unwrap();
        assert_eq!(socket.peer_addr().unwrap(), to);
        assert_eq!(socket.local_addr().unwrap().ip().to_canonical(), ip_addr(own), "{server}: own address");
        for round in 0..3 {
            socket.send(format!("q{round}").as_bytes()).unwrap();
            let (text, from) = hear(&socket).unwrap();
            assert_eq!((text, from), (format!("{}|q{round}", canonical(to)), to));
        }
    }
    let counted = counters(&redirector);
    assert_eq!((counted["dns_captured"], counted["dns_no_port"]), (3, 0), "{counted:?}");
}

/// Whether a datagram from the pod's socket arrives at the peer's.
fn arrives(from: &UdpSocket, to: &str, at: &UdpSocket) -> bool {
    at.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    from.send_to(b"outside", addr(to)).unwrap();
    hear(at).is_ok_and(|(text, _)| text == "outside")
}

#[test]
fn other_ports_excluded_destinations_and_pods_without_capture_are_left_alone() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let outside = node.inside("x", || [53, 5353].map(|port| UdpSocket::bind(("::", port)).unwrap()));
    let mut redirector = node.redirector(node.config(1));
    let engine = engine(&node, &mut redirector);
    let client = socket(&node, "0.0.0.0:0");
    assert!(arrives(&client, "198.18.0.53:5353", &outside[1]), "another port");
    assert!(!arrives(&client, "198.18.0.53:53", &outside[0]), "captured");
    hear(&client).unwrap();
    for exclusions in [
        Exclusions { ports: vec![53], ..Exclusions::default() },
        Exclusions { cidrs: vec![(ip_addr("198.18.0.0"), 24)], ..Exclusions::default() },
    ] {
        redirector.set_exclusions(&exclusions).unwrap();
        assert!(arrives(&client, "198.18.0.53:53", &outside[0]), "{exclusions:?}");
    }
    redirector.set_exclusions(&Exclusions::default()).unwrap();
    assert!(!arrives(&client, "198.18.0.53:53", &outside[0]), "captured again");
    drop(engine);
    redirector.forget("uid-a").unwrap();
    assert!(arrives(&client, "198.18.0.53:53", &outside[0]), "released");
    let mut request = node.request("a");
    request.dns = false;
    let enrolled = redirector.enrol(&request).unwrap();
    assert!(enrolled.dns.is_empty());
    assert!(arrives(&client, "198.18.0.53:53", &outside[0]), "enrolled without DNS");
    assert!(node.connect("a", "198.18.0.9:80").is_ok(), "the rest is captured");
}

#[test]
fn a_pod_that_asks_more_servers_than_there_are_ports_asks_the_others_directly() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let outside = node.inside("x", || UdpSocket::bind("[::]:53").unwrap());
    let mut redirector = node.redirector(node.config(1));
    let _engine = engine(&node, &mut redirector);
    let client = socket(&node, "0.0.0.0:0");
    for number in 0..DNS_SERVERS {
        let server = format!("198.18.4.{}:53", number + 1);
        client.send_to(b"q", addr(&server)).unwrap();
        assert_eq!(hear(&client).unwrap().1, addr(&server));
    }
    assert!(arrives(&client, "198.18.5.1:53", &outside));
    client.send_to(b"q", addr("198.18.4.1:53")).unwrap();
    assert_eq!(hear(&client).unwrap().1, addr("198.18.4.1:53"), "the first ones stay captured");
    assert_eq!(counters(&redirector)["dns_no_port"], 1);
}

#[test]
fn without_an_engine_nothing_leaks_and_the_next_one_takes_over_where_it_was() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let outside = node.inside("x", || UdpSocket::bind("[::]:53").unwrap());
    let mut redirector = node.redirector(node.config(1));
    let engine_a = engine(&node, &mut redirector);
    let connected = socket(&node, "0.0.0.0:0");
    let to = addr("198.18.0.53:53");
    let connected = node.inside("a", move || connected.connect(to).map(|()| connected)).unwrap();
    connected.send(b"q").unwrap();
    assert!(hear(&connected).is_ok());
    drop(engine_a);
    drop(redirector);
    connected.send(b"leak?").unwrap();
    let refused = hear(&connected).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
    let client = socket(&node, "0.0.0.0:0");
    for server in ["198.18.0.53:53", "198.18.9.9:53"] {
        assert!(!arrives(&client, server, &outside), "{server}: nothing gets past");
    }
    let mut redirector = node.redirector(node.config(1));
    let _engine = engine(&node, &mut redirector);
    connected.send(b"again").unwrap();
    assert_eq!(hear(&connected).unwrap().0, "198.18.0.53:53|again", "an old socket goes on");
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
    assert_eq!(enrolled.dns.len(), DNS_SERVERS);
    let client = socket(&node, "[::]:0");
    let refused = client.send_to(b"q", addr("[2001:db8::53]:53")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{refused}");
    assert_eq!(counters(&redirector)["dns_refused_family"], 1);
}
