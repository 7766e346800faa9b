//! Which authority is asked, and how: the model file, and the environment variables of ztunnel for what the file leaves out.

use std::time::Duration;

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
/// `SECRET_TTL` is no time.
pub fn store(mut config: StoreConfig, environment: &Environment) -> Result<StoreConfig, String> {
    if config.revocation.is_none() {
        config.revocation = environment.get("CRL_PATH").map(Into::into);
    }
    if let Some(text) = environment.get("SECRET_TTL") {
        config.ttl =
            go_duration(text).ok_or_else(|| format!("SECRET_TTL={text}: not a time; write it as 24h or 90m"))?;
    }
    Ok(config)
}

/// A time as Go writes it, in whole hours, minutes and seconds, as 1h30m0s.
fn go_duration(text: &str) -> Option<Duration> {
    let (mut seconds, mut number) = (0u64, None::<u64>);
    for character in text.chars() {
        if let Some(digit) = character.to_digit(10) {
            number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit.into())?);
            continue;
        }
        let unit = match character {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.take()?.checked_mul(unit)?)?;
    }
    (number.is_none() && seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_go_writes_them() {
        let rows = [
            ("24h", Some(86_400)),
            ("1h30m0s", Some(5400)),
            ("90s", Some(90)),
            ("", None),
            ("5", None),
            ("h", None),
            ("0s", None),
            ("1d", None),
            ("99999999999999999999h", None),
        ];
        for (text, seconds) in rows {
            assert_eq!(go_duration(text), seconds.map(Duration::from_secs), "{text:?}");
        }
    }
}
