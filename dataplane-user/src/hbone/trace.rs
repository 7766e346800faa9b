//! The `traceparent` header (W3C Trace Context): one random identifier per application connection, which the nodes on its
//! way share.

use std::fmt;

/// The bit of the flags that says that the sender records the trace.
const SAMPLED: u8 = 1;

/// A trace and span identifier. Neither is all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

/// What one node records of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its trace and its own identifier, as the next node is told.
    pub context: TraceParent,
    /// The span of the node before, where this is not the first.
    pub parent: Option<[u8; 8]>,
}

impl Span {
    /// The first of a trace.
    #[must_use]
    pub fn first(context: TraceParent) -> Self {
        Self { context, parent: None }
    }

    /// The span below `parent`, with an identifier of its own.
    #[must_use]
    pub fn below(parent: TraceParent, random: u64) -> Self {
        let context = TraceParent { span: random.max(1).to_be_bytes(), ..parent };
        Self { context, parent: Some(parent.span) }
    }
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
        Self { trace, span, sampled: false }
    }

    /// The same, recorded or not.
    #[must_use]
    pub fn recorded(self, sampled: bool) -> Self {
        Self { sampled, ..self }
    }

    /// Whether the sender records it.
    #[must_use]
    pub fn is_recorded(self) -> bool {
        self.sampled
    }

    /// The identifier of the trace.
    #[must_use]
    pub fn trace(self) -> [u8; 16] {
        self.trace
    }

    /// The identifier of the span.
    #[must_use]
    pub fn span(self) -> [u8; 8] {
        self.span
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
        let [flags]: [u8; 1] = hex(fields.next()?)?;
        let good = fields.next().is_none() && version != [0xff] && trace != [0; 16] && span != [0; 8];
        good.then_some(Self { trace, span, sampled: flags & SAMPLED != 0 })
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
        f.write_str(if self.sampled { "-01" } else { "-00" })
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

    #[test]
    fn the_span_below_keeps_trace_and_flag_and_has_its_own_number() {
        let parent = TraceParent::random([7; 24]).recorded(true);
        let span = Span::below(parent, 0);
        assert_eq!(span.context.trace(), parent.trace());
        assert_eq!(span.parent, Some(parent.span()));
        assert_eq!(span.context.span(), [0, 0, 0, 0, 0, 0, 0, 1], "all zero means invalid");
        assert!(span.context.is_recorded());
        let sent = span.context.to_string();
        assert!(sent.ends_with("-01"), "{sent}");
        assert_eq!(TraceParent::parse(sent.as_bytes()), Some(span.context));
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
