//! Cgroup folders: ids, the daemon's own, and checks of what the caller names.

use std::fs::{self, File};
use std::io;
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::system::check;

/// Magic number of the BPF file system.
const BPF_MAGIC: u64 = 0xcafe_4a11;
/// Magic number of the cgroup2 file system.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Type of the file system `path` is on.
fn file_system(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    // SAFETY: the structure holds integers, for which zero is a value.
    let mut stat: libc::statfs = unsafe { zeroed() };
    // SAFETY: `stat` is a valid structure for the call to fill.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) })?;
    Ok(stat.f_type as u64 & 0xffff_ffff)
}

/// Whether `path` is on a BPF file system.
pub(super) fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(file_system(path)? == BPF_MAGIC)
}

/// Whether `path` is on a cgroup2 file system.
pub(super) fn is_cgroup2(path: &Path) -> io::Result<bool> {
    Ok(file_system(path)? == CGROUP2_MAGIC)
}

/// Id of a cgroup, as programs see it.
pub(super) fn id(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// A cgroup2 folder the caller named, without symbolic links; `setting` names it in the error.
pub(super) fn folder(setting: &'static str, path: &Path) -> Result<PathBuf, LoadError> {
    let problem = |problem: String| LoadError::Config { setting, problem };
    let resolved = path.canonicalize().map_err(|error| problem(format!("{}: {error}", path.display())))?;
    match is_cgroup2(&resolved) {
        Ok(true) => Ok(resolved),
        Ok(false) => {
            let hint = mount_point().map_or_else(
                |_| String::from("mount one: mount -t cgroup2 none DIR"),
                |mount| format!("here it is mounted at {}", mount.display()),
            );
            Err(problem(format!("{} is not in a cgroup2 hierarchy; {hint}", path.display())))
        }
        Err(error) => Err(problem(format!("{}: {error}", path.display()))),
    }
}

/// Where the cgroup2 hierarchy is mounted.
///
/// # Errors
/// `NotFound` if it is not mounted.
pub(super) fn mount_point() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let point = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
        })
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 hierarchy is mounted"))
}

/// The cgroup2 folder of this process. In a container several views of the hierarchy may be mounted; the one whose root is
/// the root that paths are told from is the right one.
pub(super) fn own() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this process is in no cgroup2 hierarchy"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let root = mounts.lines().find_map(whole_view).map_or_else(mount_point, Ok)?;
    Ok(root.join(path.trim_start_matches('/')))
}

/// The mount point of a line of mountinfo (proc(5)) if it is a cgroup2 hierarchy from its root on.
fn whole_view(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (root == "/" && kind.split(' ').next() == Some("cgroup2")).then(|| PathBuf::from(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_views_the_one_from_the_root_counts() {
        let host = "31 23 0:27 /../../.. /host/cgroup ro,relatime - cgroup2 cgroup2 rw";
        let own = "30 23 0:27 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate";
        let other = "32 23 0:28 / /sys/fs/bpf rw - bpf bpf rw";
        assert_eq!(whole_view(host), None);
        assert_eq!(whole_view(own), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(whole_view(other), None);
    }
}
