//! What the demo says: numbered steps in prose, or one JSON document for machines.

use crate::{Topology, sys};
use serde_json::{Map, Value, json};
use std::time::Instant;

/// Prose on standard output as it happens, or JSON at the end.
#[derive(Debug)]
pub struct Report {
    json: bool,
    started: Instant,
    steps: Vec<Value>,
}

impl Report {
    /// An empty report.
    pub fn new(json: bool) -> Self {
        Self { json, started: Instant::now(), steps: Vec::new() }
    }

    /// Begins a step: a short name for machines, a title for people.
    pub fn step(&mut self, name: &str, title: &str) {
        self.steps.push(json!({"name": name, "title": title, "facts": {}}));
        if !self.json {
            println!("\n{}. {title}", self.steps.len());
        }
    }

    /// A sentence of the current step.
    pub fn say(&self, text: &str) {
        if !self.json {
            for line in text.lines() {
                println!("   {line}");
            }
        }
    }

    /// A figure of the current step, for machines.
    pub fn fact(&mut self, name: &str, value: impl Into<Value>) {
        let facts = self.steps.last_mut().and_then(|step| step.get_mut("facts")).and_then(Value::as_object_mut);
        if let Some(facts) = facts {
            facts.insert(name.to_owned(), value.into());
        }
    }

    /// The ends of the daemons' logs, after a failure.
    pub fn logs(&self, topology: &Topology) {
        eprintln!("\nThe last lines of the daemons' logs:\n{}", topology.log_tails());
    }

    /// The closing line or the JSON document.
    pub fn finish(self, error: Option<&str>) {
        let seconds = self.started.elapsed().as_secs_f64();
        if self.json {
            let mut document = Map::new();
            document.insert("ok".into(), error.is_none().into());
            document.insert("seconds".into(), seconds.into());
            document.insert("error".into(), error.into());
            document.insert("steps".into(), self.steps.into());
            println!("{:#}", Value::Object(document));
            return;
        }
        match error {
            None => println!("\nAll of it held, in {seconds:.0} s."),
            Some(_) if sys::interrupted() => {
                eprintln!("\nInterrupted in step {}; everything is cleaned up.", self.steps.len())
            }
            Some(error) => eprintln!("\nThe demo failed in step {}: {error}", self.steps.len()),
        }
    }
}
