//! Many connections: in a row, at once, and their destinations.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod redirect_common;

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use causeway::redirect::{Enrolled, OriginalDst};
use redirect_common::holder::{self, Holder};
use redirect_common::{Node, addr, counters, helper_entry, ip, room_for, runnable, spawn_in};

#[test]
fn helper_process() {
    helper_entry();
}

/// Connections that were accepted, and those whose destination was not the one the client says it dialled.
#[derive(Default)]
struct Tally {
    accepted: AtomicU64,
    wrong: AtomicU64,
    missing: AtomicU64,
}

/// A dialled destination as the client announces it.
fn announce(to: SocketAddr) -> [u8; 18] {
    let ip = match to.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        std::net::IpAddr::V6(v6) => v6,
    };
    let mut message = [0; 18];
    message[..16].copy_from_slice(&ip.octets());
    message[16..].copy_from_slice(&to.port().to_be_bytes());
    message
}

/// Takes connections of one listener until told to stop: asks for the destination at once, then compares it with what the
/// client announces.
fn compare(listener: TcpListener, original: &OriginalDst, tally: &Tally, stop: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::yield_now();
            continue;
        };
        let found = original.get(stream.as_fd()).unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut message = [0; 18];
        stream.read_exact(&mut message).unwrap();
        let ip = Ipv6Addr::from(<[u8; 16]>::try_from(&message[..16]).unwrap());
        let dialled = SocketAddr::new(ip.to_canonical(), u16::from_be_bytes([message[16], message[17]]));
        match found {
            None => tally.missing.fetch_add(1, Ordering::Relaxed),
            Some(found) if found != dialled => tally.wrong.fetch_add(1, Ordering::Relaxed),
            Some(_) => 0,
        };
        tally.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

/// A small generator, so that every run dials other destinations.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn ten_thousand_random_destinations_are_all_right() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(2));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let acceptors: Vec<_> = enrolled
        .listeners
        .into_iter()
        .map(|set| {
            let (original, tally, stop) = (redirector.original_dst(), Arc::clone(&tally), Arc::clone(&stop));
            std::thread::spawn(move || compare(set.outbound, &original, &tally, &stop))
        })
        .collect();
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()) << 20 | 1;
    let clients: Vec<_> = (0..4)
        .map(|client| {
            node.spawn("a", move || {
                let mut state = seed.wrapping_mul(client * 2 + 3);
                for number in 0..2500 {
                    let value = random(&mut state);
                    let port = (value >> 48) as u16 | 1;
                    let to = match number % 3 {
                        0 => SocketAddr::from((Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(value)), port)),
                        1 => SocketAddr::from((
                            std::net::Ipv4Addr::from(value as u32 & 0x1ffff | 0xc612_0000).to_ipv6_mapped(),
                            port,
                        )),
                        _ => SocketAddr::from((std::net::Ipv4Addr::from(value as u32 & 0x1ffff | 0xc612_0000), port)),
                    };
                    let mut stream = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
                    assert_eq!(stream.peer_addr().unwrap(), to);
                    stream.write_all(&announce(to)).unwrap();
                    // The end of the stream says that the engine has compared.
                    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    acceptors.into_iter().for_each(|acceptor| acceptor.join().unwrap());
    let seen = [&tally.accepted, &tally.wrong, &tally.missing].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(seen, [10_000, 0, 0], "accepted, wrong, missing");
    let counted = counters(&redirector);
    assert_eq!(counted["flow_accepted"], 10_000, "{counted:?}");
}

/// Accepts and reads every connection to its end, until there were as many as expected.
fn drain(listener: TcpListener, accepted: &AtomicU64, expected: u64, limit: Instant) {
    listener.set_nonblocking(true).unwrap();
    while accepted.load(Ordering::Relaxed) < expected && Instant::now() < limit {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::yield_now();
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        while stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
        accepted.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn sixty_thousand_closed_connections_to_one_destination_all_work() {
    if !runnable() {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(2));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let accepted = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let limit = started + std::time::Duration::from_secs(120);
    let acceptors: Vec<_> = enrolled
        .listeners
        .into_iter()
        .map(|set| {
            let accepted = Arc::clone(&accepted);
            std::thread::spawn(move || drain(set.outbound, &accepted, 60_000, limit))
        })
        .collect();
    let clients: Vec<_> = (0..2)
        .map(|_| node.spawn("a", || (0..30_000).filter(|_| TcpStream::connect(addr("198.18.0.1:80")).is_err()).count()))
        .collect();
    let failed: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    println!("60,000 connections in {:.1} s", started.elapsed().as_secs_f64());
    acceptors.into_iter().for_each(|acceptor| acceptor.join().unwrap());
    assert_eq!((failed, accepted.load(Ordering::Relaxed)), (0, 60_000), "failed, accepted");
    let counted = counters(&redirector);
    assert_eq!((counted["outbound_redirected"], counted["flow_accepted"]), (60_000, 60_000), "{counted:?}");
    assert_eq!(node.pending_flows(), 0, "records are left");
}

#[test]
fn holder_process() {
    holder::holder_entry();
}

#[test]
fn forty_thousand_connections_are_open_at_once() {
    // Both ends of a quarter of them fit the descriptor limit of an ordinary root process.
    if !runnable() || !room_for(11_000) {
        return;
    }
    let mut node = Node::new();
    node.add_pod_and_peer();
    let mut redirector = node.redirector(node.config(1));
    let enrolled = redirector.enrol(&node.request("a")).unwrap();
    let listener = &enrolled.listeners[0].outbound;
    listener.set_nonblocking(false).unwrap();
    let to = "198.18.0.1:80";
    let mut acceptors: Vec<_> = (0..4).map(|_| Holder::accepting(&node, listener, 10_000, to)).collect();
    let mut clients: Vec<_> = (0..4).map(|_| Holder::connecting(&node, "a", 10_000, to)).collect();
    assert_eq!(clients.iter_mut().map(Holder::held).sum::<usize>(), 40_000, "connections of the clients");
    assert_eq!(acceptors.iter_mut().map(Holder::held).sum::<usize>(), 40_000, "connections with the right destination");
    let counted = counters(&redirector);
    assert_eq!((counted["flow_accepted"], counted["flow_failed"]), (40_000, 0), "{counted:?}");
}

#[test]
fn two_hundred_pods_share_one_redirector() {
    if !runnable() || !room_for(10_000) {
        return;
    }
    let mut node = Node::new();
    let pods: Vec<String> = (0..200).map(|number| format!("p{number}")).collect();
    for (number, pod) in pods.iter().enumerate() {
        let netns = node.add_netns(pod);
        ip(&format!("-n {netns} link add eth0 type veth peer name peer0"));
        ip(&format!("-n {netns} address add 10.97.{}.{}/16 dev eth0", number / 100, number % 100 + 1));
        ip(&format!("-n {netns} link set peer0 up"));
        ip(&format!("-n {netns} link set eth0 up"));
        ip(&format!("-n {netns} route add default dev eth0"));
    }
    let mut redirector = node.redirector(node.config(2));
    let original = redirector.original_dst();
    let enrolled: Vec<Enrolled> = pods.iter().map(|pod| redirector.enrol(&node.request(pod)).unwrap()).collect();
    for (number, pod) in pods.iter().enumerate() {
        let to = SocketAddr::from(([198, 18, 1, number as u8], 80));
        let netns = node.netns(pod);
        let _stream = spawn_in(&netns, move || TcpStream::connect(to).unwrap()).join().unwrap();
        assert_eq!(redirect_common::next_original(&enrolled[number], &original), Some(to), "{pod}");
    }
    drop(enrolled);
    for pod in &pods {
        redirector.forget(&format!("uid-{pod}")).unwrap();
    }
    assert_eq!(std::fs::read_dir(node.layout().join("pods")).unwrap().count(), 0, "links of pods are left");
}
