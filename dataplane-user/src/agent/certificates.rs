//! The certificate store of a node, and whose certificates it is told to have ready.

use std::{sync::Arc, time::Duration};

use super::{node::Failure, worker::Shared};
use crate::{
    identity::{CertificateSource, CertificateStore, IdentityError, TrustBundle},
    istio::{ca::IstioCa, ca_settings, xds_settings::Environment},
    state::{Model, NodeConfig, Protocol, Workload},
};

/// How often a model that keeps changing is looked at.
const PAUSE: Duration = Duration::from_millis(250);

/// The store of a node: files, an intermediate of its own, or Istio's authority.
///
/// # Errors
/// What keeps it from being used, with the file or setting to look at.
pub fn open(node: &NodeConfig, environment: &Environment) -> Result<Arc<CertificateStore>, Failure> {
    let config = ca_settings::store(node.identity.clone(), environment);
    if config.source != CertificateSource::Authority {
        return Ok(CertificateStore::open(config)?);
    }
    let channel = ca_settings::channel(node, environment)
        .ok_or("no source of certificates: set controlPlane.caAddress, CA_ADDRESS, or identity.caDirectory")?;
    let authority = IstioCa::new(&channel, &node.node)?;
    Ok(CertificateStore::with_authority(config, Arc::new(authority))?)
}

/// Keeps the store told of the model's changes. Never returns before the model's end.
pub async fn follow(shared: Arc<Shared>) {
    let mut changes = shared.model.subscribe();
    loop {
        need(&shared.credentials, &shared.model.load());
        tokio::time::sleep(PAUSE).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// HBONE workloads of this node, enrolled ones whatever they speak, and the gateway role.
fn need(store: &CertificateStore, model: &Model) {
    // A gateway alone has no right to the certificates of the pods beside it, and no use for them.
    let alone = model.node.gateway.is_some() && model.node.enrol.is_empty();
    let own = |workload: &&Arc<Workload>| {
        !alone
            && workload.protocol == Protocol::Hbone
            && workload.node == model.node.node
            && workload.cluster == model.node.cluster
    };
    let enrolled = model.node.enrol.iter().filter_map(|enrolment| match model.workload(&enrolment.workload) {
        Some(workload) => Some(workload.identity.clone()),
        None => Some(enrolment.client(&model.node)?.identity),
    });
    let workloads = model.workloads().filter(own).map(|workload| workload.identity.clone()).chain(enrolled);
    let gateway = model.node.gateway.iter().map(|role| role.identity.clone());
    store.need(workloads.chain(gateway));
}

/// The roots of every trust domain this node accepts besides its own.
pub(super) fn trust(model: &Model) -> Result<TrustBundle, IdentityError> {
    let mut bundle = TrustBundle::new();
    for domain in model.node.trust.iter().flat_map(|network| &network.domains) {
        bundle.add_file(&domain.name, &domain.roots)?;
    }
    Ok(bundle)
}
