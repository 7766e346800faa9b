//! One order for the forward declarations of an object's BTF.
//!
//! LLVM writes a `BTF_KIND_FWD` for each pointer to a structure it has not described, and takes them from a map whose
//! keys are addresses (`FixupDerivedTypes` in `BTFDebug.cpp`): two runs over the same sources differ where the loader of
//! programs placed the linker's memory elsewhere. Here the declarations are put in the order in which the types before
//! them refer to them, and their names likewise; what the kernel reads means the same.
//!
//! Layouts: ELF-64 of the System V ABI; BTF of `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h`.

use crate::Result;
use std::collections::BTreeMap;
use std::ops::Range;

const MAGIC: u16 = 0xeb9f;
const HEADER_LENGTH: usize = 24;
/// `struct btf_type`: offset of the name, kind with count, size or the type referred to.
const TYPE_LENGTH: usize = 12;

/// Orders the forward declarations in the `.BTF` section of an object file, in place.
///
/// # Errors
/// If the bytes are no little-endian 64-bit ELF file with a BTF section as LLVM writes it.
pub fn order(object: &mut [u8]) -> Result<()> {
    let section = section(object, ".BTF").ok_or("the kernel programs hold no .BTF section")?;
    let btf = object.get_mut(section).ok_or("the .BTF section of the kernel programs lies outside of the file")?;
    order_section(btf).ok_or_else(|| "the .BTF section of the kernel programs cannot be read".to_owned())
}

/// Where a section's bytes are in the file.
fn section(object: &[u8], name: &str) -> Option<Range<usize>> {
    if object.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = long(object, 0x28)?;
    let entry = usize::from(half(object, 0x3a)?);
    let count = usize::from(half(object, 0x3c)?);
    let place = |index: usize| {
        let header = table.checked_add(index.checked_mul(entry)?)?;
        let start = long(object, header.checked_add(0x18)?)?;
        Some((word(object, header)?, start..start.checked_add(long(object, header.checked_add(0x20)?)?)?))
    };
    let (_, names) = place(usize::from(half(object, 0x3e)?))?;
    let names = object.get(names)?;
    (0..count).filter_map(place).find(|(at, _)| text(names, *at) == Some(name.as_bytes())).map(|(_, range)| range)
}

/// One record of the type section: where it begins, and its kind.
#[derive(Clone, Copy)]
struct Type {
    at: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Forward,
    /// Refers to one other type by its last word: pointers, typedefs, qualifiers and tags.
    Derived,
    Other,
}

fn order_section(btf: &mut [u8]) -> Option<()> {
    if half(btf, 0)? != MAGIC {
        return None;
    }
    let body = word(btf, 4)?;
    let types = body.checked_add(word(btf, 8)?)?;
    let (types, strings) = (
        types..types.checked_add(word(btf, 12)?)?,
        body.checked_add(word(btf, 16)?)?..body.checked_add(word(btf, 16)?)?.checked_add(word(btf, 20)?)?,
    );
    if body < HEADER_LENGTH || types.end > btf.len() || strings.end > btf.len() {
        return None;
    }
    let list = list(btf, types)?;
    // Type numbers begin at 1: 0 is `void`.
    let slots: Vec<usize> = (0..list.len()).filter(|index| list[*index].kind == Kind::Forward).collect();
    let mut order = Vec::new();
    for derived in list.iter().filter(|one| one.kind == Kind::Derived) {
        let target = word(btf, derived.at + 8)?.wrapping_sub(1);
        if slots.binary_search(&target).is_ok() && !order.contains(&target) {
            order.push(target);
        }
    }
    let unreferenced: Vec<usize> = slots.iter().copied().filter(|slot| !order.contains(slot)).collect();
    order.extend(unreferenced);

    let records: Vec<Vec<u8>> = order.iter().map(|old| btf[list[*old].at..][..TYPE_LENGTH].to_vec()).collect();
    for (slot, record) in slots.iter().zip(records) {
        btf[list[*slot].at..][..TYPE_LENGTH].copy_from_slice(&record);
    }
    let moved: BTreeMap<usize, usize> = order.into_iter().zip(slots.iter().copied()).collect();
    for derived in list.iter().filter(|one| one.kind == Kind::Derived) {
        if let Some(new) = moved.get(&word(btf, derived.at + 8)?.wrapping_sub(1)) {
            put(btf, derived.at + 8, new + 1)?;
        }
    }
    order_names(btf, &slots.iter().map(|slot| list[*slot].at).collect::<Vec<_>>(), strings)
}

/// Names that only forward declarations brought stand last in the table, in the order of their first user.
fn order_names(btf: &mut [u8], forwards: &[usize], strings: Range<usize>) -> Option<()> {
    let table = btf.get(strings.clone())?.to_vec();
    let mut names = Vec::new();
    for at in forwards {
        let name = word(btf, *at)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut sorted = names.clone();
    sorted.sort_unstable();
    // The longest run of such names that ends where the table does; others were there before.
    let mut start = table.len();
    while let Some(name) = sorted.pop() {
        if name + text(&table, name)?.len() + 1 != start {
            break;
        }
        start = name;
    }
    let mut place = start;
    let mut moved = BTreeMap::new();
    for name in names.into_iter().filter(|name| *name >= start) {
        let bytes = text(&table, name)?;
        btf[strings.start + place..][..bytes.len()].copy_from_slice(bytes);
        btf[strings.start + place + bytes.len()] = 0;
        moved.insert(name, place);
        place += bytes.len() + 1;
    }
    for at in forwards {
        if let Some(new) = moved.get(&word(btf, *at)?) {
            put(btf, *at, *new)?;
        }
    }
    Some(())
}

/// The records in their order; `None` at a kind whose length is not known.
fn list(btf: &[u8], types: Range<usize>) -> Option<Vec<Type>> {
    let mut list = Vec::new();
    let mut at = types.start;
    while at < types.end {
        let info = word(btf, at + 4)?;
        let count = info & 0xffff;
        let (kind, more) = match (info >> 24) & 0x1f {
            // BTF_KIND_INT, VAR and DECL_TAG: one word more.
            1 | 14 | 17 => (Kind::Other, 4),
            2 | 8..=11 | 18 => (Kind::Derived, 0),
            // ARRAY; STRUCT, UNION, DATASEC and ENUM64: three words for each member.
            3 => (Kind::Other, 12),
            4 | 5 | 15 | 19 => (Kind::Other, 12 * count),
            // ENUM and FUNC_PROTO: two words for each.
            6 | 13 => (Kind::Other, 8 * count),
            7 => (Kind::Forward, 0),
            12 | 16 => (Kind::Other, 0),
            _ => return None,
        };
        list.push(Type { at, kind });
        at += TYPE_LENGTH + more;
    }
    (at == types.end).then_some(list)
}

fn text(table: &[u8], at: usize) -> Option<&[u8]> {
    table.get(at..)?.split(|byte| *byte == 0).next()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?)).ok()
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?)).ok()
}

fn put(bytes: &mut [u8], at: usize, value: usize) -> Option<()> {
    let value = u32::try_from(value).ok()?;
    bytes.get_mut(at..)?.first_chunk_mut::<4>()?.copy_from_slice(&value.to_le_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: u32 = 2 << 24;
    const FORWARD: u32 = 7 << 24;

    /// A section with two pointers to forward declarations that stand in the order given, and a pointer to neither.
    fn btf(first: &str, second: &str) -> Vec<u8> {
        let mut strings = b"\0int\0".to_vec();
        let mut records: Vec<[u32; 3]> = Vec::new();
        let number = |name: &str| if name == first { 4 } else { 5 };
        records.push([0, POINTER, number("sock")]);
        records.push([0, POINTER, 0]);
        records.push([0, POINTER, number("keys")]);
        for name in [first, second] {
            records.push([u32::try_from(strings.len()).unwrap_or_default(), FORWARD, 0]);
            strings.extend(name.bytes().chain([0]));
        }
        let types: Vec<u8> = records.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        let (types_length, strings_length) = (types.len() as u32, strings.len() as u32);
        let mut all = [0x9f, 0xeb, 1, 0].to_vec();
        for word in [24, 0, types_length, types_length, strings_length] {
            all.extend(word.to_le_bytes());
        }
        all.extend(types);
        all.extend(strings);
        all
    }

    #[test]
    fn two_orders_become_one() {
        let (mut one, mut other) = (btf("sock", "keys"), btf("keys", "sock"));
        assert_ne!(one, other);
        let wanted = one.clone();
        assert_eq!(order_section(&mut one), Some(()));
        assert_eq!(order_section(&mut other), Some(()));
        assert_eq!(one, wanted, "the order of the first references stays");
        assert_eq!(other, wanted);
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        let whole = btf("sock", "keys");
        for length in 0..whole.len() {
            assert_eq!(order_section(&mut whole[..length].to_vec()), None, "{length} bytes");
        }
        let mut unknown = whole;
        unknown[24 + 7] = 31;
        assert_eq!(order_section(&mut unknown), None, "a kind of unknown length");
        assert!(order(&mut b"\x7fELF\x02\x01 and no more".to_vec()).is_err());
    }
}
