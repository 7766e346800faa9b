//! Clients outside of all nodes, with addresses that no cluster has.

use super::Clusters;
use crate::{Result, netns, outside};
use std::net::{IpAddr, SocketAddr};

/// The address there of any program that asks for no other.
pub const CLIENT: &str = "172.29.0.1";

/// The namespace outside of all nodes, in which every address of 198.18.0.0/15 is ours while this lives.
#[derive(Debug)]
pub struct Clients(String);

impl Clients {
    /// Takes the addresses.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn of(clusters: &Clusters) -> Result<Self> {
        let name = format!("{}-wan", clusters.tag()?);
        netns::batch(Some(&name), &format!("route replace local {} dev lo\n", outside::CLIENTS4))?;
        Ok(Self(name))
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.0
    }

    /// One question from each of these addresses.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn ask(&self, clients: &[IpAddr], to: SocketAddr) -> Result<Vec<std::result::Result<String, String>>> {
        outside::ask_in(&self.0, clients, to, "/")
    }

    /// The last line of the answer to one question, or why there is none.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn ask_one(&self, client: &str, to: SocketAddr) -> Result<std::result::Result<String, String>> {
        let client = client.parse().map_err(crate::context(client))?;
        let answer = self.ask(&[client], to)?.pop().unwrap_or_else(|| Err("nobody asked".to_owned()));
        Ok(answer.map(|text| text.lines().last().unwrap_or_default().to_owned()))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // The clusters may be down already, and the namespace with them.
        let _ = netns::batch(Some(&self.0), &format!("route del local {} dev lo\n", outside::CLIENTS4));
    }
}
