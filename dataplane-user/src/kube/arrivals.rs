//! Pods whose cgroup is there before the API has told of them.
//!
//! The kubelet hears of a pod by its own watch, so it may start one while ours lags behind. What such a pod is nobody here knows:
//! its connections wait a little, because it may belong to the mesh.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tracing::{error, warn};

use super::sandbox::uid_of;

/// How long an unknown pod is held back at most.
const PATIENCE: Duration = Duration::from_secs(2);
/// Room for what happens between two looks.
const EVENTS: usize = 16 * 1024;

/// Sees cgroups of pods come, by the kernel's own word (inotify(7)).
pub(super) struct Arrivals {
    pods: PathBuf,
    inotify: Option<Inotify>,
    /// The folder of all pods, and one for each class of service.
    folders: HashMap<WatchDescriptor, PathBuf>,
    waiting: BTreeMap<String, Arrival>,
}

/// A pod of which nobody has told yet.
struct Arrival {
    /// Id of its cgroup in the kernel.
    id: u64,
    until: Instant,
}

impl Arrivals {
    /// Watches the folder of all pods. Those that are in it are no arrivals: they ran before.
    pub(super) fn new(pods: &Path) -> Self {
        let mut arrivals =
            Self { pods: pods.to_owned(), inotify: None, folders: HashMap::new(), waiting: BTreeMap::new() };
        match Inotify::init() {
            Ok(inotify) => arrivals.inotify = Some(inotify),
            Err(error) => arrivals.give_up(&error),
        }
        arrivals.watch(pods);
        for class in folders(pods).filter(|folder| uid(folder).is_none()) {
            arrivals.watch(&class);
        }
        arrivals
    }

    /// Notes the cgroups that were made since the last look.
    pub(super) fn look(&mut self) {
        if self.inotify.is_some() && self.folders.is_empty() && self.pods.is_dir() {
            // Root has made it anew: all that is in it has come since.
            self.enter(&self.pods.clone());
        }
        for folder in self.made() {
            match uid(&folder) {
                Some(uid) => self.note(uid, &folder),
                None if folder.parent() == Some(&self.pods) => self.enter(&folder),
                None => {}
            }
        }
    }

    /// Watches a folder that has come, with what is in it already.
    fn enter(&mut self, folder: &Path) {
        self.watch(folder);
        for inner in folders(folder) {
            match uid(&inner) {
                Some(uid) => self.note(uid, &inner),
                None if folder == self.pods => self.enter(&inner),
                None => {}
            }
        }
    }

    fn watch(&mut self, folder: &Path) {
        let Some(inotify) = &self.inotify else { return };
        match inotify.watches().add(folder, WatchMask::CREATE | WatchMask::ONLYDIR) {
            Ok(watch) => drop(self.folders.insert(watch, folder.to_owned())),
            // It may have gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if folder == self.pods => self.give_up(&error),
            Err(error) => {
                warn!("pods that start below {} are not seen before the API tells of them: {error}", folder.display())
            }
        }
    }

    /// Without sight of pods that come, none is held that is not known.
    fn give_up(&mut self, error: &io::Error) {
        error!(
            "pods that the API has not told of are not held: {error}; raise fs.inotify.max_user_instances and max_user_watches"
        );
        self.inotify = None;
        self.folders.clear();
    }

    /// Folders that were made, and forgets those watched that are gone.
    fn made(&mut self) -> Vec<PathBuf> {
        let Some(inotify) = &mut self.inotify else { return Vec::new() };
        let mut made = Vec::new();
        let mut buffer = [0; EVENTS];
        // Without events this fails with WouldBlock.
        while let Ok(events) = inotify.read_events(&mut buffer) {
            for event in events {
                if event.mask.contains(EventMask::IGNORED) {
                    self.folders.remove(&event.wd);
                } else if event.mask.contains(EventMask::ISDIR)
                    && let (Some(folder), Some(name)) = (self.folders.get(&event.wd), event.name)
                {
                    made.push(folder.join(name));
                }
            }
        }
        made
    }

    fn note(&mut self, uid: String, folder: &Path) {
        if let Ok(metadata) = fs::metadata(folder) {
            let until = Instant::now() + PATIENCE;
            self.waiting.insert(uid, Arrival { id: metadata.ino(), until });
        }
    }

    /// Whether this pod was seen to come while nobody had told of it.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.waiting.contains_key(uid)
    }

    /// The cgroups of unknown pods, with the time until which they are held back. Those that are known by now are left out and
    /// forgotten.
    pub(super) fn unknown(&mut self, known: impl Fn(&str) -> bool, now: Instant) -> BTreeMap<u64, Instant> {
        self.waiting.retain(|uid, arrival| {
            let unknown = !known(uid);
            if unknown && arrival.until <= now {
                let seconds = PATIENCE.as_secs();
                warn!("the Kubernetes API has not told of pod {uid} for {seconds} s: what it opens passes, outside the mesh");
            }
            unknown && now < arrival.until
        });
        self.waiting.values().map(|arrival| (arrival.id, arrival.until)).collect()
    }
}

fn folders(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// The uid of the pod whose cgroup this is. Uids are UUIDs, or for static pods 32 digits.
fn uid(folder: &Path) -> Option<String> {
    let uid = uid_of(folder.file_name()?.to_str()?)?;
    (uid.len() >= 32 && uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())).then_some(uid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    const A: &str = "0c2f9a2e-7d55-4bb4-9b6e-3f3f4fd2a001";
    const B: &str = "1d2f9a2e-7d55-4bb4-9b6e-3f3f4fd2a002";
    const STATIC: &str = "0123456789abcdef0123456789abcdef";

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("causeway-arrivals-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn make(&self, path: &str) -> u64 {
            fs::create_dir_all(self.0.join(path)).unwrap();
            fs::metadata(self.0.join(path)).unwrap().ino()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn unknown(arrivals: &mut Arrivals) -> Vec<u64> {
        arrivals.look();
        arrivals.unknown(|_| false, Instant::now()).into_keys().collect()
    }

    #[test]
    fn pods_that_come_are_seen_in_every_class_and_those_that_were_there_are_not() {
        let folder = Folder::new("come");
        folder.make(&format!("burstable/pod{A}"));
        let mut arrivals = Arrivals::new(&folder.0);
        assert!(unknown(&mut arrivals).is_empty());
        let mut expected = vec![
            folder.make(&format!("pod{B}")),
            folder.make(&format!("burstable/pod{STATIC}")),
            // A class that comes, perhaps with its first pod in it before anybody looks.
            folder.make(&format!("kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice", A.replace('-', "_"))),
        ];
        folder.make(&format!("pod{B}/pod{A}"));
        folder.make("burstable/other");
        folder.make("podless");
        fs::write(folder.0.join(format!("pod{}", B.replace('1', "2"))), "no folder").unwrap();
        expected.sort_unstable();
        let mut seen = unknown(&mut arrivals);
        seen.sort_unstable();
        assert_eq!(seen, expected);
        assert!(arrivals.has(A) && arrivals.has(B) && arrivals.has(STATIC));
    }

    #[test]
    fn they_wait_until_they_are_known_or_their_time_is_over() {
        let folder = Folder::new("wait");
        let mut arrivals = Arrivals::new(&folder.0);
        let (a, b) = (folder.make(&format!("pod{A}")), folder.make(&format!("pod{B}")));
        arrivals.look();
        let now = Instant::now();
        let waiting = arrivals.unknown(|_| false, now);
        assert_eq!(waiting.keys().copied().collect::<std::collections::BTreeSet<_>>(), [a, b].into());
        assert!(waiting.values().all(|until| *until > now && *until <= now + PATIENCE));
        assert_eq!(arrivals.unknown(|uid| uid == A, now).into_keys().collect::<Vec<_>>(), [b]);
        assert!(!arrivals.has(A));
        assert!(arrivals.unknown(|_| false, now + PATIENCE).is_empty());
        assert!(!arrivals.has(B));
    }

    #[test]
    fn a_folder_of_all_pods_that_is_made_anew_is_watched_again() {
        let folder = Folder::new("anew");
        let pods = folder.0.join("kubepods");
        folder.make("kubepods/burstable");
        let mut arrivals = Arrivals::new(&pods);
        fs::remove_dir_all(&pods).unwrap();
        assert!(unknown(&mut arrivals).is_empty());
        let id = folder.make(&format!("kubepods/burstable/pod{A}"));
        assert_eq!(unknown(&mut arrivals), [id]);
        let other = folder.make(&format!("kubepods/burstable/pod{B}"));
        assert!(unknown(&mut arrivals).contains(&other));
    }

    #[test]
    fn without_sight_of_what_comes_nobody_is_held() {
        let folder = Folder::new("blind");
        let mut arrivals = Arrivals::new(&folder.0);
        arrivals.give_up(&io::Error::other("no room"));
        folder.make(&format!("pod{A}"));
        assert!(unknown(&mut arrivals).is_empty());
    }
}
