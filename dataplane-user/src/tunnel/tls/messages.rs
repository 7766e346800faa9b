//! What travels in protected records besides data: alerts, and messages after the handshake (RFC 8446, 4.6 and 6).

use std::fmt;

use bytes::{Buf, BytesMut};
use rustls::AlertDescription;

use super::record::RecordError;

/// A KeyUpdate that asks for no answer.
pub const KEY_UPDATE: [u8; 5] = [KEY_UPDATE_TYPE, 0, 0, 1, 0];
const KEY_UPDATE_TYPE: u8 = 24;
const NEW_SESSION_TICKET_TYPE: u8 = 4;
/// Type and length of a handshake message.
const MESSAGE_HEADER_BYTES: usize = 4;
/// Largest message accepted.
const MESSAGE_BYTES: usize = 64 << 10;

/// Why a session ends with an error.
#[derive(Debug)]
pub enum Refused {
    /// A record is refused.
    Record(RecordError),
    /// A message has no place here, in words.
    Unexpected(&'static str),
    /// A message cannot be read, in words.
    Malformed(&'static str),
    /// The peer ends the session.
    ByPeer(AlertDescription),
    /// rustls refuses.
    Tls(rustls::Error),
}

impl Refused {
    /// What the peer is told.
    pub fn alert(&self) -> Alert {
        Alert::Fatal(match self {
            Self::Record(RecordError::Forged) => AlertDescription::BadRecordMac,
            Self::Record(RecordError::TooLong(_)) => AlertDescription::RecordOverflow,
            Self::Record(RecordError::Suite | RecordError::Exhausted) | Self::Tls(_) => AlertDescription::InternalError,
            Self::Record(_) | Self::Unexpected(_) => AlertDescription::UnexpectedMessage,
            Self::Malformed(_) => AlertDescription::DecodeError,
            Self::ByPeer(alert) => *alert,
        })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(error) => error.fmt(f),
            Self::Unexpected(what) => write!(f, "unexpected: {what}"),
            Self::Malformed(what) => write!(f, "malformed: {what}"),
            Self::ByPeer(alert) => write!(f, "the peer ended the session (TLS alert {alert:?})"),
            Self::Tls(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refused {}

impl From<RecordError> for Refused {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

impl From<rustls::Error> for Refused {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

/// An alert.
#[derive(Debug, PartialEq, Eq)]
pub enum Alert {
    /// The peer has sent all it had.
    CloseNotify,
    /// The peer gives up; a close_notify follows.
    UserCanceled,
    /// Everything else ends the session, whatever level it claims.
    Fatal(AlertDescription),
}

impl Alert {
    /// Reads an alert.
    ///
    /// # Errors
    /// [`Refused::Malformed`].
    pub fn parse(data: &[u8]) -> Result<Self, Refused> {
        match data {
            [_, 0] => Ok(Self::CloseNotify),
            [_, 90] => Ok(Self::UserCanceled),
            [_, description] => Ok(Self::Fatal(AlertDescription::from(*description))),
            _ => Err(Refused::Malformed("an alert is two bytes")),
        }
    }

    /// As it is sent.
    pub fn to_bytes(&self) -> [u8; 2] {
        match self {
            Self::CloseNotify => [1, 0],
            Self::UserCanceled => [1, 90],
            Self::Fatal(description) => [2, u8::from(*description)],
        }
    }
}

/// A message after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// The peer's next record uses a new key.
    KeyUpdate {
        /// The peer wants ours to change as well.
        answer: bool,
    },
    /// A ticket for a later session.
    NewSessionTicket(Vec<u8>),
}

/// Joins messages that are spread over records.
#[derive(Default)]
pub struct Messages(BytesMut);

impl Messages {
    /// Takes the content of one record; returns the messages that are complete now.
    ///
    /// # Errors
    /// A message that is unknown, too long or malformed, or a KeyUpdate that does not end its record.
    pub fn push(&mut self, data: &[u8]) -> Result<Vec<Message>, Refused> {
        if data.is_empty() {
            return Err(Refused::Unexpected("an empty handshake record"));
        }
        self.0.extend_from_slice(data);
        let mut complete = Vec::new();
        while let Some(&[kind, high, middle, low]) = self.0.first_chunk::<MESSAGE_HEADER_BYTES>() {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MESSAGE_BYTES {
                return Err(Refused::Malformed("a handshake message above 64 KiB"));
            }
            if self.0.len() < MESSAGE_HEADER_BYTES + length {
                break;
            }
            self.0.advance(MESSAGE_HEADER_BYTES);
            let body = self.0.split_to(length);
            complete.push(match (kind, &body[..]) {
                // The key changes with the record: what follows in it would belong to no key.
                (KEY_UPDATE_TYPE, _) if !self.0.is_empty() => {
                    return Err(Refused::Unexpected("data behind a KeyUpdate in one record"));
                }
                (KEY_UPDATE_TYPE, [0]) => Message::KeyUpdate { answer: false },
                (KEY_UPDATE_TYPE, [1]) => Message::KeyUpdate { answer: true },
                (KEY_UPDATE_TYPE, _) => return Err(Refused::Malformed("a KeyUpdate")),
                (NEW_SESSION_TICKET_TYPE, ticket) => Message::NewSessionTicket(ticket.to_vec()),
                _ => return Err(Refused::Unexpected("a handshake message after the handshake")),
            });
        }
        Ok(complete)
    }
}
