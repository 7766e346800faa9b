//! What istiod sends to a subscriber that names what it wants: as recorded of a real one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use causeway::istio::wds::{self, AddressType, NetworkAddress};
use causeway::istio::xds_proto::{DeltaDiscoveryRequest, Kind, Resource};
use prost::Message as _;

/// A stream that was told to subscribe to nothing, and then to names.
#[derive(Debug, Default)]
pub(super) struct Named {
    names: BTreeSet<String>,
    /// The subscriber's node: its workloads come unasked.
    node: String,
}

impl Named {
    pub(super) fn new(node: String) -> Self {
        Self { names: BTreeSet::new(), node }
    }

    /// Takes a request in; whether it asks for anything new, else it is not answered.
    pub(super) fn take(&mut self, request: &DeltaDiscoveryRequest) -> bool {
        let before = self.names.clone();
        self.names.extend(request.resource_names_subscribe.iter().filter(|name| *name != "*").cloned());
        for name in &request.resource_names_unsubscribe {
            self.names.remove(name);
        }
        self.names.difference(&before).next().is_some()
    }

    /// Resources that are wanted, with their aliases, and the names that nothing has.
    pub(super) fn select<'a>(
        &self,
        known: impl Iterator<Item = &'a Resource> + Clone,
    ) -> (Vec<Resource>, BTreeSet<String>) {
        let mut missing = self.names.clone();
        let mut services = BTreeSet::new();
        let mut chosen = Vec::new();
        for resource in known.clone() {
            let aliases = aliases(resource);
            let names: Vec<&String> =
                aliases.iter().chain([&resource.name]).filter(|n| self.names.contains(*n)).collect();
            missing.retain(|name| !names.contains(&name));
            let unasked =
                matches!(address(resource), Some(AddressType::Workload(workload)) if workload.node == self.node);
            if !names.is_empty() && matches!(address(resource), Some(AddressType::Service(_))) {
                services.insert(resource.name.clone());
            }
            if !names.is_empty() || unasked {
                chosen.push(Resource { aliases, ..resource.clone() });
            }
        }
        // A service brings its workloads.
        for resource in known {
            let member = matches!(address(resource), Some(AddressType::Workload(workload))
                if workload.services.keys().any(|key| services.contains(key)));
            if member && !chosen.iter().any(|chosen| chosen.name == resource.name) {
                chosen.push(Resource { aliases: aliases(resource), ..resource.clone() });
            }
        }
        (chosen, missing)
    }
}

/// The name of the node in the metadata of a first request.
pub(super) fn node(request: &DeltaDiscoveryRequest) -> String {
    let fields = request.node.as_ref().and_then(|node| node.metadata.as_ref()).map(|metadata| &metadata.fields);
    match fields.and_then(|fields| fields.get("NODE_NAME")).and_then(|value| value.kind.as_ref()) {
        Some(Kind::Text(text)) => text.clone(),
        _ => String::new(),
    }
}

fn address(resource: &Resource) -> Option<AddressType> {
    let body = resource.resource.as_ref()?;
    wds::Address::decode(body.value.clone()).ok()?.kind
}

/// `network/address` for each address.
fn aliases(resource: &Resource) -> Vec<String> {
    let ip = |bytes: &[u8]| -> Option<IpAddr> {
        match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    match address(resource) {
        Some(AddressType::Workload(workload)) => {
            let ips = workload.addresses.iter().filter_map(|bytes| ip(bytes));
            ips.map(|ip| format!("{}/{ip}", workload.network)).chain(resource.aliases.iter().cloned()).collect()
        }
        Some(AddressType::Service(service)) => {
            let named = |vip: &NetworkAddress| Some(format!("{}/{}", vip.network, ip(&vip.address)?));
            service.addresses.iter().filter_map(named).collect()
        }
        None => Vec::new(),
    }
}
