//! The files this process runs: how their stacks are unwound, and what their functions are called.

use std::{collections::BTreeMap, fs::File, io, ops::Range};

use framehop::{
    ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module as FramehopModule, Unwinder as _, UnwinderNative,
};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ObjectSymbol as _, ReadCache, SymbolKind};

/// One executable part of a file, in memory.
pub struct Module {
    /// Where it is in memory.
    pub range: Range<u64>,
    /// Where it is in the file.
    pub offset: u64,
    /// The file.
    pub path: String,
    /// What is added to an address of the file.
    bias: u64,
}

/// All of them.
pub struct Modules(Vec<Module>);

impl Modules {
    /// Reads the mappings of this process and tells `unwinder` about them. A file that cannot be read is left out: its frames
    /// have no names, and what is below them is found by frame pointers or not at all.
    pub fn of_this_process(unwinder: &mut UnwinderNative<Vec<u8>, MayAllocateDuringUnwind>) -> io::Result<Self> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let mut modules = Vec::new();
        for (range, offset, path) in maps.lines().filter_map(executable) {
            let Some((bias, sections)) = sections(path, offset, range.start) else { continue };
            let (name, of) = (path.to_owned(), range.clone());
            unwinder.add_module(FramehopModule::new(name, of, bias, sections));
            modules.push(Module { range, offset, path: path.to_owned(), bias });
        }
        Ok(Self(modules))
    }

    /// The names of all functions.
    pub fn names(&self) -> Names<'_> {
        let mut functions = BTreeMap::new();
        for module in &self.0 {
            functions.extend(symbols(module).unwrap_or_default());
        }
        Names { modules: &self.0, functions }
    }
}

/// Names by address.
pub struct Names<'a> {
    modules: &'a [Module],
    /// Begin of each function: its end and name.
    functions: BTreeMap<u64, (u64, String)>,
}

impl Names<'_> {
    /// The function at `address`, and the number of its mapping; 0 if it is in none.
    pub fn of(&self, address: u64) -> (String, u64) {
        let mapping = self.modules.iter().position(|module| module.range.contains(&address));
        let found = self.functions.range(..=address).next_back().filter(|(_, (end, _))| address < *end);
        let name = match (found, mapping.and_then(|index| self.modules.get(index))) {
            (Some((_, (_, name))), _) => format!("{:#}", rustc_demangle::demangle(name)),
            (None, Some(module)) => {
                let file = module.path.rsplit('/').next().unwrap_or_default();
                format!("{file}+{:#x}", address.wrapping_sub(module.bias))
            }
            (None, None) => format!("{address:#x}"),
        };
        (name, mapping.map_or(0, |index| index as u64 + 1))
    }

    /// Mappings with their numbers.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, &Module)> {
        (1..).zip(self.modules)
    }
}

/// The range, file offset and path of a line of /proc/self/maps that is executable and of a file.
fn executable(line: &str) -> Option<(Range<u64>, u64, &str)> {
    let mut words = line.split_whitespace();
    let (begin, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    // What remains behind device and inode; a path may hold blanks.
    let path = line.get(line.find('/')?..)?;
    let range = u64::from_str_radix(begin, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    rights.contains('x').then_some((range, offset, path))
}

/// The file itself, also when it was replaced meanwhile.
fn open(path: &str) -> Option<ReadCache<File>> {
    let own = std::fs::read_link("/proc/self/exe").is_ok_and(|own| own.to_str() == Some(path));
    File::open(if own { "/proc/self/exe" } else { path }).ok().map(ReadCache::new)
}

/// What is to be added to addresses of the file that is mapped from `offset` at `start`, and how to unwind them.
fn sections(path: &str, offset: u64, start: u64) -> Option<(u64, ExplicitModuleSectionInfo<Vec<u8>>)> {
    let cache = open(path)?;
    let file = object::File::parse(&cache).ok()?;
    let segment = file.segments().find(|segment| {
        let (begin, length) = segment.file_range();
        // The kernel maps whole pages.
        (begin & !0xfff..begin + length).contains(&offset) && begin & !0xfff == offset
    })?;
    let vaddr = offset.wrapping_sub(segment.file_range().0).wrapping_add(segment.address());
    let bias = start.wrapping_sub(vaddr);
    let range = |name: &str| {
        let section = file.section_by_name(name)?;
        Some(section.address()..section.address() + section.size())
    };
    let data = |name: &str| file.section_by_name(name)?.data().ok().map(<[u8]>::to_vec);
    let info = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: range(".text"),
        got_svma: range(".got"),
        eh_frame_svma: range(".eh_frame"),
        eh_frame: data(".eh_frame"),
        eh_frame_hdr_svma: range(".eh_frame_hdr"),
        eh_frame_hdr: data(".eh_frame_hdr"),
        ..Default::default()
    };
    Some((bias, info))
}

/// The functions of a file by address in memory: end and name.
fn symbols(module: &Module) -> Option<Vec<(u64, (u64, String))>> {
    let cache = open(&module.path)?;
    let file = object::File::parse(&cache).ok()?;
    let functions = file
        .symbols()
        .chain(file.dynamic_symbols())
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition() && symbol.size() > 0);
    let placed = functions.filter_map(|symbol| {
        let begin = symbol.address().wrapping_add(module.bias);
        let inside = module.range.contains(&begin);
        inside.then_some((begin, (begin + symbol.size(), symbol.name().ok()?.to_owned())))
    });
    Some(placed.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_parts_of_files_are_taken() {
        let line = "55d0c8a00000-55d0c8a02000 r-xp 00001000 fe:00 1234   /usr/bin/a b";
        let range = 0x55d0_c8a0_0000..0x55d0_c8a0_2000;
        assert_eq!(executable(line), Some((range, 0x1000, "/usr/bin/a b")));
        assert_eq!(executable(&line.replace("r-xp", "r--p")), None);
        assert_eq!(executable("7fff0000-7fff1000 r-xp 00000000 00:00 0     [vdso]"), None);
        assert_eq!(executable(""), None);
    }
}
