//! One way to feed arbitrary input to what reads input from outside.
//!
//! Each target runs for five seconds, or for as many as `CAUSEWAY_FUZZ_SECONDS` says: `cargo xtask test` says 60. Inputs are noise, or good ones that were
//! damaged. The seed is printed; `CAUSEWAY_FUZZ_SEED` repeats a run.

use std::time::{Duration, Instant};

/// How long a target runs without a setting: for who runs one suite by hand.
const DEFAULT_SECONDS: u64 = 5;
/// Longest input of pure noise.
const NOISE: usize = 600;
/// An input that takes longer than this to read is a stall. Reading takes microseconds; the rest is for a busy machine.
const STALL: Duration = Duration::from_secs(5);

/// xorshift64*.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, or 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % limit.max(1) as u64).unwrap_or_default()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[2]
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }
}

/// Changes a few bytes: other values, flipped bits, cut, doubled, put in, left out.
pub fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match (random.below(6), bytes.get_mut(at)) {
            (0, Some(byte)) => *byte = random.byte(),
            (1, Some(byte)) => *byte ^= 1 << random.below(8),
            (2, _) => bytes.truncate(at),
            (3, Some(_)) => drop(bytes.remove(at)),
            (4, _) => {
                let end = (at + random.below(40)).min(bytes.len());
                bytes.extend_from_within(at..end);
            }
            _ => bytes.insert(at, random.byte()),
        }
    }
}

/// Feeds a target until its time is over; every panic names the input. Returns how many inputs there were.
///
/// # Panics
/// If the target stalls, or was hardly fed.
pub fn run(target: &str, good: &[&[u8]], mut feed: impl FnMut(&[u8], &mut Random)) -> u64 {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = number("CAUSEWAY_FUZZ_SECONDS").unwrap_or(DEFAULT_SECONDS);
    let seed = number("CAUSEWAY_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("{target}: seed {seed}");
    let mut random = Random(seed | 1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut fed = 0_u64;
    while Instant::now() < end {
        let input = match random.pick(good) {
            Some(one) if random.below(4) > 0 => {
                let mut input = one.to_vec();
                damage(&mut input, &mut random);
                input
            }
            _ => (0..random.below(NOISE)).map(|_| random.byte()).collect(),
        };
        let begin = Instant::now();
        let shown = Shown(target, &input);
        feed(&input, &mut random);
        std::mem::forget(shown);
        assert!(begin.elapsed() < STALL, "{target}: took {:?} to read {input:?}", begin.elapsed());
        fed += 1;
    }
    assert!(fed > 50, "{target}: only {fed} inputs");
    println!("{target}: {fed} inputs");
    fed
}

/// Prints the input when it is dropped, which only a panic does.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        println!("{}: failed with {:?}", self.0, self.1);
    }
}
