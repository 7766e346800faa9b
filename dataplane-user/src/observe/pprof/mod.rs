//! A CPU profile in the format of pprof: stacks, how often each was seen, and the names of their functions.

mod gzip;
mod modules;

use std::{
    collections::HashMap,
    io,
    time::{Duration, SystemTime},
};

use framehop::{CacheNative, MayAllocateDuringUnwind, Unwinder as _, UnwinderNative};
use prost::Message as _;

use self::modules::Modules;

pub use framehop::UnwindRegsNative;

/// Frames kept of one stack.
const MOST_FRAMES: usize = 128;
/// Stands for the kernel, above the stack that called it; no function has this address.
const KERNEL: u64 = 0;
/// Stands below a stack that was not copied to its end.
const CUT: u64 = u64::MAX;

/// Gathers stacks.
pub struct Stacks {
    modules: Modules,
    unwinder: UnwinderNative<Vec<u8>, MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
    frames: Vec<u64>,
    seen: HashMap<Box<[u64]>, u64>,
}

impl Stacks {
    /// Reads how the stacks of this process are to be unwound.
    ///
    /// # Errors
    /// The list of its mappings cannot be read.
    pub fn new() -> io::Result<Self> {
        let mut unwinder = UnwinderNative::new();
        let modules = Modules::of_this_process(&mut unwinder)?;
        Ok(Self { modules, unwinder, cache: CacheNative::new_in(), frames: Vec::new(), seen: HashMap::new() })
    }

    /// Adds one sample: registers, and the stack from its pointer upwards.
    pub fn add(&mut self, ip: u64, sp: u64, registers: UnwindRegsNative, stack: &[u8], in_kernel: bool) {
        self.frames.clear();
        if in_kernel {
            self.frames.push(KERNEL);
        }
        let mut read = |address: u64| {
            let offset = address.checked_sub(sp).and_then(|offset| usize::try_from(offset).ok()).ok_or(())?;
            let bytes = stack.get(offset..).and_then(<[u8]>::first_chunk).ok_or(())?;
            Ok(u64::from_ne_bytes(*bytes))
        };
        let mut frames = self.unwinder.iter_frames(ip, registers, &mut self.cache, &mut read);
        loop {
            match frames.next() {
                Ok(Some(frame)) if self.frames.len() < MOST_FRAMES => self.frames.push(frame.address_for_lookup()),
                Ok(None) => break,
                // Kept as far as it is known.
                Ok(Some(_)) | Err(_) => {
                    self.frames.push(CUT);
                    break;
                }
            }
        }
        match self.seen.get_mut(self.frames.as_slice()) {
            Some(count) => *count += 1,
            None => {
                self.seen.insert(self.frames.as_slice().into(), 1);
            }
        }
    }

    /// The profile, compressed as the format asks.
    #[must_use]
    pub fn profile(self, frequency: u32, duration: Duration, lost: u64) -> Vec<u8> {
        let mut builder = Builder::default();
        builder.text("");
        let period = 1_000_000_000 / i64::from(frequency.max(1));
        let samples = ValueType { kind: builder.text("samples"), unit: builder.text("count") };
        let cpu = ValueType { kind: builder.text("cpu"), unit: builder.text("nanoseconds") };
        let names = self.modules.names();
        for (frames, count) in &self.seen {
            let location_id = frames.iter().map(|address| builder.location(*address, &names)).collect();
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            builder.samples.push(Sample { location_id, value: vec![count, count.saturating_mul(period)] });
        }
        let mut comment = vec![builder.text("causeway, user stacks")];
        if lost > 0 {
            comment.push(builder.text(&format!("{lost} samples were lost")));
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let mapping = names.mappings().map(|(id, module)| Mapping {
            id,
            memory_start: module.range.start,
            memory_limit: module.range.end,
            file_offset: module.offset,
            filename: builder.text(&module.path),
            has_functions: true,
        });
        let mapping = mapping.collect();
        let profile = Profile {
            sample_type: vec![samples, cpu.clone()],
            sample: builder.samples,
            mapping,
            location: builder.locations,
            function: builder.functions,
            string_table: builder.texts,
            time_nanos: nanos(now.saturating_sub(duration)),
            duration_nanos: nanos(duration),
            period_type: Some(cpu),
            period,
            comment,
        };
        gzip::stored(&profile.encode_to_vec())
    }
}

/// Tables of a profile while it is made.
#[derive(Default)]
struct Builder {
    texts: Vec<String>,
    text_ids: HashMap<String, i64>,
    function_ids: HashMap<String, u64>,
    functions: Vec<Function>,
    location_ids: HashMap<u64, u64>,
    locations: Vec<Location>,
    samples: Vec<Sample>,
}

impl Builder {
    fn text(&mut self, text: &str) -> i64 {
        if let Some(id) = self.text_ids.get(text) {
            return *id;
        }
        let id = i64::try_from(self.texts.len()).unwrap_or(0);
        self.texts.push(text.to_owned());
        self.text_ids.insert(text.to_owned(), id);
        id
    }

    fn function(&mut self, name: &str) -> u64 {
        if let Some(id) = self.function_ids.get(name) {
            return *id;
        }
        let id = self.functions.len() as u64 + 1;
        let text = self.text(name);
        self.functions.push(Function { id, name: text, system_name: text });
        self.function_ids.insert(name.to_owned(), id);
        id
    }

    fn location(&mut self, address: u64, names: &modules::Names<'_>) -> u64 {
        if let Some(id) = self.location_ids.get(&address) {
            return *id;
        }
        let (name, mapping_id) = match address {
            KERNEL => ("[kernel]".to_owned(), 0),
            CUT => ("[not copied further]".to_owned(), 0),
            address => names.of(address),
        };
        let line = vec![Line { function_id: self.function(&name) }];
        let id = self.locations.len() as u64 + 1;
        self.locations.push(Location { id, mapping_id, address, line });
        self.location_ids.insert(address, id);
        id
    }
}

/// `perftools.profiles.Profile`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
    #[prost(int64, repeated, tag = "13")]
    comment: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    memory_start: u64,
    #[prost(uint64, tag = "3")]
    memory_limit: u64,
    #[prost(uint64, tag = "4")]
    file_offset: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
    use super::*;

    #[test]
    fn a_profile_names_the_functions_of_its_stacks() {
        let mut stacks = Stacks::new().unwrap();
        let here = a_profile_names_the_functions_of_its_stacks as *const () as u64 + 1;
        for _ in 0..3 {
            stacks.seen.entry([KERNEL, here].into()).and_modify(|count| *count += 1).or_insert(1);
        }
        let bytes = stacks.profile(100, Duration::from_secs(1), 2);
        assert_eq!(bytes.first_chunk(), Some(&[0x1f, 0x8b]), "gzip");
        let profile = Profile::decode(gzip::tests::unpack(&bytes).as_slice()).unwrap();
        assert_eq!(profile.string_table.first().map(String::as_str), Some(""));
        assert_eq!(profile.sample.len(), 1);
        assert_eq!(profile.sample[0].value, [3, 30_000_000]);
        let text = |id: i64| profile.string_table[usize::try_from(id).unwrap()].as_str();
        let names: Vec<&str> = profile.sample[0]
            .location_id
            .iter()
            .map(|id| profile.location.iter().find(|location| location.id == *id).unwrap().line[0].function_id)
            .map(|id| text(profile.function.iter().find(|function| function.id == id).unwrap().name))
            .collect();
        assert_eq!(names[0], "[kernel]");
        assert!(names[1].ends_with("a_profile_names_the_functions_of_its_stacks"), "{names:?}");
        assert!(profile.comment.iter().any(|id| text(*id) == "2 samples were lost"));
        assert!(!profile.mapping.is_empty());
    }
}
