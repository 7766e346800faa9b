//! Reads questions and writes answers (RFC 1035, EDNS by RFC 6891).

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::answer::{Answer, Data, Kind};
use super::{NEGATIVE_TTL, TTL};

/// What a client without EDNS takes in a datagram (RFC 1035 2.3.4).
const PLAIN_DATAGRAM: usize = 512;
/// What we take in a datagram: no fragments on any usual path (RFC 9715 3.2).
const OWN_DATAGRAM: u16 = 1232;
/// Longest message over TCP: its length is a prefix of 16 bits.
const LONGEST: usize = u16::MAX as usize;
/// Records that surely do not fit into any message need not be written to find out. Fewer do: the encoder abbreviates the
/// first 120 names alone.
const MOST_RECORDS: usize = 4096;

/// How a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram, whose size the client limits.
    Datagram,
    /// Over TCP.
    Stream,
}

/// An ordinary question.
#[derive(Debug)]
pub struct Question {
    message: Message,
    /// Name in lower case, without trailing dot.
    pub name: String,
    /// What is asked for.
    pub kind: Kind,
}

impl Question {
    /// Reads a packet. `None` for whatever is not exactly one ordinary question for a name we could know: it is forwarded as
    /// it stands.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        let message = Message::from_vec(packet).ok()?;
        let [query] = message.queries.as_slice() else { return None };
        let ordinary = message.message_type == MessageType::Query
            && message.op_code == OpCode::Query
            && query.query_class() == DNSClass::IN
            && message.answers.is_empty()
            && message.authorities.is_empty()
            && message.signature.is_none()
            && message.version() == 0;
        if !ordinary {
            return None;
        }
        let name = text(query.name())?;
        let kind = match query.query_type() {
            RecordType::A => Kind::A,
            RecordType::AAAA => Kind::Aaaa,
            RecordType::SRV => Kind::Srv,
            RecordType::PTR => Kind::Ptr,
            RecordType::SVCB | RecordType::HTTPS => Kind::Binding,
            _ => Kind::Other,
        };
        Some(Self { message, name, kind })
    }

    /// Writes an answer, cut to what the client takes.
    #[must_use]
    pub fn answer(&self, answer: &Answer, transport: Transport) -> Option<Vec<u8>> {
        let mut response = self.response(ResponseCode::NoError);
        let asked = self.message.queries.first()?.name();
        let owner = match &answer.alias {
            None => asked.clone(),
            Some(alias) => {
                let target = absolute(alias)?;
                response.add_answer(Record::from_rdata(asked.clone(), TTL, RData::CNAME(CNAME(target.clone()))));
                target
            }
        };
        for data in answer.data.iter().take(MOST_RECORDS) {
            if let Some(data) = record_data(data) {
                response.add_answer(Record::from_rdata(owner.clone(), TTL, data));
            }
        }
        for (host, ip) in answer.additional.iter().take(MOST_RECORDS) {
            if let (Some(host), Some(data)) = (absolute(host), record_data(&Data::from(*ip))) {
                response.add_additional(Record::from_rdata(host, TTL, data));
            }
        }
        if answer.data.is_empty() {
            response.add_authority(authority(&answer.zone)?);
        }
        self.fit(response, transport)
    }

    /// Writes an answer that says that there is none for now, so that the client asks elsewhere or again.
    #[must_use]
    pub fn failure(&self) -> Option<Vec<u8>> {
        self.response(ResponseCode::ServFail).to_vec().ok()
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut response = Message::response(self.message.id, OpCode::Query);
        let metadata = &mut response.metadata;
        metadata.authoritative = code == ResponseCode::NoError;
        metadata.recursion_desired = self.message.recursion_desired;
        // What is not ours is forwarded to a resolver, so recursion is to be had here.
        metadata.recursion_available = true;
        metadata.checking_disabled = self.message.checking_disabled;
        metadata.response_code = code;
        response.queries.clone_from(&self.message.queries);
        if let Some(theirs) = &self.message.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(OWN_DATAGRAM).set_dnssec_ok(theirs.flags().dnssec_ok);
            response.set_edns(edns);
        }
        response
    }

    /// The message in bytes. Hosts' addresses go first when it is too long, then records, and the client is told to ask over
    /// TCP; those that do not (musl before 1.2.4) still get as many as fit.
    fn fit(&self, mut response: Message, transport: Transport) -> Option<Vec<u8>> {
        let limit = match transport {
            Transport::Stream => LONGEST,
            Transport::Datagram => match &self.message.edns {
                Some(edns) => usize::from(edns.max_payload()).max(PLAIN_DATAGRAM),
                None => PLAIN_DATAGRAM,
            },
        };
        let fitting = |response: &Message| response.to_vec().ok().filter(|bytes| bytes.len() <= limit);
        if let Some(bytes) = fitting(&response) {
            return Some(bytes);
        }
        response.additionals.clear();
        if let Some(bytes) = fitting(&response) {
            return Some(bytes);
        }
        response.metadata.truncation = true;
        let answers = std::mem::take(&mut response.answers);
        // As many as fit: fewer than `low` do, `high` do not.
        let (mut low, mut high, mut best) = (0, answers.len(), None);
        while low < high {
            let middle = (low + high) / 2;
            response.answers = answers.iter().take(middle).cloned().collect();
            match fitting(&response) {
                Some(bytes) => (low, best) = (middle + 1, Some(bytes)),
                None => high = middle,
            }
        }
        best
    }
}

fn record_data(data: &Data) -> Option<RData> {
    Some(match data {
        Data::A(ip) => RData::A(A(*ip)),
        Data::Aaaa(ip) => RData::AAAA(AAAA(*ip)),
        Data::Srv(port, host) => RData::SRV(SRV::new(0, 100, *port, absolute(host)?)),
        Data::Ptr(name) => RData::PTR(PTR(absolute(name)?)),
    })
}

/// The record that tells how long an absence may be kept (RFC 2308 3).
fn authority(zone: &str) -> Option<Record> {
    let owner = absolute(zone)?;
    let server = absolute("ns.causeway.internal")?;
    let mailbox = absolute("nobody.invalid")?;
    let soa = SOA::new(server, mailbox, 1, 3600, 600, 86_400, NEGATIVE_TTL);
    Some(Record::from_rdata(owner, NEGATIVE_TTL, RData::SOA(soa)))
}

fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// A name as text in lower case; nothing for the root and for names no host has.
fn text(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'.' && *byte != b'\\';
        if !label.iter().all(plain) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}
