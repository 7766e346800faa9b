//! Linking clusters: from what their API servers show to the objects that expose one to the others, and to what is wrong.
//!
//! [`gather`] reads, [`facts`] says what was read in the terms of a mesh, [`expose`] and [`link`] say which objects are wanted,
//! [`check`] what does not hold, with the command that repairs it. All but [`api`], [`gather`] and [`probe`] is data in, data out.

pub mod api;
pub mod certificates;
pub mod check;
pub mod expose;
pub mod facts;
pub mod finding;
pub mod gather;
pub mod link;
pub mod names;
mod objects;
pub mod probe;
pub mod reader;

#[cfg(test)]
mod api_tests;
#[cfg(test)]
mod certificates_tests;
#[cfg(test)]
mod nodes_tests;
#[cfg(test)]
mod tests;

use serde_json::Value;

/// Objects as documents of YAML, in order.
///
/// # Errors
/// None for objects that came from JSON.
pub fn yaml(objects: &[Value]) -> Result<String, String> {
    let documents = objects.iter().map(|object| serde_yaml_ng::to_string(object).map_err(|error| error.to_string()));
    Ok(documents.map(|text| text.map(|text| format!("---\n{text}"))).collect::<Result<Vec<_>, _>>()?.concat())
}
