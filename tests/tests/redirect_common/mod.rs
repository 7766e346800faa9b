//! A pod, a peer outside and a node's cgroups, made and removed by each test.
//!
//! The test process plays the applications: it moves into the pod's cgroup, and its client threads into the pod's namespace.
//! The helper stays in the node's cgroup, as the daemon's does.
#![allow(dead_code, reason = "every suite uses its own part of the fixture")]
#![allow(unsafe_code, reason = "setns and rlimits have no safe wrapper")]

pub mod bpf;
pub mod flows;
pub mod holder;
pub mod raw;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use causeway::redirect::helper::{Helper, Spawn, serve};
use causeway::redirect::{
    EnrolRequest, Enrolled, Existing, NetnsRef, OriginalDst, RedirectConfig, Redirector, raise_nofile_limit, uninstall,
};

pub const POD4: &str = "10.98.1.2";
pub const POD6: &str = "fd98::1:2";
pub const PEER4: &str = "10.98.0.1";
pub const PEER6: &str = "fd98::1";
pub const BPFFS: &str = "/sys/fs/bpf";

static SERIAL: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Whether the tests can run here; says why not.
pub fn runnable() -> bool {
    // SAFETY: no pointer is passed.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: needs root");
        return false;
    }
    if cgroup_mount().is_none() {
        println!("skipped: no cgroup2 hierarchy is mounted");
        return false;
    }
    true
}

pub fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    })
}

/// Body of the test that is the helper process when this executable is started as one: see [`helper`].
pub fn helper_entry() {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "netns-helper") {
        return;
    }
    let fd = arguments.last().and_then(|last| last.parse().ok()).expect("the descriptor is the last argument");
    serve(fd, "/proc".as_ref()).expect("the helper serves its channel");
    std::process::exit(0);
}

/// The helper: this test executable again, told to run nothing but the test `helper_process`.
pub fn helper(workers: usize) -> Helper {
    let arguments = ["helper_process", "--exact", "--nocapture", "--test-threads=1", "netns-helper"];
    let arguments = arguments.into_iter().map(Into::into);
    Spawn::new(workers).program(std::env::current_exe().unwrap(), arguments).start().unwrap()
}

/// Runs `ip` with these arguments.
pub fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A node with its cgroups and namespaces. Dropping it removes all of it.
pub struct Node {
    pub name: String,
    pub root: PathBuf,
    namespaces: Vec<String>,
    /// Held by the first node of a test, so that tests of one executable do not move the process under each other.
    _serial: Option<MutexGuard<'static, ()>>,
}

impl Node {
    /// A node for the test alone.
    pub fn new() -> Self {
        let serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
        let mut node = Self::another();
        node._serial = Some(serial);
        node
    }

    /// A further node of the same test.
    pub fn another() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cwk{}-{number}", std::process::id());
        let root = cgroup_mount().unwrap().join(&name);
        for folder in ["", "system", "pods", "pods/a", "pods/b"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        Self { name, root, namespaces: Vec::new(), _serial: None }
    }

    /// Moves the test process into one of the node's cgroups.
    pub fn enter(&self, folder: &str) {
        fs::write(self.root.join(folder).join("cgroup.procs"), "0").unwrap();
    }

    pub fn netns(&self, short: &str) -> String {
        format!("{}-{short}", self.name)
    }

    /// A namespace with loopback up.
    pub fn add_netns(&mut self, short: &str) -> String {
        let name = self.netns(short);
        ip(&format!("netns add {name}"));
        self.namespaces.push(name.clone());
        ip(&format!("-n {name} link set lo up"));
        name
    }

    /// The pod `a` and the peer `x` outside, joined by a veth pair. The peer has every address of 198.18.0.0/15 and of
    /// 2001:db8::/32, the pod's default route leads there.
    pub fn add_pod_and_peer(&mut self) {
        let (pod, peer) = (self.add_netns("a"), self.add_netns("x"));
        ip(&format!("-n {pod} link add eth0 type veth peer name eth0 netns {peer}"));
        for (netns, v4, v6) in [(&pod, POD4, POD6), (&peer, PEER4, PEER6)] {
            ip(&format!("-n {netns} address add {v4}/16 dev eth0"));
            ip(&format!("-n {netns} address add {v6}/64 dev eth0 nodad"));
            ip(&format!("-n {netns} link set eth0 up"));
        }
        ip(&format!("-n {pod} route add default via {PEER4}"));
        ip(&format!("-n {pod} -6 route add default via {PEER6}"));
        ip(&format!("-n {peer} route add local 198.18.0.0/15 dev lo"));
        ip(&format!("-n {peer} -6 route add local 2001:db8::/32 dev lo"));
    }

    pub fn config(&self, workers: usize) -> RedirectConfig {
        RedirectConfig {
            engine_cgroup: Some(self.root.join("system")),
            workers,
            ..RedirectConfig::new(self.name.clone(), self.root.clone(), self.root.join("pods"))
        }
    }

    /// Starts redirection with the helper in the node's cgroup, then moves the process into the pod's.
    pub fn redirector(&self, config: RedirectConfig) -> Redirector {
        self.enter("system");
        let redirector =
            Redirector::start(config.clone(), helper(config.workers)).unwrap_or_else(|error| panic!("{error}"));
        self.enter("pods/a");
        redirector
    }

    pub fn request(&self, short: &str) -> EnrolRequest {
        request(self.netns(short), &format!("uid-{short}"))
    }

    /// Runs `action` on a thread inside a namespace of this node.
    pub fn spawn<T: Send + 'static>(&self, short: &str, action: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        spawn_in(&self.netns(short), action)
    }

    /// Runs `action` inside a namespace of this node and waits for it.
    pub fn inside<T: Send + 'static>(&self, short: &str, action: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(short, action).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    pub fn connect(&self, short: &str, to: &str) -> io::Result<TcpStream> {
        let to = addr(to);
        self.inside(short, move || connect(to))
    }

    pub fn listen(&self, short: &str, on: &str) -> TcpListener {
        let on = addr(on);
        self.inside(short, move || TcpListener::bind(on).unwrap_or_else(|error| panic!("{on}: {error}")))
    }

    /// Recorded connections that were neither accepted nor closed.
    pub fn pending_flows(&self) -> usize {
        bpf::count::<48>(&bpf::pinned(&self.layout().join("maps/FLOWS")).unwrap())
    }

    /// Where objects of the layout of this build are pinned.
    pub fn layout(&self) -> PathBuf {
        self.pins().join(format!("v{}", causeway_ebpf::abi::LAYOUT_VERSION))
    }

    pub fn pins(&self) -> PathBuf {
        PathBuf::from(BPFFS).join("causeway").join(&self.name)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let failures = uninstall(BPFFS.as_ref(), &self.name, "/proc".as_ref());
        if let Some(mount) = cgroup_mount() {
            let _ = fs::write(mount.join("cgroup.procs"), "0");
        }
        for netns in self.namespaces.drain(..) {
            let _ = Command::new("ip").args(["netns", "delete", &netns]).status();
        }
        for folder in ["pods/a", "pods/b", "pods", "system", ""] {
            let folder = self.root.join(folder);
            let deadline = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(&folder).is_err() && folder.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if !std::thread::panicking() {
            assert!(matches!(&failures, Ok(list) if list.is_empty()), "uninstall: {failures:?}");
            assert!(!self.pins().exists(), "pins are left");
            assert!(!self.root.exists(), "cgroups are left");
        }
    }
}

/// An enrolment with nothing out of the ordinary.
pub fn request(netns: String, uid: &str) -> EnrolRequest {
    EnrolRequest {
        uid: uid.to_owned(),
        netns: NetnsRef::Name(netns),
        inode: None,
        expected: Vec::new(),
        cgroup: None,
        ips: Vec::new(),
        existing: Existing::Keep,
        dns: true,
    }
}

/// Runs `action` on a thread inside the named namespace.
pub fn spawn_in<T: Send + 'static>(netns: &str, action: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let file = File::open(format!("/var/run/netns/{netns}")).unwrap();
    std::thread::spawn(move || {
        // SAFETY: no pointer is passed; the namespace of this thread alone changes.
        let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
        action()
    })
}

/// Connects with a limit of two seconds: what is refused or reset shows at once, what hangs is a failure of its own.
pub fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(2))
}

/// Accepts within two seconds.
pub fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    accept_within(listener, Duration::from_secs(2))
}

/// Whether nothing is to be accepted for a short while.
pub fn is_silent(listener: &TcpListener) -> bool {
    accept_within(listener, Duration::from_millis(100)).is_none()
}

fn accept_within(listener: &TcpListener, limit: Duration) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + limit;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                return Some((stream, peer));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Original destination of the next connection of the outbound listener.
pub fn next_original(enrolled: &Enrolled, original: &OriginalDst) -> Option<SocketAddr> {
    let (stream, _) =
        enrolled.listeners.iter().find_map(|set| accept_within(&set.outbound, Duration::from_millis(700)))?;
    original.get(stream.as_fd()).unwrap()
}

/// Whether bytes go through in both directions.
pub fn talks(left: &mut TcpStream, right: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    left.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    right.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    left.write_all(b"ping").is_ok()
        && right.read_exact(&mut buffer).is_ok()
        && right.write_all(b"pong").is_ok()
        && left.read_exact(&mut buffer).is_ok()
        && &buffer == b"pong"
}

pub fn counters(redirector: &Redirector) -> BTreeMap<&'static str, u64> {
    redirector.counters().unwrap().into_iter().collect()
}

/// Room for `needed` open descriptors; false, with the reason, where that is not to be had.
pub fn room_for(needed: u64) -> bool {
    let limit = raise_nofile_limit().unwrap();
    if limit < needed {
        println!("skipped: {needed} open descriptors needed, the limit is {limit}");
    }
    limit >= needed
}

pub fn ip_addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}
