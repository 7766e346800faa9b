//! Messages: what is read, what is written, and arbitrary packets.

use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;

use super::*;
use crate::dns::message::{Question, Transport};
use crate::dns::{NEGATIVE_TTL, TTL};

fn query(name: &str, kind: RecordType) -> Message {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    message
}

fn with_size(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

/// What comes back for a message, with its size.
fn ask(message: &Message, transport: Transport) -> Option<(Message, usize)> {
    let mesh = Mesh::new();
    let question = Question::read(&message.to_vec().unwrap())?;
    let answer = mesh.answer(&question.name, question.kind)?;
    let bytes = question.answer(&answer, transport).unwrap();
    Some((Message::from_vec(&bytes).unwrap(), bytes.len()))
}

/// WIRE 16: authoritative, TTL 30.
#[test]
fn answers_are_authoritative_and_repeat_the_question_as_it_was_written() {
    let (answer, _) = ask(&query("WeB.shop.SVC.cluster.local", RecordType::A), Transport::Datagram).unwrap();
    assert_eq!((answer.id, answer.response_code), (4711, ResponseCode::NoError));
    assert!(answer.authoritative && answer.recursion_desired && answer.recursion_available && !answer.truncation);
    assert_eq!(answer.queries[0].name().to_ascii(), "WeB.shop.SVC.cluster.local.");
    let [record] = answer.answers.as_slice() else { panic!("{answer:?}") };
    assert_eq!((record.name.to_ascii().as_str(), record.ttl), ("WeB.shop.SVC.cluster.local.", TTL));
    assert_eq!(record.data, RData::A("10.96.0.1".parse::<std::net::Ipv4Addr>().unwrap().into()));
    assert!(answer.edns.is_none(), "a client without EDNS gets none");
}

/// WIRE 16: a CNAME first.
#[test]
fn an_alias_comes_before_the_records_of_its_target() {
    let (answer, _) =
        ask(&query("api.example.com.shop.svc.cluster.local", RecordType::A), Transport::Datagram).unwrap();
    let names: Vec<_> = answer.answers.iter().map(|record| (record.name.to_ascii(), record.record_type())).collect();
    let expected = [
        ("api.example.com.shop.svc.cluster.local.".to_owned(), RecordType::CNAME),
        ("api.example.com.".to_owned(), RecordType::A),
    ];
    assert_eq!(names, expected);
}

#[test]
fn absence_is_told_with_the_time_it_may_be_kept() {
    let (answer, _) = ask(&query("four.shop.svc.cluster.local", RecordType::AAAA), Transport::Datagram).unwrap();
    assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    let [authority] = answer.authorities.as_slice() else { panic!("{answer:?}") };
    assert_eq!((authority.name.to_ascii().as_str(), authority.ttl), ("cluster.local.", NEGATIVE_TTL));
    assert_eq!(authority.record_type(), RecordType::SOA);
}

#[test]
fn what_does_not_fit_is_cut_and_says_so() {
    let mesh = Mesh::new();
    let data: Vec<_> = (0..5000u32).map(|number| Data::A((0x0a00_0000 + number).into())).collect();
    let answer = Answer { alias: None, data, additional: Vec::new(), zone: "cluster.local".into() };
    let plain = query("db.shop.svc.cluster.local", RecordType::A);
    for (message, transport, limit, least) in [
        (plain.clone(), Transport::Datagram, 512, 20),
        (with_size(plain.clone(), 100), Transport::Datagram, 512, 20),
        (with_size(plain.clone(), 1232), Transport::Datagram, 1232, 60),
        (with_size(plain.clone(), 4096), Transport::Datagram, 4096, 150),
        (plain, Transport::Stream, 65_535, 1500),
    ] {
        let question = Question::read(&message.to_vec().unwrap()).unwrap();
        let bytes = question.answer(&answer, transport).unwrap();
        let written = Message::from_vec(&bytes).unwrap();
        assert!(bytes.len() <= limit, "{} > {limit}", bytes.len());
        assert!(written.truncation, "{limit}");
        assert!(written.answers.len() >= least, "{limit}: {} records are left", written.answers.len());
        assert_eq!(written.edns.is_some(), message.edns.is_some());
    }
    drop(mesh);
}

#[test]
fn edns_is_answered_in_kind() {
    let (answer, _) = ask(&with_size(query("web", RecordType::A), 4096), Transport::Datagram).unwrap();
    let edns = answer.edns.expect("EDNS");
    assert!(edns.flags().dnssec_ok && edns.version() == 0 && edns.max_payload() >= 512);
}

#[test]
fn packets_that_are_no_ordinary_question_are_forwarded() {
    let good = query("web.shop.svc.cluster.local", RecordType::A);
    assert!(Question::read(&good.to_vec().unwrap()).is_some());
    let changed = |change: &dyn Fn(&mut Message)| {
        let mut message = good.clone();
        change(&mut message);
        message.to_vec().unwrap()
    };
    for (packet, why) in [
        (Vec::new(), "empty"),
        (b"not DNS at all".to_vec(), "garbage"),
        (good.to_vec().unwrap()[..20].to_vec(), "cut short"),
        (changed(&|message| message.queries.clear()), "no question"),
        (changed(&|message| message.queries.push(good.queries[0].clone())), "two questions"),
        (changed(&|message| message.metadata.message_type = MessageType::Response), "a response"),
        (changed(&|message| message.metadata.op_code = OpCode::Update), "an update"),
        (
            changed(&|message| {
                let _ = message.queries[0].set_query_class(DNSClass::CH);
            }),
            "another class",
        ),
        (query(".", RecordType::NS).to_vec().unwrap(), "the root"),
    ] {
        assert!(Question::read(&packet).is_none(), "{why}");
    }
}

/// WIRE 16: SERVFAIL.
#[test]
fn a_client_whose_workload_is_unknown_is_told_to_ask_again() {
    let question = Question::read(&query("web", RecordType::A).to_vec().unwrap()).unwrap();
    let failure = Message::from_vec(&question.failure().unwrap()).unwrap();
    assert_eq!((failure.id, failure.response_code), (4711, ResponseCode::ServFail));
    assert_eq!(failure.queries[0].name().to_ascii(), "web.");
}

/// Reads a packet and answers it if it can be; panics and endless loops are what this is for.
fn feed(mesh: &Mesh, packet: &[u8]) {
    let Some(question) = Question::read(packet) else { return };
    let answer = mesh.answer(&question.name, question.kind);
    for transport in [Transport::Datagram, Transport::Stream] {
        if let Some(bytes) = answer.as_ref().and_then(|answer| question.answer(answer, transport)) {
            let written = Message::from_vec(&bytes).expect("what we write can be read");
            assert_eq!(written.id.to_be_bytes()[..], packet[..2]);
        }
    }
    assert!(question.failure().is_some());
}

proptest! {
    #[test]
    fn any_name_is_answered_or_forwarded(name in "[a-z0-9_*.-]{0,80}", domain in 0..4usize, kind in 0..70u16) {
        let domain = ["", ".shop.svc.cluster.local", ".mesh.internal", ".in-addr.arpa"][domain];
        if let Ok(mut name) = Name::from_ascii(format!("{name}{domain}")) {
            name.set_fqdn(true);
            let mut message = Message::new(7, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(name, RecordType::from(kind)));
            feed(&Mesh::new(), &message.to_vec().unwrap());
        }
    }
}

/// A few seconds of packets, or as many as CAUSEWAY_FUZZ_SECONDS says: noise, and good questions with bytes changed.
#[test]
fn arbitrary_packets_never_harm() {
    let seconds = std::env::var("CAUSEWAY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mesh = Mesh::new();
    let good: Vec<Vec<u8>> = [
        with_size(query("web.shop.svc.cluster.local", RecordType::A), 1232),
        query("db-9.db.shop.svc.cluster.local", RecordType::AAAA),
        query("_80._tcp.web.shop.svc.cluster.local", RecordType::SRV),
        query("1.0.96.10.in-addr.arpa", RecordType::PTR),
    ]
    .iter()
    .map(|message| message.to_vec().unwrap())
    .collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut fed = 0u64;
    while Instant::now() < deadline {
        let mut packet = good[next() as usize % good.len()].clone();
        if next() % 4 == 0 {
            packet = (0..next() % 600).map(|_| next() as u8).collect();
        }
        for _ in 0..next() % 6 {
            let at = next() as usize % packet.len().max(1);
            if let Some(byte) = packet.get_mut(at) {
                *byte = next() as u8;
            }
        }
        packet.truncate(if next() % 8 == 0 { next() as usize % 64 } else { usize::MAX });
        feed(&mesh, &packet);
        fed += 1;
    }
    println!("{fed} packets");
    assert!(fed > 1000);
}
