//! The `traceparent` header (W3C Trace Context): one random identifier per application connection.

use std::fmt;

/// A trace and span identifier. Neither is all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
}

impl TraceParent {
    /// Makes one from 24 random bytes.
    #[must_use]
    pub fn random(bytes: [u8; 24]) -> Self {
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        for (to, from) in trace.iter_mut().chain(span.iter_mut()).zip(bytes) {
            *to = from;
        }
        // All zero means "invalid" in the format.
        if trace == [0; 16] {
            trace = [1; 16];
        }
        if span == [0; 8] {
            span = [1; 8];
        }
        Self { trace, span }
    }

    /// Reads `vv-<32 hex>-<16 hex>-ff`; nothing for any other shape.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.len() != 55 {
            return None;
        }
        let mut fields = value.split(|byte| *byte == b'-');
        let version: [u8; 1] = hex(fields.next()?)?;
        let trace: [u8; 16] = hex(fields.next()?)?;
        let span: [u8; 8] = hex(fields.next()?)?;
        let _flags: [u8; 1] = hex(fields.next()?)?;
        let good = fields.next().is_none() && version != [0xff] && trace != [0; 16] && span != [0; 8];
        good.then_some(Self { trace, span })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        for byte in self.trace {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("-")?;
        for byte in self.span {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("-00")
    }
}

/// Exactly `N` bytes from `2 * N` hexadecimal digits.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != N * 2 {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        for digit in pair {
            let value = char::from(*digit).to_digit(16)?;
            *byte = (*byte << 4) | u8::try_from(value).ok()?;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_value_reads_and_others_do_not() {
        let good = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(TraceParent::parse(good).map(|t| t.to_string().into_bytes()), Some(good.to_vec()));
        let rows: [&[u8]; 7] = [
            b"",
            // The right length without any dash.
            b"0000af7651916cd43dd8448eb211c80319c0b7ad6b71692033310000",
            b"0000af7651916cd43dd8448eb211c80319c0b7ad6b7169203331000",
            b"00-00000000000000000000000000000000-b7ad6b7169203331-00",
            b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-00",
            b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            b"00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-00",
        ];
        for row in rows {
            assert_eq!(TraceParent::parse(row), None, "{row:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(value in prop::collection::vec(any::<u8>(), 0..70)) {
            let _ = TraceParent::parse(&value);
        }

        #[test]
        fn any_55_bytes_of_the_alphabet_never_panic(value in "[0-9a-f-]{55}") {
            let _ = TraceParent::parse(value.as_bytes());
        }

        #[test]
        fn random_values_round_trip(bytes: [u8; 24]) {
            let made = TraceParent::random(bytes);
            prop_assert_eq!(TraceParent::parse(made.to_string().as_bytes()), Some(made));
        }
    }
}
