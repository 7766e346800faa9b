//! Endpoints that are known by their host name.

use super::worker::Worker;
use crate::{
    decide::{NamedRoute, Outbound},
    hbone::{ConnError, Leg},
    observe::counters::Counters,
};

/// Resolves the name of an endpoint, as every connection to it does.
///
/// # Errors
/// The name has no address that may be used.
pub async fn resolve(worker: &Worker, route: &NamedRoute) -> Result<Outbound, ConnError> {
    let name = &*route.workload.hostname;
    let failed = |error: &dyn std::fmt::Display| {
        let reason =
            format!("the host name of the endpoint {}: {error}; ask this node's DNS for it", route.workload.uid);
        ConnError::retryable(Leg::Resolve, name, reason)
    };
    Counters::add(&worker.shared.counters.on_demand_dns);
    let found = tokio::net::lookup_host((name, route.port)).await.map_err(|error| failed(&error))?;
    let addresses: Vec<_> = found.map(|address| address.ip()).collect();
    match route.choose(&addresses, &mut || worker.random.next()) {
        Some(ip) => Ok(route.resolved(ip)),
        None => Err(failed(&"no address of a family that the service allows")),
    }
}
