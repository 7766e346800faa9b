//! Where objects are pinned: `<bpffs>/causeway/<instance>/v<layout>/{maps,links,pods}/…`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use causeway_ebpf::abi::LAYOUT_VERSION;
use tracing::warn;

use super::bpf;
use super::cgroup::is_bpffs;
use super::error::LoadError;
use super::system::check;

/// The folder by which a daemon that starts asks the one that runs to make way. Only folders can be made beside pins.
const SUCCESSOR: &str = "successor";
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is tried.
const PAUSE: Duration = Duration::from_millis(20);

/// The pin directory of one instance, locked while it is held.
#[derive(Debug)]
pub(super) struct Pins {
    instance: PathBuf,
    layout: PathBuf,
    /// None once a successor has taken over.
    lock: Option<File>,
    /// A running daemon has made way, and still serves what it has.
    pub(super) succeeds: bool,
}

/// Locks the directory of an instance; `None` while a daemon has it.
fn lock(instance: &Path) -> Result<Option<File>, LoadError> {
    let failed = |source| LoadError::Io { action: "locking", path: instance.to_owned(), source };
    let lock = File::open(instance).map_err(failed)?;
    // SAFETY: no pointer is passed. The lock goes with the descriptor, also when the process is killed.
    match check(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Names of instances must be fit for a file name.
pub(super) fn check_instance(instance: &str) -> Result<(), LoadError> {
    let fit = |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
    if instance.is_empty() || instance.len() > 64 || !instance.chars().all(fit) {
        let problem = format!("\"{instance}\" must be 1 to 64 letters, digits, `-` or `_`");
        return Err(LoadError::Config { setting: "instance", problem });
    }
    Ok(())
}

impl Pins {
    /// Opens the directory of an instance, making it and mounting the BPF file system where needed. With `succeed` a running
    /// daemon is asked to make way, else it is an error.
    pub(super) fn open(bpffs: &Path, instance: &str, succeed: bool) -> Result<Self, LoadError> {
        check_instance(instance)?;
        mount(bpffs)?;
        let folder = bpffs.join("causeway").join(instance);
        let failed = |source| LoadError::Io { action: "making the pin directory", path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(failed)?;
        let pins = if succeed { Self::succeeding(folder.clone())? } else { Self::locked(folder.clone())? };
        for part in ["maps", "links", "pods"] {
            fs::create_dir_all(pins.layout.join(part)).map_err(failed)?;
        }
        Ok(pins)
    }

    /// Whether an earlier daemon of an instance left anything.
    pub(super) fn are_there(bpffs: &Path, instance: &str) -> bool {
        bpffs.join("causeway").join(instance).is_dir()
    }

    /// Opens the directory of an instance if there is one.
    pub(super) fn existing(bpffs: &Path, instance: &str) -> Result<Option<Self>, LoadError> {
        check_instance(instance)?;
        let folder = bpffs.join("causeway").join(instance);
        if !folder.is_dir() || !is_bpffs(&folder).unwrap_or(false) {
            return Ok(None);
        }
        Self::locked(folder).map(Some)
    }

    fn locked(instance: PathBuf) -> Result<Self, LoadError> {
        match lock(&instance)? {
            Some(lock) => Ok(Self::with(instance, lock)),
            None => {
                let problem = format!("{} is in use by a running daemon; stop that first", instance.display());
                Err(LoadError::Config { setting: "instance", problem })
            }
        }
    }

    fn with(instance: PathBuf, lock: File) -> Self {
        let layout = instance.join(format!("v{LAYOUT_VERSION}"));
        Self { instance, layout, lock: Some(lock), succeeds: false }
    }

    /// Takes the place of a daemon that runs, if there is one and it makes way.
    fn succeeding(instance: PathBuf) -> Result<Self, LoadError> {
        let asked = instance.join(SUCCESSOR);
        let deadline = Instant::now() + PATIENCE;
        let mut succeeds = false;
        while Instant::now() < deadline {
            if let Some(lock) = lock(&instance)? {
                let _ = fs::remove_dir(&asked);
                return Ok(Self { succeeds, ..Self::with(instance, lock) });
            }
            succeeds = true;
            // It is there already where another successor gave up.
            let _ = fs::create_dir(&asked);
            std::thread::sleep(PAUSE);
        }
        let _ = fs::remove_dir(&asked);
        let waited = PATIENCE.as_secs();
        let problem = format!("{}: the running daemon did not make way in {waited} s; stop it", instance.display());
        Err(LoadError::Config { setting: "instance", problem })
    }

    /// Whether a successor waits for this daemon to make way.
    pub(super) fn is_asked(&self) -> bool {
        self.lock.is_some() && self.instance.join(SUCCESSOR).is_dir()
    }

    /// Makes way: from now on somebody else writes maps and links.
    pub(super) fn make_way(&mut self) {
        self.lock = None;
    }

    /// Whether nobody has the place of this daemon, which has made way.
    pub(super) fn is_vacant(&self) -> bool {
        self.lock.is_none() && matches!(lock(&self.instance), Ok(Some(_)))
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.layout.join("maps").join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.layout.join("links").join(program)
    }

    /// Names of the pinned links.
    pub(super) fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.layout.join("links")).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Link of the socket lookup in the namespace with this cookie.
    pub(super) fn pod(&self, cookie: u64) -> PathBuf {
        self.layout.join("pods").join(cookie.to_string())
    }

    /// Cookies of the namespaces with a pinned link.
    pub(super) fn pods(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.layout.join("pods")).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes what another layout version pinned. Its links are detached with it.
    pub(super) fn remove_other_layouts(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.instance)? {
            let path = entry?.path();
            if path != self.layout {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// Removes every pin of this layout but keeps the folders.
    pub(super) fn clear(&self) -> io::Result<()> {
        for part in ["links", "pods", "maps"] {
            let folder = self.layout.join(part);
            if folder.is_dir() {
                remove_tree(&folder)?;
            }
            fs::create_dir_all(&folder)?;
        }
        Ok(())
    }

    /// Removes everything of this instance, and the common folder with the last one.
    pub(super) fn remove(self) -> Result<(), LoadError> {
        let failed = |source| LoadError::Io { action: "removing", path: self.instance.clone(), source };
        remove_tree(&self.instance).map_err(failed)?;
        if let Some(common) = self.instance.parent() {
            // Not empty while other instances are there.
            let _ = fs::remove_dir(common);
        }
        Ok(())
    }
}

/// Detaches the link under `path` at once and removes the pin; a pin that is not there is fine.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    use std::os::fd::AsFd;
    match bpf::pinned(path) {
        // The target of the link may be gone already, then there is nothing to detach.
        Ok(link) => drop(bpf::detach(link.as_fd())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    fs::remove_file(path)
}

/// Removes a folder of pins: links first, so that no program runs with its maps half gone.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    // "links" and "pods" before "maps".
    entries.sort_by_key(|path| path.ends_with("maps"));
    for path in entries {
        if path.is_dir() {
            remove_tree(&path)?;
        } else if folder.ends_with("maps") {
            fs::remove_file(&path)?;
        } else {
            remove_link(&path)?;
        }
    }
    fs::remove_dir(folder)
}

/// What is pinned outlives a daemon only where the mount does, and that of a container does not.
fn told(path: &Path) {
    warn!(
        "no BPF file system was mounted at {0}: it is now; if this is a container, what is pinned ends with it, so mount it on the node: mount -t bpf bpf {0}",
        path.display()
    );
}

/// Mounts the BPF file system at `path` if it is not.
fn mount(path: &Path) -> Result<(), LoadError> {
    let failed = |action: &'static str| move |source| LoadError::Io { action, path: path.to_owned(), source };
    if !path.is_dir() {
        fs::create_dir_all(path).map_err(failed("making the mount point of the BPF file system"))?;
    }
    if is_bpffs(path).map_err(failed("looking at"))? {
        return Ok(());
    }
    let target = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| LoadError::Config { setting: "bpffs", problem: String::from("path with a zero byte") })?;
    let kind = c"bpf".as_ptr();
    // SAFETY: the pointers are strings that live until the call returns.
    let result = unsafe { libc::mount(kind, target.as_ptr(), kind, 0, std::ptr::null()) };
    check(result).map(|_| told(path)).map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM) => LoadError::Privilege {
            action: format!("mounting the BPF file system at {} (or mount it there beforehand)", path.display()),
            capability: "CAP_SYS_ADMIN",
        },
        _ => LoadError::Io { action: "mounting the BPF file system at", path: path.to_owned(), source },
    })
}
