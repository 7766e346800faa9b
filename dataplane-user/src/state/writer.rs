//! Merges what several sources publish into one model.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::model::{Changes, Held};
use super::{Applied, Model, Policy, Service, SourceId, Update, Workload};

/// Objects that a better source publishes too, by key.
type Losers<T> = HashMap<Arc<str>, BTreeMap<SourceId, Arc<T>>>;

/// What is published and does not count, because a better source publishes the same key. It comes into force when the
/// better source lets go.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    workloads: Losers<Workload>,
    services: Losers<Service>,
    policies: Losers<Policy>,
}

/// What an object's publication changes in the model.
enum Step<T> {
    Nothing,
    Set(Option<Held<T>>),
}

/// The outcome for one object, and the source that it lost to or won over.
fn publish<T: PartialEq>(
    losers: &mut Losers<T>,
    present: Option<&Held<T>>,
    key: &Arc<str>,
    source: SourceId,
    new: T,
) -> (Step<T>, Option<SourceId>) {
    match present {
        None => (Step::Set(Some(Held { value: Arc::new(new), source })), None),
        Some(held) if held.source == source => {
            let step =
                if *held.value == new { Step::Nothing } else { Step::Set(Some(Held { value: Arc::new(new), source })) };
            (step, None)
        }
        Some(held) if held.source < source => {
            let before = losers.entry(key.clone()).or_default().insert(source, Arc::new(new));
            (Step::Nothing, before.is_none().then_some(held.source))
        }
        Some(held) => {
            losers.entry(key.clone()).or_default().insert(held.source, held.value.clone());
            (Step::Set(Some(Held { value: Arc::new(new), source })), Some(source))
        }
    }
}

fn withdraw<T>(losers: &mut Losers<T>, present: Option<&Held<T>>, key: &str, source: SourceId) -> Step<T> {
    let next = match present {
        None => return Step::Nothing,
        Some(held) if held.source != source => {
            if let Some(others) = losers.get_mut(key) {
                others.remove(&source);
                if others.is_empty() {
                    losers.remove(key);
                }
            }
            return Step::Nothing;
        }
        Some(_) => losers.get_mut(key).and_then(BTreeMap::pop_first),
    };
    if losers.get(key).is_some_and(BTreeMap::is_empty) {
        losers.remove(key);
    }
    Step::Set(next.map(|(source, value)| Held { value, source }))
}

impl Shadow {
    /// Applies one update of one source.
    pub(super) fn apply(&mut self, model: &mut Model, source: SourceId, update: Update) -> Applied {
        let mut pass = Pass { shadow: self, model, source, changes: Changes::default(), applied: Applied::default() };
        update.removed_workloads.iter().for_each(|uid| pass.remove_workload(uid));
        update.removed_services.iter().for_each(|key| pass.remove_service(key));
        update.removed_policies.iter().for_each(|key| pass.remove_policy(key));
        update.services.into_iter().for_each(|service| pass.service(service));
        update.workloads.into_iter().for_each(|workload| pass.workload(workload));
        update.policies.into_iter().for_each(|policy| pass.policy(policy));
        let Pass { changes, applied, .. } = pass;
        model.settle(changes);
        applied
    }

    /// The update that leaves a source with exactly what `wanted` holds of it.
    pub(super) fn difference(&self, model: &Model, source: SourceId, wanted: &Model) -> Update {
        let workloads: HashSet<&Arc<str>> = wanted.workloads().map(|workload| &workload.uid).collect();
        let services: HashSet<&Arc<str>> = wanted.services().map(|service| &service.key).collect();
        let own_workloads = model.workloads.values().filter(|held| held.source == source).map(|held| &held.value.uid);
        let own_services = model.held_services().filter(|held| held.source == source).map(|held| &held.value.key);
        let own_policies = model.policies.values().filter(|held| held.source == source).map(|held| &held.value.key);
        let of_losers = |has: bool, key: &Arc<str>| has.then(|| key.clone());
        Update {
            removed_workloads: own_workloads
                .cloned()
                .chain(self.workloads.iter().filter_map(|(key, all)| of_losers(all.contains_key(&source), key)))
                .filter(|uid| !workloads.contains(uid))
                .collect(),
            removed_services: own_services
                .cloned()
                .chain(self.services.iter().filter_map(|(key, all)| of_losers(all.contains_key(&source), key)))
                .filter(|key| !services.contains(key))
                .collect(),
            removed_policies: own_policies
                .cloned()
                .chain(self.policies.iter().filter_map(|(key, all)| of_losers(all.contains_key(&source), key)))
                .filter(|key| !wanted.policies.contains_key(key))
                .collect(),
            workloads: wanted.workloads().map(|workload| (**workload).clone()).collect(),
            services: wanted.services().map(|service| (**service).clone()).collect(),
            policies: wanted.policies().map(|policy| (**policy).clone()).collect(),
        }
    }
}

struct Pass<'a> {
    shadow: &'a mut Shadow,
    model: &'a mut Model,
    source: SourceId,
    changes: Changes,
    applied: Applied,
}

impl Pass<'_> {
    fn note(&mut self, key: &Arc<str>, winner: Option<SourceId>) {
        if let Some(winner) = winner {
            self.applied.shadowed.push((key.clone(), winner));
        }
    }

    fn workload(&mut self, workload: Workload) {
        let uid = workload.uid.clone();
        let present = self.model.workloads.get(&*uid);
        let (step, winner) = publish(&mut self.shadow.workloads, present, &uid, self.source, workload);
        self.note(&uid, winner);
        self.set_workload(&uid, step);
    }

    fn remove_workload(&mut self, uid: &Arc<str>) {
        let present = self.model.workloads.get(&**uid);
        let step = withdraw(&mut self.shadow.workloads, present, uid, self.source);
        self.set_workload(uid, step);
    }

    fn set_workload(&mut self, uid: &str, step: Step<Workload>) {
        let Step::Set(new) = step else {
            return;
        };
        self.applied.changed += 1;
        if let Some(new) = new.as_ref().filter(|new| new.value.node == self.model.node.node) {
            let same = |old: &Arc<Workload>| old.identity == new.value.identity && old.policies == new.value.policies;
            self.applied.authorization |= !self.model.workload(uid).is_some_and(same);
        }
        self.model.set_workload(uid, new, &mut self.changes);
    }

    fn service(&mut self, service: Service) {
        let key = service.key.clone();
        let present = self.model.held_service(&key);
        let (step, winner) = publish(&mut self.shadow.services, present, &key, self.source, service);
        self.note(&key, winner);
        self.set_service(&key, step);
    }

    fn remove_service(&mut self, key: &Arc<str>) {
        let step = withdraw(&mut self.shadow.services, self.model.held_service(key), key, self.source);
        self.set_service(key, step);
    }

    fn set_service(&mut self, key: &Arc<str>, step: Step<Service>) {
        if let Step::Set(new) = step {
            self.applied.changed += 1;
            self.model.set_service(key, new, &mut self.changes);
        }
    }

    fn policy(&mut self, policy: Policy) {
        let key = policy.key.clone();
        let present = self.model.policies.get(&key);
        let (step, winner) = publish(&mut self.shadow.policies, present, &key, self.source, policy);
        self.note(&key, winner);
        self.set_policy(&key, step);
    }

    fn remove_policy(&mut self, key: &Arc<str>) {
        let step = withdraw(&mut self.shadow.policies, self.model.policies.get(key), key, self.source);
        self.set_policy(key, step);
    }

    fn set_policy(&mut self, key: &str, step: Step<Policy>) {
        if let Step::Set(new) = step {
            self.applied.changed += 1;
            self.applied.authorization = true;
            self.model.set_policy(key, new, &mut self.changes);
        }
    }
}
