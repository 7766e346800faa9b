//! `causeway probe`: what the running kernel and this process's privileges allow.

use crate::redirect;

/// How to show it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON, for machines.
    #[arg(long)]
    json: bool,
}

/// Prints one row per feature.
///
/// # Errors
/// A feature that Causeway cannot do without is missing.
pub fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let features = redirect::probe();
    if args.json {
        let rows: Vec<_> = features
            .iter()
            .map(|feature| {
                serde_json::json!({
                    "feature": feature.name,
                    "since": feature.floor,
                    "required": !feature.optional,
                    "supported": feature.supported == Ok(true),
                    "reason": feature.supported.as_ref().err(),
                })
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        for feature in &features {
            let (mark, why) = match &feature.supported {
                Ok(true) => ("yes", ""),
                Ok(false) => ("no", ""),
                Err(why) => ("no", why.as_str()),
            };
            println!("{:36} {:>6}  {mark:4}{why}", feature.name, feature.floor);
        }
    }
    let missing: Vec<&str> = features
        .iter()
        .filter(|feature| !feature.optional && feature.supported != Ok(true))
        .map(|feature| feature.name)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("this machine cannot run Causeway: {}", missing.join(", ")).into())
    }
}
