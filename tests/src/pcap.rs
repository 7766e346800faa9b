//! Reading a recording: which TCP ports carried TLS, and whether a text is readable anywhere.

use crate::{Error, Result, context};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

const ETHERNET: u32 = 1;
const TCP: u8 = 6;

/// What a recording shows.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// All packets.
    pub packets: u64,
    /// All bytes, headers included.
    pub bytes: u64,
    /// Packets the kernel could not keep for the recorder.
    pub dropped: u64,
    /// Packets that contain one of the markers, described.
    pub readable: Vec<String>,
    /// Per TCP port, whichever side of the connection it is on.
    pub ports: BTreeMap<u16, Port>,
}

/// What was seen on one TCP port.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Segments that carried data.
    pub data_segments: u64,
    /// Segments that began with a TLS handshake record.
    pub tls_handshakes: u64,
    /// Segments that began with a TLS application data record.
    pub tls_data: u64,
}

impl Seen {
    /// What was seen on a TCP port.
    pub fn port(&self, port: u16) -> Port {
        self.ports.get(&port).copied().unwrap_or_default()
    }
}

/// Reads a recording. A marker that spans two packets is not found: tests repeat a short one so that packets hold it whole.
///
/// # Errors
/// If the file is not an Ethernet recording in pcap format.
pub fn scan(path: &Path, markers: &[&[u8]]) -> Result<Seen> {
    let file = File::open(path).map_err(context(path.display()))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; 24];
    reader.read_exact(&mut header).map_err(context(path.display()))?;
    let magic = word(&header, 0);
    if magic != Some(0xa1b2_c3d4) && magic != Some(0xa1b2_3c4d) {
        return Err(Error(format!("{} is not a pcap file of this machine", path.display())));
    }
    if word(&header, 20) != Some(ETHERNET) {
        return Err(Error(format!("{} is not an Ethernet recording", path.display())));
    }
    let mut seen = Seen::default();
    let mut record = [0; 16];
    let mut packet = Vec::new();
    loop {
        match reader.read_exact(&mut record) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(seen),
            Err(error) => return Err(format!("{}: {error}", path.display()).into()),
        }
        let length = word(&record, 8).unwrap_or(0) as usize;
        packet.resize(length, 0);
        reader.read_exact(&mut packet).map_err(context(path.display()))?;
        seen.add(&packet, markers);
    }
}

impl Seen {
    fn add(&mut self, packet: &[u8], markers: &[&[u8]]) {
        self.packets += 1;
        self.bytes += packet.len() as u64;
        let segment = tcp(packet);
        if markers.iter().any(|marker| contains(packet, marker)) && self.readable.len() < 20 {
            let ports = segment.map_or("not TCP".to_owned(), |(from, to, _)| format!("TCP {from} to {to}"));
            self.readable.push(format!("packet {}: {ports}, {} bytes", self.packets, packet.len()));
        }
        let Some((from, to, data)) = segment.filter(|(_, _, data)| !data.is_empty()) else {
            return;
        };
        for number in [from, to] {
            let port = self.ports.entry(number).or_default();
            port.data_segments += 1;
            match data {
                [0x16, 3, ..] => port.tls_handshakes += 1,
                [0x17, 3, 3, ..] => port.tls_data += 1,
                _ => {}
            }
        }
    }
}

/// Ports and data of a TCP segment in an Ethernet frame.
fn tcp(frame: &[u8]) -> Option<(u16, u16, &[u8])> {
    let (kind, packet) = (half(frame, 12)?, frame.get(14..)?);
    let (protocol, end, segment) = match kind {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            (*packet.get(9)?, usize::from(half(packet, 2)?).checked_sub(header)?, packet.get(header..)?)
        }
        0x86dd => (*packet.get(6)?, usize::from(half(packet, 4)?), packet.get(40..)?),
        _ => return None,
    };
    if protocol != TCP {
        return None;
    }
    // Length 0 stands for a packet that segmentation offload has yet to cut.
    let segment = if end == 0 { segment } else { segment.get(..end).unwrap_or(segment) };
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some((half(segment, 0)?, half(segment, 2)?, segment.get(header..)?))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else {
        return false;
    };
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(needle) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{Seen, contains};

    #[test]
    fn a_text_is_found_anywhere_and_only_whole() {
        for (haystack, needle, expected) in [
            ("xxabcx", "abc", true),
            ("abab", "abb", false),
            ("aab", "ab", true),
            ("ab", "abc", false),
            ("", "a", false),
        ] {
            assert_eq!(contains(haystack.as_bytes(), needle.as_bytes()), expected, "{needle} in {haystack}");
        }
    }

    #[test]
    fn a_tls_record_counts_for_both_ports_and_plain_text_is_reported() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x3a, 0xa0, 0x9c, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        frame.extend([0x17, 3, 3, 0, 1, b'x']);
        let mut seen = Seen::default();
        seen.add(&frame, &[b"\x03\x03"]);
        assert_eq!(seen.port(15008).tls_data, 1);
        assert_eq!(seen.port(40000).data_segments, 1);
        assert_eq!(seen.readable.len(), 1);
    }
}
