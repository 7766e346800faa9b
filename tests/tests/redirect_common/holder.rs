//! Processes that hold connections open, for counts that exceed the descriptor limit of one process.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::{Node, addr, bpf, spawn_in};

/// A running holder.
pub struct Holder(Child);

/// Body of the test that is a holder when this executable is started as one.
pub fn holder_entry() {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(at) = arguments.iter().position(|argument| argument == "causeway-holder") else { return };
    let [mode, place, count, to] = &arguments[at + 1..] else { panic!("four arguments: {arguments:?}") };
    causeway::redirect::raise_nofile_limit().unwrap();
    let (count, to) = (count.parse().unwrap(), addr(to));
    let held =
        if mode == "connect" { connect(place, count, to) } else { accept(mode, place.parse().unwrap(), count, to) };
    println!("\nheld {}", held.len());
    let _ = std::io::stdin().read(&mut [0; 1]);
    std::process::exit(0);
}

fn connect(netns: &str, count: usize, to: SocketAddr) -> Vec<TcpStream> {
    let connected = spawn_in(netns, move || {
        (0..count).map(|number| TcpStream::connect(to).unwrap_or_else(|error| panic!("{number}: {error}"))).collect()
    });
    connected.join().unwrap()
}

/// Accepts connections and checks the original destination of each in the pinned map `original`.
fn accept(original: &str, listener: i32, count: usize, to: SocketAddr) -> Vec<TcpStream> {
    let map = bpf::pinned(original.as_ref()).unwrap();
    // SAFETY: the descriptor was inherited for this purpose and has no other owner.
    let listener = TcpListener::from(unsafe { OwnedFd::from_raw_fd(listener) });
    let accepted: Vec<TcpStream> = (0..count).map(|_| listener.accept().unwrap().0).collect();
    for stream in &accepted {
        let mut flow = [0; 24];
        bpf::look_up(&map, &stream.as_raw_fd().to_ne_bytes(), &mut flow).unwrap();
        let port = u16::from_ne_bytes([flow[16], flow[17]]);
        assert_eq!((&flow[12..16], port), (&addr_bytes(to)[..], to.port()), "original destination");
    }
    accepted
}

fn addr_bytes(to: SocketAddr) -> [u8; 4] {
    match to {
        SocketAddr::V4(v4) => v4.ip().octets(),
        SocketAddr::V6(_) => panic!("{to} is not IPv4"),
    }
}

impl Holder {
    /// Opens `count` connections to `to` from a namespace.
    pub fn connecting(node: &Node, short: &str, count: usize, to: &str) -> Self {
        Self::start(&["connect", &node.netns(short), &count.to_string(), to], None)
    }

    /// Accepts `count` connections that were meant for `to`.
    pub fn accepting(node: &Node, listener: &TcpListener, count: usize, to: &str) -> Self {
        let original = node.layout().join("maps/ORIGINAL");
        let fd = listener.as_raw_fd();
        Self::start(&[&original.display().to_string(), &fd.to_string(), &count.to_string(), to], Some(fd))
    }

    fn start(arguments: &[&str], inherited: Option<i32>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["holder_process", "--exact", "--nocapture", "--test-threads=1", "causeway-holder"]);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(fd) = inherited {
            let keep_open = move || {
                // SAFETY: no pointer is passed. Only the child's copy loses its close-on-exec flag.
                let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
                if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            };
            // SAFETY: the closure only makes one system call, which is allowed between fork and exec.
            unsafe { command.pre_exec(keep_open) };
        }
        Self(command.spawn().unwrap())
    }

    /// How many connections it holds, once it has them all. It keeps them until it is dropped.
    pub fn held(&mut self) -> usize {
        let output = BufReader::new(self.0.stdout.as_mut().unwrap());
        let line =
            output.lines().map(Result::unwrap).find(|line| line.starts_with("held ")).expect("the holder failed");
        line["held ".len()..].parse().unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
