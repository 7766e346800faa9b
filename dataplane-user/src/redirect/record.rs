//! What is kept in the kernel about an enrolment, so that another daemon can undo it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use causeway_ebpf::abi::{PATH_LENGTH, Record, UID_LENGTH};

use super::enrol::Adopted;
use super::helper::Saved;

/// The record of a pod. A uid or path that is too long is kept in part: the namespace is then found by its inode.
pub(super) fn new(uid: &str, path: &Path, inode: u64, saved: Saved) -> Record {
    let mut record = Record {
        inode,
        fwmark_accept: saved.fwmark_accept,
        somaxconn: saved.somaxconn,
        reflect4: saved.reflect4,
        reflect6: saved.reflect6,
        uid_length: uid.len().min(UID_LENGTH) as u32,
        path_length: path.as_os_str().len().min(PATH_LENGTH) as u32,
        uid: [0; UID_LENGTH],
        path: [0; PATH_LENGTH],
    };
    record.uid.iter_mut().zip(uid.as_bytes()).for_each(|(to, from)| *to = *from);
    record.path.iter_mut().zip(path.as_os_str().as_bytes()).for_each(|(to, from)| *to = *from);
    record
}

/// Sysctl values from before the enrolment.
pub(super) fn saved(record: &Record) -> Saved {
    Saved {
        fwmark_accept: record.fwmark_accept,
        somaxconn: record.somaxconn,
        reflect4: record.reflect4,
        reflect6: record.reflect6,
    }
}

/// Workload uid in a record.
pub(super) fn uid(record: &Record) -> String {
    String::from_utf8_lossy(record.uid.get(..record.uid_length as usize).unwrap_or_default()).into_owned()
}

/// Namespace path in a record.
pub(super) fn path(record: &Record) -> PathBuf {
    let bytes = record.path.get(..record.path_length as usize).unwrap_or_default();
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// The record as callers see it.
pub(super) fn adopted(cookie: u64, record: &Record) -> Adopted {
    Adopted { uid: uid(record), netns: path(record), inode: record.inode, netns_cookie: cookie }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_keep_what_fits() {
        let saved_values = Saved { fwmark_accept: 0, somaxconn: 4096, reflect4: 0, reflect6: -1 };
        let record = new("c1//Pod/ns/a", Path::new("/run/netns/a"), 42, saved_values);
        assert_eq!((uid(&record), path(&record), record.inode), ("c1//Pod/ns/a".into(), "/run/netns/a".into(), 42));
        assert_eq!(saved(&record), saved_values);
        let long = "x".repeat(UID_LENGTH + 9);
        assert_eq!(uid(&new(&long, Path::new(&long), 1, saved_values)).len(), UID_LENGTH);
    }
}
