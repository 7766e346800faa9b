//! A real control plane for tests and clusters: etcd from the distribution, Kubernetes and istiod built with Go, once.

use crate::{Result, packages, paths, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Kubernetes release in `tests/go/kube/go.mod`; the API server tells it to its clients.
const KUBERNETES: &str = "1.35.4";

/// Data files of the istio module: the kinds that istiod reads, and the charts it is installed with.
const DATA: &[(&str, &str)] = &[
    ("manifests/charts/base/files/crd-all.gen.yaml", "istio-crds.yaml"),
    ("tests/integration/pilot/testdata/gateway-api-crd.yaml", "gateway-crds.yaml"),
    ("manifests/charts/base", "charts/base"),
    ("manifests/charts/istio-control/istio-discovery", "charts/istio-discovery"),
    ("manifests/charts/istio-cni", "charts/istio-cni"),
    ("manifests/charts/ztunnel", "charts/ztunnel"),
];

/// The programs: folder below `tests/go` and of the result.
const PROGRAMS: &[&str] = &["istiod", "kube"];

/// Why the tier cannot run here, if it cannot.
pub fn missing() -> Option<String> {
    if !sh::has_program("etcd") {
        return Some("etcd is not installed: cargo xtask setup --with control-plane".to_owned());
    }
    let stale = PROGRAMS.iter().find(|program| !is_current(program));
    stale.map(|program| format!("{program} is not built: cargo xtask setup --with control-plane"))
}

/// Installs and builds what is missing.
///
/// # Errors
/// Without Go or root, or if a module cannot be had.
pub fn install() -> Result<()> {
    if !sh::has_program("etcd") {
        packages::install("etcd", &["etcd-server"])?;
    }
    for program in PROGRAMS {
        if is_current(program) {
            continue;
        }
        build(&go()?, program)?;
    }
    Ok(())
}

/// Where the programs and the data files are.
pub fn folder() -> PathBuf {
    paths::tools().join("control-plane")
}

fn source(program: &str) -> PathBuf {
    paths::root().join("tests").join("go").join(program)
}

/// What decides whether a program has to be built again.
pub fn version(program: &str) -> String {
    let sources = ["go.mod", "main.go"].map(|file| fs::read_to_string(source(program).join(file)).unwrap_or_default());
    let data: Vec<&str> = DATA.iter().map(|(from, _)| *from).collect();
    format!("{}{data:?}", sources.concat())
}

fn is_current(program: &str) -> bool {
    let built = fs::read_to_string(folder().join(format!("{program}.version")));
    folder().join(program).is_file() && built.is_ok_and(|built| built == version(program))
}

/// Go on the search path, or where its own archive puts it.
///
/// # Errors
/// If it is in neither place.
pub fn go() -> Result<PathBuf> {
    let usual = Path::new("/usr/local/go/bin/go");
    if sh::has_program("go") {
        return Ok("go".into());
    }
    let found = usual.is_file().then(|| usual.to_owned());
    found.ok_or_else(|| "Go is needed to build Kubernetes and istiod; install it from https://go.dev/dl".to_owned())
}

fn build(go: &Path, program: &str) -> Result<()> {
    let (source, folder) = (source(program), folder());
    fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    sh::step(&format!("building {program} with Go: a few minutes, once"));
    let mut minor = KUBERNETES.split('.');
    let (major, minor) = (minor.next().unwrap_or_default(), minor.next().unwrap_or_default());
    let set = |name: &str, value: &str| format!(" -X k8s.io/component-base/version.{name}={value}");
    let mut flags = "-s -w".to_owned();
    if program == "kube" {
        flags += &set("gitVersion", &format!("v{KUBERNETES}"));
        flags += &set("gitMajor", major);
        flags += &set("gitMinor", minor);
    }
    let mut command = Command::new(go);
    command.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(folder.join(program)).arg(".");
    sh::logged(&format!("go-{program}"), command.current_dir(&source))?;
    if program == "istiod" {
        copy_data(go, &source, &folder)?;
    }
    let path = folder.join(format!("{program}.version"));
    fs::write(&path, version(program)).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// What else comes from the istio module, from where Go keeps it.
fn copy_data(go: &Path, source: &Path, folder: &Path) -> Result<()> {
    let listed = Command::new(go)
        .args(["list", "-m", "-f", "{{.Dir}}", "istio.io/istio"])
        .current_dir(source)
        .output()
        .map_err(|error| format!("cannot start go: {error}"))?;
    let module = PathBuf::from(String::from_utf8_lossy(&listed.stdout).trim());
    DATA.iter().try_for_each(|(from, to)| copy(&module.join(from), &folder.join(to)))
}

/// Copies a file or a folder; by content alone, because Go's module folder is read-only.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = |error: std::io::Error| format!("cannot copy {} to {}: {error}", from.display(), to.display());
    if !from.is_dir() {
        return fs::read(from).and_then(|text| fs::write(to, text)).map_err(failed);
    }
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)?.flatten() {
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
