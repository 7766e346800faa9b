//! The initramfs: programs of this machine with the libraries they load, kernel modules, the suites, and `/init`.

use super::{Suite, package::Kernel};
use crate::{Result, paths, sh};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the machine prints when everything has run.
pub const LAST_LINE: &str = "virtual machine: all suites have run";

/// Programs the suites start.
const PROGRAMS: &[&str] = &[
    "busybox",
    "sh",
    "ip",
    "curl",
    "nginx",
    "tcpdump",
    "iptables-save",
    "ip6tables-save",
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "nft",
    "setpriv",
    "sleep",
];

/// Modules the topologies need where the kernel does not have them built in; those they depend on come along.
const MODULES: &[&str] = &["veth", "bridge", "nf_tables", "tcp_diag", "sch_ingress", "cls_bpf"];

const FOLDERS: &[&str] = &["bin", "bb", "dev", "etc", "modules", "proc", "run", "sys", "t", "tmp", "var"];

/// Writes the image.
///
/// # Errors
/// If a program is missing or the file cannot be written.
pub fn build(path: &Path, kernel: &Kernel, suites: &[Suite], filter: Option<&str>) -> Result<()> {
    let mut files: BTreeMap<String, (u32, Vec<u8>)> = BTreeMap::new();
    let mut add = |name: String, mode: u32, bytes: Vec<u8>| files.insert(name, (mode, bytes));
    let mut binaries: Vec<(String, PathBuf)> = Vec::new();
    for program in PROGRAMS {
        match which(program) {
            Some(found) => binaries.push((format!("bin/{program}"), found)),
            None => sh::step(&format!("{program} is not on this machine, so it will be missing inside")),
        }
    }
    for own in ["causeway", "testkit-peer"] {
        binaries.push((format!("t/{own}"), paths::release().join(own)));
    }
    binaries.extend(suites.iter().map(|suite| (format!("t/{}", suite.name), suite.binary.clone())));
    let mut libraries = BTreeSet::new();
    for (name, file) in &binaries {
        libraries.extend(loaded_by(file));
        add(name.clone(), 0o755, read(file)?);
    }
    for library in libraries {
        add(library.trim_start_matches('/').to_owned(), 0o755, read(Path::new(&library))?);
    }
    let modules = modules(kernel)?;
    let mut order = String::new();
    for (name, bytes) in modules {
        order.push_str(&format!("{name}.ko\n"));
        add(format!("modules/{name}.ko"), 0o644, bytes);
    }
    add("modules/order".into(), 0o644, order.into_bytes());
    add("etc/passwd".into(), 0o644, b"root:x:0:0::/:/bin/sh\n".to_vec());
    add("etc/group".into(), 0o644, b"root:x:0:\n".to_vec());
    add("init".into(), 0o755, init(suites, filter).into_bytes());
    write_cpio(path, &files)
}

fn init(suites: &[Suite], filter: Option<&str>) -> String {
    let mut script = String::from(
        "#!/bin/sh\n\
         /bin/busybox --install -s /bb\n\
         export PATH=/bin:/bb:/t HOME=/ RUST_BACKTRACE=1\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t tmpfs run /run\n\
         mkdir -p /run/netns /var\n\
         ln -s /run /var/run\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         while read -r module; do insmod /modules/$module; done < /modules/order\n\
         ip link set lo up\n\
         echo 1048576 > /proc/sys/fs/nr_open\n\
         ulimit -n 1048576\n\
         echo \"virtual machine: $(uname -r)\"\n",
    );
    for suite in suites {
        let line =
            format!("/t/{} --test-threads=1 --nocapture {} {}", suite.name, suite.arguments, filter.unwrap_or(""));
        script.push_str(&format!("echo '-- {}'\n{}\n", suite.name, line.trim_end()));
    }
    script.push_str(&format!("echo '{LAST_LINE}'\nsleep 1\necho o > /proc/sysrq-trigger\nsleep 60\n"));
    script
}

fn which(program: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/bin"];
    folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// The libraries a program loads, by `ldd`; none for a static one.
fn loaded_by(program: &Path) -> Vec<String> {
    let text = sh::output("ldd", &[program]).unwrap_or_default();
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    text.lines().filter_map(path).collect()
}

/// The modules in the order in which they can be loaded.
fn modules(kernel: &Kernel) -> Result<Vec<(String, Vec<u8>)>> {
    let mut available = BTreeMap::new();
    list(&kernel.modules, &mut available);
    let mut ordered: Vec<(String, Vec<u8>)> = Vec::new();
    for name in MODULES {
        load(name, &available, &mut ordered)?;
    }
    Ok(ordered)
}

fn load(name: &str, available: &BTreeMap<String, PathBuf>, ordered: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if ordered.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    // Not a module: built into this kernel, or not offered by it, in which case the test that needs it says so.
    let Some(path) = available.get(name) else { return Ok(()) };
    let bytes = match path.extension().is_some_and(|extension| extension == "xz") {
        true => Command::new("xz").args(["-dc"]).arg(path).output().map_err(|error| format!("xz: {error}"))?.stdout,
        false => read(path)?,
    };
    for needed in dependencies(&bytes) {
        load(&needed, available, ordered)?;
    }
    ordered.push((name.to_owned(), bytes));
    Ok(())
}

/// What the module says it depends on: `depends=a,b` in its `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let rest = module.get(at + key.len()..).unwrap_or_default();
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

fn list(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list(&path, found);
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            found.insert(name.replace('-', "_"), path);
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Writes the archive in the "newc" form that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
fn write_cpio(path: &Path, files: &BTreeMap<String, (u32, Vec<u8>)>) -> Result<()> {
    let step = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let mut out = BufWriter::new(File::create(path).map_err(step)?);
    let mut folders: BTreeSet<String> = FOLDERS.iter().map(|name| (*name).to_owned()).collect();
    for name in files.keys() {
        let parents = Path::new(name).ancestors().skip(1).map(|parent| parent.to_string_lossy().into_owned());
        folders.extend(parents.filter(|parent| !parent.is_empty()));
    }
    let mut number = 0;
    // Sorted, so that a folder stands before what is in it.
    for folder in folders {
        entry(&mut out, &mut number, &folder, 0o040_755, &[]).map_err(step)?;
    }
    for (name, (mode, bytes)) in files {
        entry(&mut out, &mut number, name, 0o100_000 | mode, bytes).map_err(step)?;
    }
    entry(&mut out, &mut number, "TRAILER!!!", 0, &[]).map_err(step)?;
    out.flush().map_err(step)
}

fn entry(out: &mut impl Write, number: &mut u32, name: &str, mode: u32, bytes: &[u8]) -> std::io::Result<()> {
    *number += 1;
    let (links, size, name_size) = (1, bytes.len(), name.len() + 1);
    write!(out, "070701{number:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}", 0, 0, 0)?;
    write!(out, "{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}{name}\0", 0, 0, 0, 0, 0)?;
    pad(out, 110 + name_size)?;
    out.write_all(bytes)?;
    pad(out, size)
}

fn pad(out: &mut impl Write, written: usize) -> std::io::Result<()> {
    let zeros = [0_u8; 3];
    out.write_all(zeros.get(..(4 - written % 4) % 4).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{dependencies, entry};

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(dependencies(b"x\0depends=stp,llc-x\0name=bridge\0"), ["stp", "llc_x"]);
        assert!(dependencies(b"x\0depends=\0name=veth\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn an_archive_entry_is_padded_to_words() {
        let mut out = Vec::new();
        assert!(entry(&mut out, &mut 0, "init", 0o100_755, b"abcde").is_ok());
        assert_eq!(out.len() % 4, 0);
        assert!(out.starts_with(b"070701"));
        assert_eq!(out.get(110..115), Some(&b"init\0"[..]));
    }
}
