//! Talking to Istio's control plane.

pub mod ca;
pub mod ca_settings;
pub mod channel;
mod demand;
pub mod kept;
pub mod token;
pub mod wds;
mod wds_convert;
mod wds_convert_policy;
pub mod wds_policy;
pub mod xds_client;
pub mod xds_proto;
pub mod xds_session;
pub mod xds_settings;
