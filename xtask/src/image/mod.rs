//! `cargo xtask image`: the daemon as an image, without a container engine. One static program with the kernel programs inside;
//! the same commit gives the same bytes on every machine with the same compiler.

pub mod oci;
pub mod quick;
mod sbom;
mod tar;

use crate::{Result, ebpf, packages, paths, setup, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Static, and with a resolver that needs no files beside the program.
pub const TARGET: &str = "x86_64-unknown-linux-musl";

/// What the image is called unless somebody says otherwise.
pub const NAME: &str = "causeway.example/causeway";

/// One line for registries.
const DESCRIPTION: &str = "eBPF-accelerated redirection dataplane and HBONE engine for ambient multicluster meshes";

/// The most an image may weigh, in bytes.
const LIMIT: u64 = 25_000_000;

/// Builds the program, writes `target/image/causeway.tar` and says what it is.
///
/// # Errors
/// Without the compiler's part for the target, or what the build said.
pub fn run(name: Option<&str>, out: Option<&Path>) -> Result<()> {
    let program = program()?;
    let folder = folder()?;
    let archive = out.map_or_else(|| folder.join("causeway.tar"), Path::to_owned);
    let commit = Commit::read();
    let name = name.map_or_else(|| format!("{NAME}:{}", commit.tag()), str::to_owned);
    let digest = write(&archive, &program, &name, &commit)?;
    let size = fs::metadata(&archive).map_err(|error| format!("cannot read {}: {error}", archive.display()))?.len();
    println!("{name}\n{digest}\n{}, {:.1} MB", archive.display(), size as f64 / 1e6);
    if size > LIMIT {
        return Err(format!("the image has {size} bytes; the limit is {LIMIT}"));
    }
    Ok(())
}

/// What the image says about where it comes from.
struct Commit {
    revision: String,
    created: String,
    clean: bool,
}

impl Commit {
    /// Outside a repository the image is from no commit and from the beginning of time.
    fn read() -> Self {
        let git = |words: &[&str]| {
            let root = paths::root().display().to_string();
            sh::output("git", &[&["-C", root.as_str()], words].concat()).filter(|text| !text.is_empty())
        };
        let revision = git(&["rev-parse", "HEAD"]).unwrap_or_default();
        let seconds = git(&["log", "-1", "--format=%ct"]).unwrap_or_else(|| "0".to_owned());
        let seconds = std::env::var("SOURCE_DATE_EPOCH").unwrap_or(seconds);
        let created = sh::output("date", &["--utc", "--date", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ"]);
        Self {
            clean: !revision.is_empty() && git(&["status", "--porcelain"]).is_none(),
            created: created.unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned()),
            revision,
        }
    }

    /// A tag that names the sources, or says that they are in no commit.
    fn tag(&self) -> String {
        match self.revision.get(..12) {
            Some(short) if self.clean => short.to_owned(),
            _ => "dev".to_owned(),
        }
    }

    fn labels(&self) -> Vec<(String, String)> {
        let revision = if self.clean { self.revision.clone() } else { format!("{}-changed", self.revision) };
        let own = [
            ("title", "Causeway"),
            ("description", DESCRIPTION),
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", &revision),
            ("created", &self.created),
            ("licenses", "Apache-2.0"),
        ];
        own.map(|(name, value)| (format!("org.opencontainers.image.{name}"), value.to_owned())).to_vec()
    }
}

fn write(archive: &Path, program: &Path, name: &str, commit: &Commit) -> Result<String> {
    let layer = archive.with_extension("layer");
    let bill = archive.with_extension("spdx.json");
    let text = sbom::document(&oci::sha256(program)?, &commit.created)?;
    fs::write(&bill, text).map_err(|error| format!("cannot write {}: {error}", bill.display()))?;
    let license = paths::root().join("LICENSE");
    let files: [(&str, &Path, u32); 3] = [
        ("usr/local/bin/causeway", program, 0o755),
        ("usr/share/doc/causeway/LICENSE", &license, 0o644),
        ("usr/share/doc/causeway/sbom.spdx.json", &bill, 0o644),
    ];
    oci::layer(&layer, &files)?;
    let entry = oci::Entry { program: &["/usr/local/bin/causeway"], command: &["node"], ..oci::Entry::default() };
    let image = oci::Image { name, created: &commit.created, labels: &commit.labels(), entry };
    let digest = oci::write(archive, &image, &[&layer], oci::Packing::Gzip)?;
    fs::remove_file(&layer).map_err(|error| format!("cannot remove {}: {error}", layer.display()))?;
    Ok(digest)
}

fn folder() -> Result<PathBuf> {
    let folder = paths::target().join("image");
    fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    Ok(folder)
}

/// The static program, built if its sources changed.
fn program() -> Result<PathBuf> {
    setup::run()?;
    target()?;
    ebpf::build()?;
    sh::step(&format!("building the daemon for {TARGET}: some minutes the first time"));
    let c_flags = format!(
        "-ffile-prefix-map={}=/causeway/target -ffile-prefix-map={}=/causeway",
        paths::target().display(),
        paths::root().display()
    );
    let mut command = sh::cargo_command();
    command
        .args([
            "build",
            "--locked",
            "--profile",
            "dist",
            "--target",
            TARGET,
            "--package",
            "causeway",
            "--bin",
            "causeway",
        ])
        .current_dir(paths::root())
        .env("CARGO_ENCODED_RUSTFLAGS", paths::flags(&["-Ctarget-feature=+crt-static"]))
        .env("CFLAGS_x86_64_unknown_linux_musl", c_flags)
        .env("CC_x86_64_unknown_linux_musl", "musl-gcc")
        // Libraries in C write the time of their compilation into themselves.
        .env("SOURCE_DATE_EPOCH", "0");
    let status = sh::foreground(&mut command)?;
    if !status.success() {
        return Err("the daemon cannot be built for the image (output above)".to_owned());
    }
    Ok(paths::target().join(TARGET).join("dist").join("causeway"))
}

/// The compiler's library for the target and the C compiler for it.
fn target() -> Result<()> {
    if !sh::has_program("musl-gcc") {
        packages::install("a C compiler for static programs", &["musl-tools"])?;
    }
    let sysroot = sh::output("rustc", &["--print", "sysroot"]).ok_or("rustc does not run")?;
    if Path::new(&sysroot).join("lib/rustlib").join(TARGET).is_dir() {
        return Ok(());
    }
    if !sh::has_program("rustup") {
        return Err(format!(
            "this rustc has no library for {TARGET}, and there is no rustup to fetch it: https://rustup.rs"
        ));
    }
    sh::step(&format!("fetching the compiler's library for {TARGET}"));
    sh::logged("rustup-target", Command::new("rustup").args(["target", "add", TARGET]).current_dir(paths::root()))
}
