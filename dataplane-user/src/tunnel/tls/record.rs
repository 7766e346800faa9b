//! TLS 1.3 records (RFC 8446, 5): sealing and opening, without any input or output.
//!
//! The handshake, its keys and their updates are rustls'; only the protection of application data is here, because the
//! buffered interface of rustls copies every byte three times on the way in and once more on the way out.

use std::fmt;

use bytes::BytesMut;
use rustls::ConnectionTrafficSecrets;

use super::aead::{Key, NONCE_BYTES, TAG_BYTES};

/// Largest plaintext of one record.
pub const PLAINTEXT_BYTES: usize = 16 << 10;
/// Record type, legacy version, length.
pub const HEADER_BYTES: usize = 5;
/// Largest ciphertext a peer may send: plaintext, padding and tag (RFC 8446, 5.2).
const CIPHERTEXT_BYTES: usize = PLAINTEXT_BYTES + 256;
/// What a record adds to its plaintext.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;
/// The record type that every protected record shows.
const APPLICATION_DATA: u8 = 23;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An alert.
    Alert,
    /// A message after the handshake.
    Handshake,
    /// Bytes of the application.
    Application,
}

impl Content {
    fn code(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Application => APPLICATION_DATA,
        }
    }
}

/// Why a record is refused. Each ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// It is not a protected record.
    NotProtected(u8),
    /// It is longer than the protocol allows.
    TooLong(usize),
    /// It does not authenticate: changed on the way, or out of order.
    Forged,
    /// Its content type is none of TLS 1.3.
    UnknownContent,
    /// The suite is none of those offered.
    Suite,
    /// Its number would repeat one used before.
    Exhausted,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotProtected(kind) => write!(f, "a record of type {kind} where only protected ones are allowed"),
            Self::TooLong(length) => write!(f, "a record of {length} bytes: the limit is {CIPHERTEXT_BYTES}"),
            Self::Forged => f.write_str("a record that does not authenticate (bad_record_mac)"),
            Self::UnknownContent => f.write_str("a record without a content type"),
            Self::Suite => f.write_str("a cipher suite that was not offered"),
            Self::Exhausted => f.write_str("the record numbers of a key are used up"),
        }
    }
}

impl std::error::Error for RecordError {}

/// A traffic key with the number of the next record.
struct Direction {
    key: Key,
    iv: [u8; NONCE_BYTES],
    next: u64,
}

impl Direction {
    fn new((next, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        let (key, iv) = Key::new(&secrets).map_err(|_| RecordError::Suite)?;
        Ok(Self { key, iv, next })
    }

    /// The nonce of the next record (RFC 8446, 5.3). Each number is given out once.
    fn nonce(&mut self) -> Result<[u8; NONCE_BYTES], RecordError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().skip(NONCE_BYTES - 8).zip(self.next.to_be_bytes()) {
            *byte ^= number;
        }
        self.next = self.next.checked_add(1).ok_or(RecordError::Exhausted)?;
        Ok(nonce)
    }
}

fn header(length: usize) -> [u8; HEADER_BYTES] {
    // Lengths are bounded by the largest record, far below 65,536.
    let [.., high, low] = length.to_be_bytes();
    [APPLICATION_DATA, 3, 3, high, low]
}

/// Protects what is sent.
pub struct Sealer(Direction);

impl Sealer {
    /// From a number and a key as rustls hands them out.
    ///
    /// # Errors
    /// [`RecordError::Suite`].
    pub fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Direction::new(secrets).map(Self)
    }

    /// Records sealed with this key.
    pub fn records(&self) -> u64 {
        self.0.next
    }

    /// Appends one record with all of `parts`, at most [`PLAINTEXT_BYTES`] together, to `out`.
    ///
    /// # Errors
    /// [`RecordError::Exhausted`]; `out` is unchanged then.
    pub fn seal(&mut self, content: Content, parts: &[&[u8]], out: &mut BytesMut) -> Result<(), RecordError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > PLAINTEXT_BYTES {
            return Err(RecordError::TooLong(length));
        }
        let nonce = self.0.nonce()?;
        let header = header(length + 1 + TAG_BYTES);
        let start = out.len();
        out.extend_from_slice(&header);
        for part in parts {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(&[content.code()]);
        let text = out.get_mut(start + HEADER_BYTES..).unwrap_or_default();
        match self.0.key.seal(nonce, header, text) {
            Ok(tag) => {
                out.extend_from_slice(&tag);
                Ok(())
            }
            Err(_) => {
                // What is not encrypted must not stay where it could be sent.
                out.truncate(start);
                Err(RecordError::Exhausted)
            }
        }
    }
}

/// Where a whole record lies in a buffer, its length included.
///
/// # Errors
/// What stands there cannot be a protected record.
pub fn length(buffer: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[kind, _, _, high, low]) = buffer.first_chunk() else {
        return Ok(None);
    };
    if kind != APPLICATION_DATA {
        return Err(RecordError::NotProtected(kind));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > CIPHERTEXT_BYTES {
        return Err(RecordError::TooLong(length));
    }
    let whole = HEADER_BYTES + length;
    Ok((buffer.len() >= whole).then_some(whole))
}

/// Opens what is received.
pub struct Opener(Direction);

impl Opener {
    /// From a number and a key as rustls hands them out.
    ///
    /// # Errors
    /// [`RecordError::Suite`].
    pub fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Direction::new(secrets).map(Self)
    }

    /// Opens `record`, a whole one, where it lies: what it carries begins behind its header.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn open(&mut self, record: &mut [u8]) -> Result<(Content, usize), RecordError> {
        let (header, text) = record.split_first_chunk_mut::<HEADER_BYTES>().ok_or(RecordError::Forged)?;
        let nonce = self.0.nonce()?;
        content(self.0.key.open(nonce, *header, text).map_err(|_| RecordError::Forged)?)
    }
}

/// The content type behind the last byte that is not padding (RFC 8446, 5.4), and the length before it.
fn content(plain: &[u8]) -> Result<(Content, usize), RecordError> {
    let end = plain.iter().rposition(|byte| *byte != 0).ok_or(RecordError::UnknownContent)?;
    let content = match plain.get(end) {
        Some(21) => Content::Alert,
        Some(22) => Content::Handshake,
        Some(&APPLICATION_DATA) => Content::Application,
        _ => return Err(RecordError::UnknownContent),
    };
    if end > PLAINTEXT_BYTES { Err(RecordError::TooLong(end)) } else { Ok((content, end)) }
}
