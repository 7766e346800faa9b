//! A node: network, mount, process, host name and cgroup namespaces of its own, and daemons started in them.

use super::layout::{self, Node, Shape};
use super::{cgroups, interrupt, template};
use crate::{Result, paths, sh};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const INIT: &str = include_str!("files/init.sh");

/// For what takes no time unless something is wrong.
const SHORT: Duration = Duration::from_secs(30);

/// A daemon that was just started.
pub struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
}

/// Creates the namespace in which all nodes meet.
///
/// # Errors
/// What `ip` said.
pub fn create_outside() -> Result<()> {
    let name = layout::outside();
    ip(&["netns", "add", &name])?;
    for line in [
        "link set lo up".to_owned(),
        "link add br0 type bridge".to_owned(),
        format!("addr add {}/16 dev br0", layout::OUTSIDE),
        "link set br0 up".to_owned(),
    ] {
        ip_in(&name, &line)?;
    }
    Ok(())
}

/// Creates a node: its link to the others, its cgroups, its namespaces.
///
/// # Errors
/// The step that failed.
pub fn create(node: Node, shape: Shape) -> Result<()> {
    let folder = node.folder();
    fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    network(node, shape)?;
    cgroups::create(node)?;
    namespaces(node)
}

fn network(node: Node, shape: Shape) -> Result<()> {
    let (name, outside) = (node.unit(), layout::outside());
    ip(&["netns", "add", &name])?;
    let link = format!("link add {name} netns {outside} type veth peer name eth0 netns {name}");
    ip(&link.split(' ').collect::<Vec<_>>())?;
    ip_in(&outside, &format!("link set {name} master br0 up"))?;
    for line in ["link set lo up", "link set eth0 up"] {
        ip_in(&name, line)?;
    }
    ip_in(&name, &format!("addr add {}/16 dev eth0", node.address()))?;
    // Without a default route nothing on a node could reach a service address.
    ip_in(&name, &format!("route add default via {}", layout::OUTSIDE))?;
    for other in shape.nodes_of(node.cluster()).into_iter().filter(|other| *other != node) {
        ip_in(&name, &format!("route add {} via {}", other.pods(), other.address()))?;
    }
    masquerade(node)
}

/// Outside of its cluster a pod is seen with the address of its node, as CNIs have it: other clusters have pods of the same
/// address. In a table of its own, which kube-proxy leaves alone.
fn masquerade(node: Node) -> Result<()> {
    let rules = format!(
        "add table ip pods\nadd chain ip pods leave {{ type nat hook postrouting priority srcnat; }}\n\
         add rule ip pods leave ip saddr {pods} ip daddr != {{ {pods}, {services}, {own} }} masquerade\n",
        pods = layout::PODS,
        services = layout::SERVICES,
        own = node.cluster().nodes(),
    );
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", node.unit())).args(["nft", "--file", "-"]);
    feed(&format!("masquerading on {}", node.name()), &mut command, &rules)
}

/// Runs a command to its end that is told by its standard input what to do.
fn feed(what: &str, command: &mut Command, input: &str) -> Result<()> {
    let failed = |error: std::io::Error| format!("{what}: {error}");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    // Taken, and closed at the end of the statement: the command waits for that.
    child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(input.as_bytes())).map_err(failed)?;
    let done = child.wait_with_output().map_err(failed)?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{what}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr).trim()))
}

fn namespaces(node: Node) -> Result<()> {
    let script = node.folder().join("init.sh");
    let text = template::fill(
        INIT,
        &[
            ("NAME", &node.name()),
            ("STATE_INSIDE", layout::STATE_INSIDE),
            ("TOOLS_INSIDE", layout::TOOLS_INSIDE),
            ("STATE", &quoted(&layout::state().display().to_string())),
            ("TOOLS", &quoted(&paths::tools().display().to_string())),
            ("INSIDE", &node.inside()),
            ("CGROUPS", &mount_cgroups()?),
        ],
    );
    write(&script, &text)?;
    // The root of a cgroup namespace is where its first process is: at the node's folder, which it leaves afterwards.
    let root = cgroups::unified()?.join(node.unit());
    let old = cgroups::hierarchies().into_iter().map(|hierarchy| hierarchy.path.join(node.unit()));
    let joins: String = std::iter::once(root.clone())
        .chain(old)
        .map(|folder| format!("echo $$ > {}; ", quoted(&folder.join("cgroup.procs").display().to_string())))
        .collect();
    let line = format!(
        "{joins} exec setsid nsenter --net=/run/netns/{} unshare -m -p -u -C -f --propagation slave sh {} >> {} 2>&1",
        node.unit(),
        quoted(&script.display().to_string()),
        quoted(&node.log("init").display().to_string()),
    );
    let child = spawn(Command::new("sh").args(["-ec", &line]))?;
    let mut init = Daemon { child, name: "init".to_owned(), log: node.log("init") };
    let ready = node.folder().join("ready");
    until(&format!("{}: namespaces", node.name()), SHORT, &mut [&mut init], || ready.exists())?;
    let target = cgroups::of(node, "init")?.join("cgroup.procs");
    until(&format!("{}: leaving the root of its cgroups", node.name()), SHORT, &mut [&mut init], || {
        for pid in cgroups::processes(&root) {
            // One at a time, as the kernel wants it; one that has just ended is no error.
            let _ = fs::write(&target, pid.to_string());
        }
        cgroups::processes(&root).is_empty()
    })?;
    let parent = init.child.id();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let first = children.split_whitespace().next().ok_or_else(|| format!("{} has no first process", node.name()))?;
    write(&node.folder().join("init.pid"), first)
}

/// The hierarchies of this machine, seen from the node's folder as their root.
fn mount_cgroups() -> Result<String> {
    let old = cgroups::hierarchies();
    let unified = cgroups::unified()?;
    if old.is_empty() {
        return Ok("mount -t cgroup2 cgroup2 /sys/fs/cgroup\n".to_owned());
    }
    let mut lines = "mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup\n".to_owned();
    let mut add = |path: &Path, kind: &str, options: &str| {
        let path = quoted(&path.display().to_string());
        lines += &format!("mkdir -p {path}\nmount -t {kind} {options} cgroup {path}\n");
    };
    add(&unified, "cgroup2", "");
    for hierarchy in &old {
        add(&hierarchy.path, "cgroup", &format!("-o {}", hierarchy.controllers));
    }
    Ok(lines)
}

/// The words that enter a node's namespaces before a command.
///
/// # Errors
/// If the node is not there.
pub fn enter(node: Node) -> Result<Vec<String>> {
    let path = node.folder().join("init.pid");
    let pid = fs::read_to_string(&path)
        .map_err(|_| format!("there is no node {}: cargo xtask cluster status", node.name()))?;
    if !Path::new("/proc").join(&pid).exists() {
        return Err(format!("node {} has ended: cargo xtask cluster down, then up", node.name()));
    }
    Ok(["nsenter", "-t", &pid, "-n", "-m", "-p", "-u", "-C", "--"].map(str::to_owned).to_vec())
}

/// Runs a program in a node and returns what it wrote.
///
/// # Errors
/// If it fails, with what it wrote to its standard error.
pub fn run(node: Node, words: &[&str], input: Option<&Path>) -> Result<String> {
    let enter = enter(node)?;
    let mut command = Command::new("nsenter");
    command.args(enter.iter().skip(1)).args(words);
    match input {
        Some(path) => {
            let file = fs::File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            command.stdin(file);
        }
        None => {
            command.stdin(Stdio::null());
        }
    }
    output(&format!("{} on {}", words.join(" "), node.name()), &mut command)
}

/// Runs a command to its end and returns its output.
///
/// # Errors
/// If it fails, with what it wrote to its standard error.
pub fn output(what: &str, command: &mut Command) -> Result<String> {
    let done = command.output().map_err(|error| format!("{what}: cannot start: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    // A signal ends our children too; then that is the reason, not what they say.
    interrupt::check()?;
    Err(format!("{what}: {}\n{}", done.status, String::from_utf8_lossy(&done.stderr).trim()))
}

/// Starts a daemon of a node. How is written down beside its log, so that it can be started again the same way.
///
/// # Errors
/// If it cannot be started.
pub fn start(node: Node, name: &str, words: &[String], variables: &[(&str, &str)]) -> Result<Daemon> {
    let mut script = format!("#!/bin/sh\n# {name} of node {}\n", node.name());
    for file in cgroups::joins(node, name)? {
        script += &format!("echo $$ > {}\n", quoted(&file.display().to_string()));
    }
    let log = node.log(name);
    script += &format!("exec >> {} 2>&1 < /dev/null\nexec setsid", quoted(&log.display().to_string()));
    let set = variables.iter().map(|(name, value)| format!("{name}={value}"));
    let all = enter(node)?.into_iter().chain(["env".to_owned()]).chain(set).chain(words.iter().cloned());
    for word in all {
        script += &format!(" \\\n  {}", quoted(&word));
    }
    let path = node.folder().join(format!("{name}.sh"));
    write(&path, &(script + "\n"))?;
    start_again(node, name)
}

/// Starts a daemon as it was started before.
///
/// # Errors
/// If it never was.
pub fn start_again(node: Node, name: &str) -> Result<Daemon> {
    interrupt::check()?;
    let path = node.folder().join(format!("{name}.sh"));
    if !path.is_file() {
        return Err(format!("{} has no daemon {name}", node.name()));
    }
    let child = spawn(Command::new("sh").arg(&path))?;
    Ok(Daemon { child, name: name.to_owned(), log: node.log(name) })
}

/// What is started leaves our terminal by `setsid`, which does that without another process only for one that leads no group.
fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| format!("cannot start sh: {error}"))
}

/// Waits until something holds.
///
/// # Errors
/// If it does not in time, if a daemon it depends on ends (with the end of its log), or on Ctrl-C.
pub fn until(what: &str, limit: Duration, daemons: &mut [&mut Daemon], mut holds: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        interrupt::check()?;
        if holds() {
            return Ok(());
        }
        for daemon in daemons.iter_mut() {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(format!("{what}: {} ended with {status}\n{}", daemon.name, daemon.last_lines()));
            }
        }
        if Instant::now() >= end {
            let logs: Vec<String> = daemons.iter().map(|daemon| daemon.last_lines()).collect();
            return Err(format!("{what}: not ready after {} s\n{}", limit.as_secs(), logs.join("\n")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Daemon {
    fn last_lines(&self) -> String {
        let lines = sh::tail(&self.log, 12).join("\n");
        format!("last lines of {}:\n{lines}", self.log.display())
    }
}

/// Writes a file.
///
/// # Errors
/// The file system's.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = fs::File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    file.write_all(text.as_bytes()).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// A word as the shell takes it literally.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn ip(words: &[&str]) -> Result<()> {
    output(&format!("ip {}", words.join(" ")), Command::new("ip").args(words)).map(drop)
}

fn ip_in(namespace: &str, line: &str) -> Result<()> {
    let words: Vec<&str> = ["-n", namespace].into_iter().chain(line.split(' ')).collect();
    ip(&words)
}
