//! The demo: two clusters that share one pod range, and an unmodified client that calls a service in the other one.
//!
//! Every sentence it prints is checked first; a promise that does not hold ends it with an error.

mod clean;
pub mod kubernetes;
mod report;
mod stage;
mod steps;
mod watch;

use crate::{Result, sys};
use report::Report;
use stage::Stage;
use std::process::ExitCode;

/// What the person at the terminal asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Leave everything running.
    pub keep: bool,
    /// One JSON document instead of prose.
    pub json: bool,
    /// Fail if anything is left at the end.
    pub check_clean: bool,
}

/// Runs the demo and cleans up, also after Ctrl-C.
pub fn run(options: Options) -> ExitCode {
    sys::catch_interrupts();
    let mut report = Report::new(options.json);
    let _bpffs = crate::bpffs::AsItWas::now();
    let before = clean::Inventory::take();
    let shown = show(options, &mut report);
    let clean = if options.check_clean && !options.keep { clean::check(&before, &mut report) } else { Ok(()) };
    match shown.and(clean) {
        Ok(()) => {
            report.finish(None);
            ExitCode::SUCCESS
        }
        Err(error) => {
            report.finish(Some(&error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn show(options: Options, report: &mut Report) -> Result<()> {
    let mut stage = Stage::build(report)?;
    let shown = steps::all(&mut stage, report);
    if let Err(error) = shown {
        if !sys::interrupted() {
            report.logs(&stage.topology);
        }
        stage.close()?;
        return Err(error);
    }
    if options.keep {
        stage.explain(report);
        stage.keep();
        return Ok(());
    }
    report.step("cleanup", "Taking everything down");
    stage.close()?;
    report.say("Daemons ended, kernel programs removed, namespaces and cgroups gone.");
    Ok(())
}
