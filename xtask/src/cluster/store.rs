//! The images of a node, unpacked once: nodes get links to its files. A container writes into a layer of its own, so what is
//! linked never changes; databases are copied.

use super::layout::Node;
use super::{node, parts};
use crate::image::oci;
use crate::{Result, control_plane, paths, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What applications of tests and the demo need in their image.
const APPLICATIONS: &str =
    "ca-certificates,curl,iperf3,iproute2,netcat-openbsd,nginx-light,postgresql,procps,python3-minimal,tcpdump";

/// A database is made by the pod that wants one, not by its package.
const NO_DATABASE: &str = "mkdir -p \"$1\"/etc/postgresql-common && echo create_main_cluster=false > \"$1\"/etc/postgresql-common/createcluster.conf";

/// What nobody reads.
const LEFT_OUT: [&str; 4] = ["doc", "man", "locale", "i18n"];

/// The images: the layer that is their own, and their name.
const IMAGES: [(&str, &str); 3] =
    [("debian", "causeway.test/debian:1"), ("coredns", "causeway.test/coredns:1"), ("pilot", "causeway.test/pilot:1")];

fn folder() -> PathBuf {
    paths::tools().join("cluster").join("store")
}

/// What decides whether it has to be made again.
fn version() -> String {
    format!(
        "{} {APPLICATIONS} {LEFT_OUT:?} {IMAGES:?} {} {}",
        suite(),
        parts::COREDNS,
        control_plane::version("istiod")
    )
}

fn stamp() -> PathBuf {
    folder().with_extension("version")
}

/// Whether it is there, of what is wanted now.
pub fn is_current() -> bool {
    folder().is_dir() && fs::read_to_string(stamp()).is_ok_and(|made| made == version())
}

/// Makes it; the programs in the images have to be built before.
///
/// # Errors
/// If the distribution's packages cannot be had, or what containerd said.
pub fn make() -> Result<()> {
    let (store, scratch) = (folder(), folder().with_extension("making"));
    for old in [&store, &scratch] {
        remove(old)?;
    }
    fs::create_dir_all(&scratch).map_err(|error| format!("cannot create {}: {error}", scratch.display()))?;
    let mut archives = Vec::new();
    for (name, image) in IMAGES {
        sh::step(&format!("making the image {image}"));
        archives.push(archive(&scratch, name, image)?);
    }
    sh::step("unpacking the images");
    let script = scratch.join("store.sh");
    node::write(&script, include_str!("files/store.sh"))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh"]).arg(&script).arg(&store).args(&archives);
    sh::logged("store", &mut command)?;
    remove(&scratch)?;
    node::write(&stamp(), &version())
}

/// Gives a node what containerd finds at its start.
///
/// # Errors
/// The file system's.
pub fn lend(node: Node) -> Result<()> {
    let to = node.folder().join("var").join("lib").join("containerd");
    fs::create_dir_all(&to).map_err(|error| format!("cannot create {}: {error}", to.display()))?;
    let line = "cp -al \"$1/.\" \"$2\" && find . -name '*.db' -exec cp --remove-destination '{}' \"$2/{}\" ';'";
    let mut command = Command::new("sh");
    command.args(["-ec", line, "sh"]).arg(folder()).arg(&to).current_dir(folder());
    node::output("linking the images", &mut command).map(drop)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if folder.exists() => Err(format!("cannot remove {}: {error}", folder.display())),
        _ => Ok(()),
    }
}

/// Writes an image and returns its archive.
fn archive(scratch: &Path, name: &str, image: &str) -> Result<PathBuf> {
    let layer = |name: &str| scratch.join(format!("{name}.layer"));
    let (own, base) = (layer(name), layer("debian"));
    let (layers, entry): (Vec<&Path>, _) = match name {
        "debian" => {
            let mut command = Command::new("mmdebstrap");
            command.args(["--variant=essential", &format!("--include={APPLICATIONS}"), "--format=tar"]);
            command.arg(format!("--essential-hook={NO_DATABASE}"));
            command.args(LEFT_OUT.map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")));
            sh::logged("mmdebstrap", command.arg(suite()).arg(&own))?;
            (vec![&own], oci::Entry { command: &["/bin/sleep", "infinity"], ..oci::Entry::default() })
        }
        "coredns" => {
            oci::layer(&own, &[("coredns", &parts::program("coredns"), 0o755)])?;
            (vec![&own], oci::Entry { program: &["/coredns"], ..oci::Entry::default() })
        }
        _ => {
            let istiod = control_plane::folder().join("istiod");
            oci::layer(&own, &[("usr/local/bin/pilot-discovery", &istiod, 0o755)])?;
            let program = &["/usr/local/bin/pilot-discovery"];
            // It is linked to the C library, which the other layer brings.
            (vec![&base, &own], oci::Entry { program, user: "1337:1337", ..oci::Entry::default() })
        }
    };
    let archive = scratch.join(format!("{name}.tar"));
    let image = oci::Image { name: image, created: "1970-01-01T00:00:00Z", labels: &[], entry };
    oci::write(&archive, &image, &layers, oci::Packing::Plain)?;
    Ok(archive)
}

/// The release of the distribution, which the keys on this machine fit.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("bookworm").trim_matches('"').to_owned()
}
