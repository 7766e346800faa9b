//! Loads the programs and attaches them, taking over what an earlier daemon pinned.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::{CgroupSkb, CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};

use super::bpf::{self, AttachType};
use super::cgroup;
use super::error::LoadError;
use super::maps::PINNED;
use super::pins::{Pins, remove_link};

/// The embedded object, aligned as its parser needs it.
#[cfg(ebpf_embedded)]
static OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/causeway-ebpf.o")));
#[cfg(not(ebpf_embedded))]
static OBJECT: Option<&[u8]> = None;

/// The embedded object.
pub(super) fn embedded() -> Result<&'static [u8], LoadError> {
    OBJECT.ok_or(LoadError::NotEmbedded)
}

/// Which of the two cgroups a program is attached at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Pods,
    Root,
}

/// A program that is attached to a cgroup.
struct Hook {
    program: &'static str,
    kind: AttachType,
    at: At,
    /// First kernel with everything the program uses.
    floor: &'static str,
}

/// Attached in this order: what records and shows destinations first, what rewrites last.
const HOOKS: [Hook; 12] = [
    Hook { program: "sockets", kind: AttachType::SockOps, at: At::Root, floor: "5.15" },
    Hook { program: "peername4", kind: AttachType::Peername4, at: At::Pods, floor: "5.8" },
    Hook { program: "peername6", kind: AttachType::Peername6, at: At::Pods, floor: "5.8" },
    Hook { program: "sockname4", kind: AttachType::Sockname4, at: At::Pods, floor: "5.8" },
    Hook { program: "sockname6", kind: AttachType::Sockname6, at: At::Pods, floor: "5.8" },
    Hook { program: EGRESS, kind: AttachType::InetEgress, at: At::Pods, floor: "5.8" },
    Hook { program: "dns_recv4", kind: AttachType::Recvmsg4, at: At::Pods, floor: "5.8" },
    Hook { program: "dns_recv6", kind: AttachType::Recvmsg6, at: At::Pods, floor: "5.8" },
    Hook { program: "outbound4", kind: AttachType::Connect4, at: At::Pods, floor: "5.8" },
    Hook { program: "outbound6", kind: AttachType::Connect6, at: At::Pods, floor: "5.8" },
    Hook { program: "dns_send4", kind: AttachType::Sendmsg4, at: At::Pods, floor: "5.8" },
    Hook { program: "dns_send6", kind: AttachType::Sendmsg6, at: At::Pods, floor: "5.8" },
];

/// Attached at the node's cgroup while there are node ports: what shows destinations before what rewrites them.
const DIAL_HOOKS: [Hook; 4] = [
    Hook { program: "entry_peer4", kind: AttachType::Peername4, at: At::Root, floor: "5.8" },
    Hook { program: "entry_peer6", kind: AttachType::Peername6, at: At::Root, floor: "5.8" },
    Hook { program: "entry_dial4", kind: AttachType::Connect4, at: At::Root, floor: "5.8" },
    Hook { program: "entry_dial6", kind: AttachType::Connect6, at: At::Root, floor: "5.8" },
];

/// Programs that are attached to devices while there are node ports.
const DEVICE_PROGRAMS: [&str; 2] = ["entry_uplink", "entry_return"];
const DEVICE_FLOOR: &str = "5.10";

/// The program that sees packets of pods on their way out.
const EGRESS: &str = "hold_egress";

/// The program that is attached to pods' namespaces.
const LOOKUP: &str = "inbound_lookup";
const LOOKUP_FLOOR: &str = "5.9";

/// Loads the object over the pinned maps. Maps of another build give way, but not before the object is known to load: until
/// then the programs that use them keep the pods refused.
pub(super) fn load(pins: &Pins) -> Result<Ebpf, LoadError> {
    let object = embedded()?;
    if !maps_fit(pins) {
        load_programs(&mut EbpfLoader::new(), object)?;
        let failed = |source| LoadError::Io { action: "removing stale pins in", path: pins.map(""), source };
        pins.clear().map_err(failed)?;
    }
    let mut loader = EbpfLoader::new();
    for name in PINNED {
        loader.map_pin_path(name, pins.map(name));
    }
    load_programs(&mut loader, object)
}

fn load_programs(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf, LoadError> {
    let mut loaded = loader.load(object).map_err(Box::new)?;
    for hook in HOOKS.iter().chain(&DIAL_HOOKS) {
        load_program(&mut loaded, hook.program, hook.floor)?;
    }
    for program in DEVICE_PROGRAMS {
        load_program(&mut loaded, program, DEVICE_FLOOR)?;
    }
    load_program(&mut loaded, LOOKUP, LOOKUP_FLOOR)?;
    Ok(loaded)
}

fn load_program(loaded: &mut Ebpf, program: &'static str, floor: &'static str) -> Result<(), LoadError> {
    let failed = |source: ProgramError| LoadError::Program { program, floor, source: Box::new(source) };
    let found = loaded.program_mut(program).ok_or_else(|| failed(ProgramError::NotLoaded))?;
    match program {
        "sockets" => <&mut SockOps>::try_from(found).and_then(SockOps::load),
        EGRESS => <&mut CgroupSkb>::try_from(found).and_then(CgroupSkb::load),
        LOOKUP => <&mut SkLookup>::try_from(found).and_then(SkLookup::load),
        "entry_uplink" | "entry_return" => <&mut SchedClassifier>::try_from(found).and_then(SchedClassifier::load),
        _ => <&mut CgroupSockAddr>::try_from(found).and_then(CgroupSockAddr::load),
    }
    .map_err(failed)
}

/// Whether pinned maps, if any, are those of this build: each is there, and the counters are as many.
fn maps_fit(pins: &Pins) -> bool {
    let present = PINNED.iter().filter(|name| pins.map(name).exists()).count();
    if present == 0 {
        return true;
    }
    present == PINNED.len()
        && MapInfo::from_pin(pins.map("COUNTERS"))
            .is_ok_and(|info| info.max_entries() as usize == causeway_ebpf::counter::COUNT)
}

/// A loaded program's descriptor.
fn program_fd<'a>(loaded: &'a Ebpf, program: &'static str) -> Result<BorrowedFd<'a>, LoadError> {
    let failed = |source: ProgramError| LoadError::Program { program, floor: LOOKUP_FLOOR, source: Box::new(source) };
    let found = loaded.program(program).ok_or_else(|| failed(ProgramError::NotLoaded))?;
    found.fd().map(AsFd::as_fd).map_err(failed)
}

/// A descriptor of the socket lookup that outlives the loaded object.
pub(super) fn lookup_program(loaded: &Ebpf) -> Result<OwnedFd, LoadError> {
    let fd = program_fd(loaded, LOOKUP)?;
    fd.try_clone_to_owned().map_err(|source| LoadError::Io { action: "keeping", path: PathBuf::from(LOOKUP), source })
}

/// Attaches the cgroup programs, or puts them in place of those an earlier daemon attached.
pub(super) fn attach(loaded: &Ebpf, pins: &Pins, root: &Path, pods: &Path) -> Result<(), LoadError> {
    attach_hooks(&HOOKS, loaded, pins, (root, pods))
}

/// The same for what serves callers of node ports on the node itself.
pub(super) fn attach_dial(loaded: &Ebpf, pins: &Pins, root: &Path) -> Result<(), LoadError> {
    attach_hooks(&DIAL_HOOKS, loaded, pins, (root, root))
}

fn attach_hooks(hooks: &[Hook], loaded: &Ebpf, pins: &Pins, (root, pods): (&Path, &Path)) -> Result<(), LoadError> {
    for hook in hooks {
        let folder = if hook.at == At::Root { root } else { pods };
        let failed =
            |source| LoadError::Attach { program: hook.program, target: folder.to_owned(), floor: hook.floor, source };
        let program = program_fd(loaded, hook.program)?;
        let pin = pins.link(hook.program);
        let target = File::open(folder).map_err(failed)?;
        let id = cgroup::id(folder).map_err(failed)?;
        if take_over(&pin, id, program) {
            continue;
        }
        let link = bpf::link(program, target.as_fd(), hook.kind).map_err(failed)?;
        remove_link(&pin).map_err(failed)?;
        bpf::pin(link.as_fd(), &pin).map_err(failed)?;
    }
    Ok(())
}

/// The programs of the cgroups with these ids, the node's and the pods', and whether each is attached to its own.
pub(super) fn attached(pins: &Pins, (root, pods): (u64, u64), dial: bool) -> BTreeMap<&'static str, bool> {
    let wanted = HOOKS.iter().chain(DIAL_HOOKS.iter().filter(|_| dial));
    let row = |hook: &Hook| {
        let target = if hook.at == At::Root { root } else { pods };
        (hook.program, is_attached(&pins.link(hook.program), target))
    };
    wanted.map(row).collect()
}

/// Whether a pinned link is there and attached to `target`.
pub(super) fn is_attached(pin: &Path, target: u64) -> bool {
    bpf::pinned(pin).and_then(|link| bpf::link_target(link.as_fd())).is_ok_and(|found| found.id == target)
}

/// Attaches the socket lookup to a namespace, or puts it in place of the one an earlier daemon attached there.
pub(super) fn attach_lookup(
    program: BorrowedFd<'_>,
    netns: BorrowedFd<'_>,
    inode: u64,
    pin: &Path,
) -> std::io::Result<()> {
    if take_over(pin, inode, program) {
        return Ok(());
    }
    remove_link(pin)?;
    let link = bpf::link(program, netns, AttachType::SkLookup)?;
    bpf::pin(link.as_fd(), pin)
}

/// Attaches a program to a device by `attach`, or puts it in place of the one an earlier daemon attached there. The inner
/// error is that of attaching.
pub(super) fn attach_device(
    loaded: &Ebpf,
    program: &'static str,
    pin: &Path,
    device: u32,
    attach: impl FnOnce(BorrowedFd<'_>) -> std::io::Result<OwnedFd>,
) -> Result<std::io::Result<()>, LoadError> {
    let program = program_fd(loaded, program)?;
    if take_over(pin, u64::from(device), program) {
        return Ok(Ok(()));
    }
    let link = remove_link(pin).and_then(|()| attach(program));
    Ok(link.and_then(|link| bpf::pin(link.as_fd(), pin)))
}

/// Replaces the program of a pinned link if it is attached to `target`; whether that worked.
fn take_over(pin: &Path, target: u64, program: BorrowedFd<'_>) -> bool {
    let Ok(link) = bpf::pinned(pin) else {
        return false;
    };
    bpf::link_target(link.as_fd()).is_ok_and(|found| found.id == target)
        && bpf::replace_program(link.as_fd(), program).is_ok()
}

/// Replaces the program of every pod's link, so that no pod runs the one of an earlier daemon. A link whose namespace is gone
/// is removed.
pub(super) fn refresh_pods(program: BorrowedFd<'_>, pins: &Pins) -> Result<(), LoadError> {
    for cookie in pins.pods() {
        let pin = pins.pod(cookie);
        let replaced = bpf::pinned(&pin).and_then(|link| bpf::replace_program(link.as_fd(), program));
        if replaced.is_err() {
            remove_link(&pin).map_err(|source| LoadError::Io {
                action: "removing the stale link",
                path: pin,
                source,
            })?;
        }
    }
    Ok(())
}
