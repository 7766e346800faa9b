//! Objects of one kind, as a watch of the API tells of them.

use std::collections::BTreeMap;

use ::kube::runtime::watcher::Event;

/// Objects of one kind: all that were listed, and those of a list that is not complete yet.
#[derive(Debug)]
pub(super) struct Listed<T> {
    pub(super) all: BTreeMap<String, T>,
    coming: BTreeMap<String, T>,
    /// Whether the list was complete once.
    pub(super) complete: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), coming: BTreeMap::new(), complete: false }
    }
}

impl<T> Listed<T> {
    /// Takes in one event; `facts` gives an object's key and what is kept of it.
    pub(super) fn take<K>(&mut self, event: Event<K>, facts: impl Fn(&K) -> Option<(String, T)>) {
        match event {
            Event::Init => self.coming.clear(),
            Event::InitApply(object) => self.coming.extend(facts(&object)),
            Event::InitDone => {
                self.all = std::mem::take(&mut self.coming);
                self.complete = true;
            }
            Event::Apply(object) => self.all.extend(facts(&object)),
            Event::Delete(object) => {
                if let Some((key, _)) = facts(&object) {
                    self.all.remove(&key);
                }
            }
        }
    }
}
