//! `cargo xtask test`: the tiers, what each needs, and the closing line with the sums.
//!
//! A suite belongs to the tier its file name begins with: `tests/tests/<tier>_<topic>.rs` (`redirect_*` and `scripted_*` count
//! as `netns`).

use crate::{Result, bpffs, cluster, control_plane, ebpf, envoy, kernels, packages, paths, setup, sh};
use clap::ValueEnum;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

/// The variable that says how long each fuzz target runs, and what it says unless somebody else has.
const FUZZ: (&str, &str) = ("CAUSEWAY_FUZZ_SECONDS", "60");

/// How a tier is asked for on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Tier {
    /// No privilege needed: decisions, codecs, tables, properties
    Pure,
    /// Root: real kernel programs and daemons in namespaces
    Netns,
    /// Root and Envoy: peers that were written elsewhere
    Interop,
    /// Root and what `setup --with control-plane` builds: real API servers and istiods
    ControlPlane,
    /// Root and what `setup --with kubernetes` builds: real clusters with kubelets
    Kubernetes,
    /// QEMU: the netns tier inside other kernels
    Kernels,
}

/// Sums over all suites.
#[derive(Default)]
pub struct Totals {
    passed: u32,
    failed: u32,
    skipped: u32,
    broken: Vec<String>,
    skips: Vec<String>,
}

/// Runs the tiers asked for and prints the closing line.
///
/// # Errors
/// If something cannot even be built; failing tests are a non-zero exit code.
pub fn run(only: Option<Tier>, versions: &[String], filter: Option<&str>) -> Result<ExitCode> {
    let wanted = |tier| only.is_none_or(|only| only == tier);
    let mut totals = Totals::default();
    if only == Some(Tier::Pure) {
        // Needs neither packages nor kernel programs, so it runs where those cannot be had.
        pure(filter, &mut totals)?;
        return Ok(totals.close());
    }
    let _bpffs = bpffs::AsItWas::now();
    setup::run()?;
    ebpf::build()?;
    if wanted(Tier::Pure) {
        pure(filter, &mut totals)?;
    }
    let suites = suites(filter)?;
    let built = [Tier::Netns, Tier::Interop, Tier::ControlPlane, Tier::Kubernetes];
    if built.into_iter().any(wanted) || !versions.is_empty() {
        sh::step("building the daemon and the suites");
        let needed = suites.iter().filter(|(tier, _)| wanted(*tier) || !versions.is_empty());
        let mut args = vec!["build", "--release", "--workspace", "--bins"];
        args.extend(needed.flat_map(|(_, suite)| ["--test", suite.as_str()]));
        sh::cargo(&args)?;
    }
    if wanted(Tier::Netns) {
        if packages::is_root() {
            section(&suites, Tier::Netns, filter, &mut totals)?;
        } else {
            totals.skip_tier("netns", "needs root (namespaces, cgroups, eBPF): run it as root");
        }
    }
    if wanted(Tier::Interop) {
        match (packages::is_root(), envoy::program()) {
            (true, Some(_)) => section(&suites, Tier::Interop, filter, &mut totals)?,
            (true, None) => totals.skip_tier("interop", "Envoy is not installed (cargo xtask setup says why)"),
            (false, _) => totals.skip_tier("interop", "needs root"),
        }
    }
    if wanted(Tier::ControlPlane) {
        if only.is_some() && packages::is_root() {
            // Asked for by name: worth the minutes of building, where that is possible.
            if let Err(error) = control_plane::install() {
                sh::step(&error);
            }
        }
        match (packages::is_root(), control_plane::missing()) {
            (true, None) => section(&suites, Tier::ControlPlane, filter, &mut totals)?,
            (true, Some(reason)) => totals.skip_tier("control-plane", &reason),
            (false, _) => totals.skip_tier("control-plane", "needs root"),
        }
    }
    if wanted(Tier::Kubernetes) {
        kubernetes(&suites, only.is_some(), filter, &mut totals)?;
    }
    if versions.is_empty() && wanted(Tier::Kernels) {
        totals.skip_tier("kernels", "ask with --kernels 6.1");
    }
    for version in versions {
        let done = kernels::run(version, filter, &mut |line| totals.see(line));
        if let Err(error) = done {
            totals.broken.push(format!("kernel {version}: {error}"));
        }
    }
    Ok(totals.close())
}

fn pure(filter: Option<&str>, totals: &mut Totals) -> Result<()> {
    println!("\n== tier pure");
    let mut args = vec!["test", "--release", "--workspace", "--lib", "--bins", "--quiet"];
    // Suites beside a crate need no privilege; those in `tests/tests` do.
    let beside: Vec<String> = stems(&paths::root().join("dataplane-user").join("tests"));
    args.extend(beside.iter().flat_map(|suite| ["--test", suite]));
    args.extend(filter);
    cargo_test("pure", &args, totals)
}

/// The suites share clusters, which are taken down at the end unless they were there before.
fn kubernetes(suites: &[(Tier, String)], asked: bool, filter: Option<&str>, totals: &mut Totals) -> Result<()> {
    if !packages::is_root() {
        totals.skip_tier("kubernetes", "needs root");
        return Ok(());
    }
    if asked && let Err(error) = cluster::install() {
        sh::step(&error);
    }
    if let Some(reason) = cluster::missing() {
        totals.skip_tier("kubernetes", &reason);
        return Ok(());
    }
    let were_up = cluster::are_up();
    // Ctrl-C ends the suite that runs, and still takes the clusters down.
    cluster::interrupt::watch()?;
    let done = section(suites, Tier::Kubernetes, filter, totals);
    if !were_up {
        cluster::run(cluster::Action::Down)?;
    }
    cluster::interrupt::check()?;
    done
}

fn section(suites: &[(Tier, String)], tier: Tier, filter: Option<&str>, totals: &mut Totals) -> Result<()> {
    println!("\n== tier {}", tier.name());
    for (_, suite) in suites.iter().filter(|(of, _)| *of == tier) {
        println!("\n-- {suite}");
        let mut args = vec!["test", "--release", "--workspace", "--test", suite.as_str()];
        args.extend(filter);
        // One at a time: the suites measure memory and open tens of thousands of sockets. Fuzz targets only compute, each in
        // one thread and for a given time. Output is shown because suites print figures and the reasons of skips.
        let threads = if suite.contains("fuzz") { "--test-threads=16" } else { "--test-threads=1" };
        args.extend(["--quiet", "--", threads, "--nocapture"]);
        cargo_test(suite, &args, totals)?;
    }
    Ok(())
}

fn cargo_test(suite: &str, args: &[&str], totals: &mut Totals) -> Result<()> {
    let mut command = sh::cargo_command();
    command.args(args).current_dir(paths::root());
    if let Some(envoy) = envoy::program() {
        command.env("CAUSEWAY_TEST_ENVOY", envoy);
    }
    let (name, seconds) = FUZZ;
    if std::env::var_os(name).is_none() {
        command.env(name, seconds);
    }
    // Not the running program, which the build before the tests may have replaced.
    command.env("CAUSEWAY_XTASK", paths::release().join("xtask"));
    let before = totals.failed;
    let status = sh::tee(&mut command, |line| totals.see(line))?;
    if !status.success() && totals.failed == before {
        totals.broken.push(format!("{suite}: ended with {status} outside a test"));
    }
    Ok(())
}

/// The suites in `tests/tests`, by tier; with a filter only those that have a test of such a name.
fn suites(filter: Option<&str>) -> Result<Vec<(Tier, String)>> {
    let folder = paths::root().join("tests").join("tests");
    let mut suites = Vec::new();
    for name in stems(&folder) {
        let tier = match name.split('_').next() {
            Some("netns" | "redirect" | "scripted") => Tier::Netns,
            Some("interop") => Tier::Interop,
            Some("control") => Tier::ControlPlane,
            Some("kubernetes") => Tier::Kubernetes,
            _ => return Err(format!("{}/{name}.rs: a suite is named <tier>_<topic>.rs", folder.display())),
        };
        suites.push((tier, name));
    }
    if suites.is_empty() {
        return Err(format!("no suites in {}", folder.display()));
    }
    if let Some(filter) = filter {
        let text = |name: &str| fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap_or_default();
        suites.retain(|(_, name)| text(name).contains(filter));
    }
    Ok(suites)
}

/// The names of the Rust files in a folder, without their ending, in order.
fn stems(folder: &Path) -> Vec<String> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let rust = files.filter(|path| path.is_file() && path.extension().is_some_and(|extension| extension == "rs"));
    let mut names: Vec<String> =
        rust.filter_map(|path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Tier::Pure => "pure",
            Tier::Netns => "netns",
            Tier::Interop => "interop",
            Tier::ControlPlane => "control-plane",
            Tier::Kubernetes => "kubernetes",
            Tier::Kernels => "kernels",
        }
    }
}

impl Totals {
    /// Reads a line of test output: result lines are added up, lines of tests that skipped themselves are moved over.
    fn see(&mut self, line: &str) {
        if let Some(at) = line.find("skipped: ") {
            // The test still counts as passed in libtest's own line.
            self.skipped += 1;
            self.passed = self.passed.wrapping_sub(1);
            self.skips.push(line.get(at + 9..).unwrap_or_default().to_owned());
        }
        let Some(rest) = line.strip_prefix("test result: ") else {
            return;
        };
        let number = |word: &str| -> u32 {
            let before = rest.split(';').find_map(|part| part.trim().strip_suffix(word));
            before.and_then(|text| text.split_whitespace().last()).and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        self.passed = self.passed.wrapping_add(number("passed"));
        self.failed += number("failed");
        self.skipped += number("ignored");
    }

    fn skip_tier(&mut self, tier: &str, reason: &str) {
        println!("\n== tier {tier}: skipped: {reason}");
        self.skipped += 1;
        self.skips.push(format!("tier {tier}: {reason}"));
    }

    fn close(self) -> ExitCode {
        println!();
        for skip in &self.skips {
            println!("skipped {skip}");
        }
        for broken in &self.broken {
            println!("failed  {broken}");
        }
        let failed = self.failed + u32::try_from(self.broken.len()).unwrap_or(u32::MAX);
        println!("{} passed, {failed} failed, {} skipped", self.passed, self.skipped);
        if failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::Totals;

    #[test]
    fn result_lines_add_up_and_a_skipped_test_is_not_passed() {
        let mut totals = Totals::default();
        totals.see("test a ... skipped: a: no Envoy");
        totals.see("test result: ok. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (2, 1, 3));
    }
}
