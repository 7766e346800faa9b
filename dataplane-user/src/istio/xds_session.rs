//! What one client holds of one server, and how it answers it. No input or output, no clock.

use std::collections::HashMap;
use std::sync::Arc;

use super::wds::{self, ADDRESS_TYPE, AddressType, Any};
use super::wds_convert::{Refusal, service, workload};
use super::wds_convert_policy::{policy, substitute};
use super::wds_policy::{self, AUTHORIZATION_TYPE};
use super::xds_proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource, Status};
use crate::state::{Intern, Update};

/// Both types, in the order in which they are asked for.
pub const TYPES: [&str; 2] = [ADDRESS_TYPE, AUTHORIZATION_TYPE];
/// Most refusals named in one answer: servers limit the size of a request.
const NAMED: usize = 50;
/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// A resource that is in force.
#[derive(Debug)]
struct Held {
    version: Version,
    kind: Kind,
    /// Its key in the model, where that is not its name.
    key: Option<Box<Arc<str>>>,
}

/// A version. Istio's are hashes; a hundred thousand of them as text would take megabytes.
#[derive(Debug)]
enum Version {
    Hash(u64),
    Text(Box<str>),
}

impl Version {
    fn new(text: &str) -> Self {
        match u64::from_str_radix(text, 16) {
            // Only what comes out again as it was.
            Ok(hash) if format!("{hash:x}") == text => Self::Hash(hash),
            _ => Self::Text(text.into()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Hash(hash) => format!("{hash:x}"),
            Self::Text(text) => text.to_string(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Workload,
    Service,
    Policy,
    /// Stands for a policy that was refused.
    Substitute,
}

/// What a response means.
#[derive(Debug)]
pub struct Received {
    /// For the model.
    pub update: Update,
    /// Name and reason of what was refused.
    pub refused: Vec<(String, Refusal)>,
    /// Names that the server does not know, or no longer.
    pub removed: Vec<String>,
    /// The answer: all is well, or what is not.
    pub answer: DeltaDiscoveryRequest,
    /// Whether both types have been answered at least once by now.
    pub complete: bool,
}

/// What one client holds of one server.
#[derive(Debug, Default)]
pub struct Session {
    held: [HashMap<Arc<str>, Held>; 2],
    told: [bool; 2],
    intern: Intern,
}

fn index(type_url: &str) -> Option<usize> {
    TYPES.iter().position(|known| *known == type_url)
}

impl Session {
    /// Whether both types have been answered at least once.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.told == [true, true]
    }

    /// Number of resources held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.iter().map(HashMap::len).sum()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first request of a type on a new stream: the versions of all that is held, so that only what differs comes.
    /// Refused resources are left out and so come again.
    #[must_use]
    pub fn subscribe(&self, type_url: &str, on_demand: bool) -> DeltaDiscoveryRequest {
        let held = index(type_url).and_then(|at| self.held.get(at));
        let versions = held.into_iter().flatten().filter(|(_, held)| held.kind != Kind::Substitute);
        let nothing = if on_demand && type_url == ADDRESS_TYPE { vec!["*".to_owned()] } else { Vec::new() };
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            // Everything, unless "*" is both asked for and let go: then nothing but what is named later.
            resource_names_subscribe: nothing.clone(),
            resource_names_unsubscribe: nothing,
            initial_resource_versions: versions.map(|(name, held)| (name.to_string(), held.version.text())).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes a response in: what is good applies, what is not is named in the answer.
    pub fn receive(&mut self, response: DeltaDiscoveryResponse) -> Received {
        let mut update = Update::default();
        let mut refused = Vec::new();
        match index(&response.type_url) {
            Some(at) => {
                for name in &response.removed_resources {
                    self.removed(at, name, &mut update);
                }
                for resource in response.resources {
                    let name = resource.name.clone();
                    if let Err(reason) = self.resource(at, resource, &mut update) {
                        refused.push((name, reason));
                    }
                }
                if let Some(told) = self.told.get_mut(at) {
                    *told = true;
                }
            }
            None => refused.push((response.type_url.clone(), "a type that was not asked for".to_owned())),
        }
        self.intern.tidy();
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: complaint(&refused),
            ..DeltaDiscoveryRequest::default()
        };
        Received { update, refused, removed: response.removed_resources, answer, complete: self.complete() }
    }

    fn removed(&mut self, at: usize, name: &str, update: &mut Update) {
        let Some((name, held)) = self.held.get_mut(at).and_then(|held| held.remove_entry(name)) else {
            return;
        };
        let key = held.key.map_or(name, |key| *key);
        match held.kind {
            Kind::Workload => update.removed_workloads.push(key),
            Kind::Service => update.removed_services.push(key),
            Kind::Policy | Kind::Substitute => update.removed_policies.push(key),
        }
    }

    fn hold(&mut self, at: usize, name: &str, key: &Arc<str>, version: &str, kind: Kind) {
        // Nearly all names equal their keys; those share one allocation.
        let (name, key) = if **key == *name { (key.clone(), None) } else { (name.into(), Some(Box::new(key.clone()))) };
        if let Some(held) = self.held.get_mut(at) {
            held.insert(name, Held { version: Version::new(version), kind, key });
        }
    }

    fn resource(&mut self, at: usize, resource: Resource, update: &mut Update) -> Result<(), Refusal> {
        let Resource { version, resource: body, name, .. } = resource;
        let body = body.unwrap_or_default();
        if at == 0 { self.address(&name, version, &body, update) } else { self.policy(&name, version, &body, update) }
    }

    fn address(&mut self, name: &str, version: String, body: &Any, update: &mut Update) -> Result<(), Refusal> {
        let address: wds::Address = decode(body, ADDRESS_TYPE)?;
        let before = self.held.first().and_then(|held| held.get(name)).map(|held| held.kind);
        match address.kind {
            Some(AddressType::Workload(raw)) => {
                let mut new = workload(raw, &mut self.intern)?;
                if *new.uid != *name {
                    return Err(format!("uid: {:?} is not the resource's name", new.uid));
                }
                if let Some((known, _)) = self.held.first().and_then(|held| held.get_key_value(name)) {
                    // One allocation for all versions: maps keep the key they first got.
                    new.uid = known.clone();
                }
                if before == Some(Kind::Service) {
                    self.removed(0, name, update);
                }
                self.hold(0, name, &new.uid, &version, Kind::Workload);
                update.workloads.push(new);
            }
            Some(AddressType::Service(raw)) => {
                let published = format!("{}/{}", raw.namespace, raw.hostname);
                let new = service(raw, &mut self.intern)?;
                if published != name {
                    return Err(format!("namespace, hostname: {published:?} is not the resource's name"));
                }
                if before == Some(Kind::Workload) {
                    self.removed(0, name, update);
                }
                self.hold(0, name, &new.key, &version, Kind::Service);
                update.services.push(new);
            }
            None => return Err("type: neither workload nor service".into()),
        }
        Ok(())
    }

    fn policy(&mut self, name: &str, version: String, body: &Any, update: &mut Update) -> Result<(), Refusal> {
        if name.is_empty() {
            return Err("name: is empty".into());
        }
        let decoded = decode::<wds_policy::Authorization>(body, AUTHORIZATION_TYPE);
        let known = decoded.as_ref().ok().cloned();
        match decoded.and_then(|raw| policy(name, raw)) {
            Ok(new) => {
                self.hold(1, name, &new.key, &version, Kind::Policy);
                update.policies.push(new);
                Ok(())
            }
            Err(reason) => {
                let good =
                    self.held.get(1).and_then(|held| held.get(name)).is_some_and(|held| held.kind == Kind::Policy);
                if !good {
                    let stand_in = substitute(name, known.as_ref(), &reason);
                    self.hold(1, name, &stand_in.key, "", Kind::Substitute);
                    update.policies.push(stand_in);
                }
                Err(reason)
            }
        }
    }
}

fn decode<T: prost::Message + Default>(body: &Any, type_url: &str) -> Result<T, Refusal> {
    if body.type_url != type_url {
        return Err(format!("type_url: {:?} instead of {type_url}", body.type_url));
    }
    T::decode(body.value.clone()).map_err(|error| format!("cannot be decoded: {error}"))
}

fn complaint(refused: &[(String, Refusal)]) -> Option<Status> {
    if refused.is_empty() {
        return None;
    }
    let mut parts: Vec<String> = refused.iter().take(NAMED).map(|(name, reason)| format!("{name}: {reason}")).collect();
    if refused.len() > NAMED {
        parts.push(format!("and {} more", refused.len() - NAMED));
    }
    Some(Status { code: INVALID_ARGUMENT, message: parts.join("; ") })
}

#[cfg(test)]
mod tests;
