//! Ciphertext between the transport and the records in it.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Ciphertext read from the transport at once: sixteen full records.
const READ_BYTES: usize = 256 << 10;
/// Buffers a worker keeps for its next read.
const SPARE_BUFFERS: usize = 8;

thread_local! {
    /// Buffers between two reads: only a stream with unread bytes holds one, so idle tunnels cost none.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Ciphertext received and not yet opened.
#[derive(Default)]
pub struct Incoming {
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Incoming {
    /// What is here.
    pub fn pending(&self) -> &[u8] {
        self.buffer.as_deref().and_then(|buffer| buffer.get(self.start..self.end)).unwrap_or_default()
    }

    /// What is here, to be changed in place.
    pub fn pending_mut(&mut self) -> &mut [u8] {
        self.buffer.as_deref_mut().and_then(|buffer| buffer.get_mut(self.start..self.end)).unwrap_or_default()
    }

    /// Drops `count` bytes from the front.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.end {
            self.release();
        }
    }

    fn release(&mut self) {
        (self.start, self.end) = (0, 0);
        if let Some(buffer) = self.buffer.take() {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_BUFFERS {
                    spare.push(buffer);
                }
            });
        }
    }

    /// Reads behind what is here, at least one byte; 0 means the end of the stream.
    pub fn poll_fill<IO: AsyncRead + Unpin>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let buffer = self.buffer.get_or_insert_with(|| {
            SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ_BYTES].into_boxed_slice())
        });
        if self.start > 0 {
            // The beginning of a record whose rest is still on the way.
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut view = ReadBuf::new(buffer.get_mut(self.end..).unwrap_or_default());
        let polled = Pin::new(io).poll_read(cx, &mut view);
        let count = view.filled().len();
        self.end += count;
        if self.end == 0 {
            self.release();
        }
        polled.map_ok(|()| count)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.release();
    }
}
