//! Who is behind a name, as one client sees the mesh.

use std::net::IpAddr;
use std::sync::Arc;

use super::MESH_DOMAIN;
use super::names::{candidates, is_below, wildcards, without};
use crate::state::{Model, NamedPod, Service, Workload};

/// Whom a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A service: its virtual addresses, or its endpoints' if it has none.
    Service(Arc<Service>),
    /// One pod of a service without virtual addresses, in the client's network; not ready if it is absent here.
    Pod(Option<Arc<Workload>>),
    /// A pod that such a service may have in other networks.
    RemotePod {
        /// The service.
        service: Arc<Service>,
        /// Name of the pod.
        pod: String,
        /// Networks that have endpoints of the service.
        networks: Vec<Arc<str>>,
    },
}

/// What a name was found to mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whom.
    pub target: Target,
    /// The name it was found by: that of the question, or one it stands for.
    pub name: String,
    /// The name it was found by came from removing a search domain.
    pub stripped: bool,
    /// It was found by a wildcard.
    pub wildcard: bool,
}

/// Finds whom `asked` (in lower case, no trailing dot) means to `client`. `None` means that the name is not the mesh's, or not
/// for this client to see.
#[must_use]
pub fn find(model: &Model, client: &Workload, asked: &str) -> Option<Found> {
    let domain = &*model.node.cluster_domain;
    for candidate in candidates(asked, &client.namespace, domain) {
        let found = |target, wildcard| {
            Some(Found { target, name: candidate.name.clone(), stripped: candidate.stripped, wildcard })
        };
        if let Some(service) = service(model, client, &candidate.name) {
            return found(Target::Service(service), false);
        }
        if let Some(target) = pod(model, client, &candidate.name) {
            return found(target, false);
        }
        for name in wildcards(&candidate.name) {
            if let Some(service) = service(model, client, &name) {
                return found(Target::Service(service), true);
            }
        }
    }
    None
}

/// The service of a host name. One without virtual addresses counts under the cluster's service domain only: elsewhere its
/// endpoints' addresses are better known to whoever runs that name.
fn service(model: &Model, client: &Workload, name: &str) -> Option<Arc<Service>> {
    let mut service = model.service_by_host(name, &client.namespace)?;
    let preferred = &model.node.preferred_namespace;
    if !preferred.is_empty()
        && service.namespace != client.namespace
        && !service.canonical
        && let Some(other) = model.service(preferred, name).filter(|other| other.visible_to(&client.namespace))
    {
        service = other;
    }
    let counts = !service.vips.is_empty() || is_service_name(model, name);
    counts.then(|| service.clone())
}

fn is_service_name(model: &Model, name: &str) -> bool {
    is_below(name, &format!("svc.{}", model.node.cluster_domain))
}

/// The pod of `<pod>.<service>`, if that service is headless.
fn pod(model: &Model, client: &Workload, name: &str) -> Option<Target> {
    let (pod, host) = name.split_once('.')?;
    if !is_service_name(model, host) {
        return None;
    }
    let service = model.service_by_host(host, &client.namespace).filter(|service| service.is_headless())?;
    match model.named_pod(service, pod, &client.network) {
        Some(NamedPod::Ready(workload)) => return Some(Target::Pod(Some(workload.clone()))),
        // It still owns its name: another network's must not stand in for it.
        Some(NamedPod::NotReady) => return Some(Target::Pod(None)),
        None => {}
    }
    let mut networks: Vec<Arc<str>> = model
        .endpoints(service)
        .iter()
        .map(|endpoint| &endpoint.workload)
        .filter(|workload| workload.is_split_horizon() && workload.network != client.network)
        .map(|workload| workload.network.clone())
        .collect();
    networks.sort();
    networks.dedup();
    (!networks.is_empty()).then(|| Target::RemotePod { service: service.clone(), pod: pod.to_owned(), networks })
}

/// Addresses of a service for a client: its virtual addresses in the client's network, or one of each endpoint there.
#[must_use]
pub fn service_addresses(model: &Model, client: &Workload, service: &Service, v4: bool) -> Vec<IpAddr> {
    let fits = |ip: &IpAddr| ip.is_ipv4() == v4 && service.ip_families.accepts(*ip);
    if !service.vips.is_empty() {
        let here = service.vips.iter().filter(|vip| vip.network == client.network);
        return here.map(|vip| vip.ip).filter(fits).collect();
    }
    let here = model.endpoints(service).iter().filter(|endpoint| endpoint.workload.network == client.network);
    here.filter_map(|endpoint| endpoint.workload.ips.iter().copied().find(fits)).collect()
}

/// The name behind an address in the client's network: that of the service with this virtual address.
#[must_use]
pub fn name_of_address(model: &Model, client: &Workload, ip: IpAddr) -> Option<Arc<str>> {
    let service = model.service_with_vip(&client.network, ip)?;
    let nameable = service.visible_to(&client.namespace) && !service.hostname.starts_with('*');
    nameable.then(|| service.hostname.clone())
}

/// Keys, `namespace/hostname`, of services that `asked` may mean by its form and the model does not know: as it stands, or with a
/// search domain of the client behind it. Only names below the cluster's service domain or the mesh's tell a namespace.
#[must_use]
pub fn unknown_services(model: &Model, client: &Workload, asked: &str) -> Vec<String> {
    let domain = &*model.node.cluster_domain;
    let services = format!("svc.{domain}");
    let own = format!("{}.{services}", client.namespace);
    let stripped = [own.as_str(), &services, domain].into_iter().filter_map(|search| without(asked, search));
    let mut found: Vec<String> = Vec::new();
    for key in std::iter::once(asked).chain(stripped).filter_map(|name| unknown_service(model, name, &services)) {
        if !found.contains(&key) {
            found.push(key);
        }
    }
    found
}

fn unknown_service(model: &Model, name: &str, services: &str) -> Option<String> {
    let (inside, domain) = match (without(name, services), without(name, MESH_DOMAIN)) {
        (Some(inside), _) => (inside, services),
        (None, Some(inside)) => (inside, MESH_DOMAIN),
        (None, None) => return None,
    };
    let mut labels = inside.rsplit('.');
    let (namespace, service) = (labels.next()?, labels.next()?);
    let host = format!("{service}.{namespace}.{domain}");
    // A pod's name at most stands before it; anything longer was made of search domains.
    let fits = labels.count() <= 1 && model.services_by_host(&host).is_empty();
    fits.then(|| format!("{namespace}/{host}"))
}
