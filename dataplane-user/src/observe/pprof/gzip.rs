//! The container that pprof expects (RFC 1952), with its content stored as it is (RFC 1951 3.2.4): a profile is small.

/// Most bytes of one stored block.
const BLOCK: usize = 0xffff;

/// `content` in a gzip member.
pub fn stored(content: &[u8]) -> Vec<u8> {
    // Magic, deflate, no flags, no time, no level, unknown system.
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut blocks = content.chunks(BLOCK).peekable();
    if blocks.peek().is_none() {
        out.extend([1, 0, 0, 0xff, 0xff]);
    }
    while let Some(block) = blocks.next() {
        let length = block.len() as u16;
        out.push(u8::from(blocks.peek().is_none()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(block);
    }
    out.extend(crc32(content).to_le_bytes());
    out.extend((content.len() as u32).to_le_bytes());
    out
}

/// The checksum of RFC 1952, bit by bit.
fn crc32(content: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !content.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The content of what [`stored`] made.
    pub fn unpack(bytes: &[u8]) -> Vec<u8> {
        let (mut rest, mut out) = (bytes.get(10..).unwrap_or_default(), Vec::new());
        loop {
            let (last, length) = (rest[0], usize::from(u16::from_le_bytes([rest[1], rest[2]])));
            out.extend(&rest[5..5 + length]);
            rest = &rest[5 + length..];
            if last == 1 {
                assert_eq!(rest[..4], crc32(&out).to_le_bytes());
                assert_eq!(rest.len(), 8);
                return out;
            }
        }
    }

    #[test]
    fn content_of_any_length_comes_out_again() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the check value of the algorithm");
        for length in [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            let content: Vec<u8> = (0..length).map(|at| at as u8).collect();
            assert_eq!(unpack(&stored(&content)), content, "{length}");
        }
    }
}
