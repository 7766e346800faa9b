//! Questions of our own, asked to see whether names are answered.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

/// A question for the IPv4 address of a name. `None` if that is no name.
#[must_use]
pub fn question(name: &str, id: u16) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::A));
    message.to_vec().ok()
}

/// Whether a packet answers the question with this number; that there is no such record is an answer, too.
///
/// # Errors
/// What else it is.
pub fn answered(id: u16, packet: &[u8]) -> Result<(), String> {
    let message = Message::from_vec(packet).map_err(|error| format!("what came is no DNS message: {error}"))?;
    if message.id != id || message.message_type != MessageType::Response {
        return Err("what came is no answer to the question".to_owned());
    }
    match message.response_code {
        ResponseCode::NoError => Ok(()),
        code => Err(format!("the answer is {code}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;
    use crate::dns::message::Question;

    #[test]
    fn a_question_is_one_and_only_its_own_answer_counts() {
        let asked = question("web.shop.svc.cluster.local", 7).unwrap();
        let read = Question::read(&asked).unwrap();
        assert_eq!(read.name, "web.shop.svc.cluster.local");
        assert!(answered(7, &asked).unwrap_err().contains("no answer to the question"));
        let failure = read.failure().unwrap();
        assert!(answered(7, &failure).unwrap_err().contains("Server Failure"), "{:?}", answered(7, &failure));
        assert!(answered(8, &failure).unwrap_err().contains("no answer to the question"));
        assert!(answered(7, b"?").unwrap_err().contains("no DNS message"));
        assert_eq!(question("a..b", 7), None);
    }
}
