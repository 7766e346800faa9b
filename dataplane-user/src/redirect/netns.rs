//! Network namespaces as files: opening, recognising and finding them again.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::enrol::NetnsRef;
use super::error::EnrolError;
use super::system::check;

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Netns {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    pub(super) cookie: u64,
}

/// Opens the namespace of a pod and makes sure that it is one, and not the node's own.
pub(super) fn open(uid: &str, reference: &NetnsRef, proc: &Path) -> Result<Netns, EnrolError> {
    let path = reference.path();
    let missing = |source| EnrolError::NoNamespace { uid: uid.to_owned(), path: path.clone(), source };
    let file = File::open(&path).map_err(missing)?;
    if !is_netns(&file) {
        return Err(EnrolError::NotANamespace { uid: uid.to_owned(), path });
    }
    let inode = file.metadata().map_err(missing)?.ino();
    let own = [Path::new("/proc/self/ns/net"), Path::new("/proc/1/ns/net"), &proc.join("1/ns/net")];
    if own.iter().any(|own| fs::metadata(own).is_ok_and(|metadata| metadata.ino() == inode)) {
        return Err(EnrolError::NodeNamespace { uid: uid.to_owned(), path });
    }
    let fd = OwnedFd::from(file);
    Ok(Netns { fd, path, inode, cookie: 0 })
}

/// Whether an open file is a network namespace.
pub(super) fn is_netns(file: &File) -> bool {
    /// `NS_GET_NSTYPE` of linux/nsfs.h.
    const GET_TYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), GET_TYPE) };
    check(kind).is_ok_and(|kind| kind == libc::CLONE_NEWNET)
}

/// Opens a namespace by the path it had, or by any process or name that still has it. `None` if nobody has it any more.
pub(super) fn find(proc: &Path, path: &Path, inode: u64) -> Option<OwnedFd> {
    let matching = |candidate: &Path| {
        let file = File::open(candidate).ok()?;
        (file.metadata().ok()?.ino() == inode && is_netns(&file)).then(|| OwnedFd::from(file))
    };
    if let Some(found) = matching(path) {
        return Some(found);
    }
    let named = ["/run/netns", "/var/run/netns"].into_iter().flat_map(|folder| entries(Path::new(folder)));
    let of_processes = entries(proc).map(|process| process.join("ns/net"));
    named.chain(of_processes).find_map(|candidate| matching(&candidate))
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
}
