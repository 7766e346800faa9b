//! Running other programs: what is going on stays visible, a failure shows the end of its output and where the rest is.

use crate::{Result, paths};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a silent step says that it is still alive.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Announces a step. On stderr, so that `--json` output stays clean.
pub fn step(text: &str) {
    eprintln!("xtask: {text}");
}

/// Runs cargo in the workspace with its own output visible.
pub fn cargo(args: &[&str]) -> Result<()> {
    let status = foreground(cargo_command().args(args).current_dir(paths::root()))?;
    if status.success() { Ok(()) } else { Err(format!("cargo {} failed (output above)", args.join(" "))) }
}

/// The cargo that started us, else the one on the search path.
pub fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Cargo, without what the one that started us told us of this package. Build scripts that look at that (ring's does) would run
/// again, and all that depends on them be compiled again, after each change between us and a plain cargo.
pub fn cargo_command() -> Command {
    let mut command = Command::new(cargo_program());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a program on our own terminal.
pub fn foreground(command: &mut Command) -> Result<ExitStatus> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.status().map_err(|error| format!("cannot start {name}: {error}"))
}

/// The trimmed standard output of a program that must succeed; `None` if it is missing or fails.
pub fn output<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Option<String> {
    let output = Command::new(program).args(args).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a program of this name is on the search path (including the places only root usually has).
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].iter().map(Into::into))
        .any(|dir| dir.join(name).is_file())
}

/// Runs a long program with its output in `target/tools/log/<name>.log`: a line every few seconds shows how far it is.
pub fn logged(name: &str, command: &mut Command) -> Result<()> {
    let folder = paths::tools().join("log");
    fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    let path = folder.join(format!("{name}.log"));
    let file = File::create(&path).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    let errors = file.try_clone().map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    let start = Instant::now();
    let mut next = HEARTBEAT;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => std::thread::sleep(Duration::from_millis(100)),
            Err(error) => return Err(format!("waiting for {program}: {error}")),
        }
        if start.elapsed() >= next {
            next += HEARTBEAT;
            let line = tail(&path, 1).into_iter().next().unwrap_or_default();
            eprintln!("xtask:   {name}, {} s: {}", start.elapsed().as_secs(), clip(&line, 100));
        }
    };
    if status.success() {
        return Ok(());
    }
    let end = tail(&path, 25).join("\n");
    Err(format!("{name} failed ({status}); its last lines:\n{end}\n(all of it: {})", path.display()))
}

/// Runs a program, shows every line of its output as it comes and hands the line to `see`.
pub fn tee(command: &mut Command, mut see: impl FnMut(&str)) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child =
        command.stdout(Stdio::piped()).spawn().map_err(|error| format!("cannot start {program}: {error}"))?;
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).unwrap_or(0) > 0 {
            let line = String::from_utf8_lossy(&bytes);
            print!("{line}");
            see(line.trim_end());
            bytes.clear();
        }
    }
    child.wait().map_err(|error| format!("waiting for {program}: {error}"))
}

/// The last lines of a log that are not empty.
pub fn tail(path: &std::path::Path, lines: usize) -> Vec<String> {
    let Ok(mut file) = File::open(path) else {
        return Vec::new();
    };
    let length = file.metadata().map(|data| data.len()).unwrap_or(0);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024))).is_err() || file.read_to_end(&mut bytes).is_err() {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes).replace('\r', "\n");
    let all: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    all.iter().skip(all.len().saturating_sub(lines)).map(|line| (*line).to_owned()).collect()
}

fn clip(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}
