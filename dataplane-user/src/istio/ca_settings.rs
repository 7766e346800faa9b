//! Which authority is asked, and how: the model file, and the environment variables of ztunnel for what the file leaves out.

use super::channel::ChannelConfig;
use super::xds_settings::{DEFAULT_ROOTS, DEFAULT_TOKEN, Environment, with_scheme};
use crate::identity::StoreConfig;
use crate::state::NodeConfig;

/// How the authority of a node is reached; `None` without an address.
#[must_use]
pub fn channel(config: &NodeConfig, environment: &Environment) -> Option<ChannelConfig> {
    let plane = config.control_plane.clone().unwrap_or_default();
    let address = if plane.ca_address.is_empty() { environment.get("CA_ADDRESS")? } else { &plane.ca_address };
    let cluster = [plane.cluster_id.as_str(), environment.or("CLUSTER_ID", ""), &config.cluster];
    // istiod looks for the pods of a node in the cluster that the caller names.
    let cluster = cluster.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    let mut headers = vec![("clusterid".to_owned(), cluster.to_owned())];
    headers.extend(environment.with_prefix("CA_HEADER_").map(|(name, value)| (name.to_owned(), value.to_owned())));
    Some(ChannelConfig {
        address: with_scheme(address.to_owned()),
        server_name: plane.server_name.or_else(|| environment.get("ALT_CA_HOSTNAME").map(str::to_owned)),
        roots: plane.root_cert.or_else(|| Some(environment.or("CA_ROOT_CA", DEFAULT_ROOTS).into())),
        token: plane.token.or_else(|| Some(environment.or("AUTH_TOKEN", DEFAULT_TOKEN).into())),
        headers,
    })
}

/// Adds what the environment says of certificates to what the file says.
///
/// # Errors
/// `SECRET_TTL` is no time, or none at all.
pub fn store(mut config: StoreConfig, environment: &Environment) -> Result<StoreConfig, String> {
    if config.revocation.is_none() {
        config.revocation = environment.get("CRL_PATH").map(Into::into);
    }
    if let Some(ttl) = environment.time("SECRET_TTL")? {
        if ttl.is_zero() {
            return Err("environment variable SECRET_TTL: a certificate has to live for a while; write 24h".to_owned());
        }
        config.ttl = ttl;
    }
    Ok(config)
}
