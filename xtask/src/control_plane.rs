//! A real control plane for the tests: etcd from the distribution, kube-apiserver and istiod built with Go, once.

use crate::{Result, packages, paths, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Kubernetes release in `tests/go/kube/go.mod`; the API server tells it to its clients.
const KUBERNETES: &str = "1.35.4";

/// Data files of the istio module: the kinds that istiod reads.
const DATA: &[(&str, &str)] = &[
    ("manifests/charts/base/files/crd-all.gen.yaml", "istio-crds.yaml"),
    ("tests/integration/pilot/testdata/gateway-api-crd.yaml", "gateway-crds.yaml"),
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
        let go = go().ok_or("Go is needed for kube-apiserver and istiod; install it from https://go.dev/dl")?;
        build(&go, program)?;
    }
    Ok(())
}

fn folder() -> PathBuf {
    paths::tools().join("control-plane")
}

fn source(program: &str) -> PathBuf {
    paths::root().join("tests").join("go").join(program)
}

/// What decides whether a program has to be built again.
fn version(program: &str) -> String {
    ["go.mod", "main.go"].map(|file| fs::read_to_string(source(program).join(file)).unwrap_or_default()).concat()
}

fn is_current(program: &str) -> bool {
    let built = fs::read_to_string(folder().join(format!("{program}.version")));
    folder().join(program).is_file() && built.is_ok_and(|built| built == version(program))
}

/// Go on the search path, or where its own archive puts it.
fn go() -> Option<PathBuf> {
    let usual = Path::new("/usr/local/go/bin/go");
    if sh::has_program("go") { Some("go".into()) } else { usual.is_file().then(|| usual.to_owned()) }
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

/// The kinds of Istio and of the Gateway API, from where Go keeps the module.
fn copy_data(go: &Path, source: &Path, folder: &Path) -> Result<()> {
    let listed = Command::new(go)
        .args(["list", "-m", "-f", "{{.Dir}}", "istio.io/istio"])
        .current_dir(source)
        .output()
        .map_err(|error| format!("cannot start go: {error}"))?;
    let module = PathBuf::from(String::from_utf8_lossy(&listed.stdout).trim());
    for (from, to) in DATA {
        let from = module.join(from);
        let text = fs::read(&from).map_err(|error| format!("cannot read {}: {error}", from.display()))?;
        let to = folder.join(to);
        fs::write(&to, text).map_err(|error| format!("cannot write {}: {error}", to.display()))?;
    }
    Ok(())
}
