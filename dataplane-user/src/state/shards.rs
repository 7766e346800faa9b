//! A hash map whose copies share everything that no copy has changed.
//!
//! Readers keep a whole snapshot while a writer prepares the next one. Copying the map copies two words; the first change
//! after a copy copies a list of pointers and the one shard that is touched, about a hundred entries.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Entries per shard at which the number of shards doubles. More make a single change dearer, fewer make a snapshot's list
/// of shards longer.
const FULL: usize = 96;
/// Most shards: beyond this they grow instead.
const MOST: usize = 1 << 14;

type Shard<K, V> = Arc<HashMap<K, V>>;

/// See the module.
#[derive(Clone)]
pub(super) struct Shards<K, V> {
    /// Always a power of two, at least one.
    shards: Arc<Vec<Shard<K, V>>>,
    length: usize,
    /// Chooses the shard; the maps inside hash with keys of their own.
    chooser: RandomState,
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { shards: Arc::new(vec![Arc::default()]), length: 0, chooser: RandomState::new() }
    }
}

impl<K, V> fmt::Debug for Shards<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries in {} shards", self.length, self.shards.len())
    }
}

impl<K, V> Shards<K, V> {
    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// All entries, in no order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// All values, in no order.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }
}

impl<K: Hash + Eq, V> Shards<K, V> {
    fn place<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // A usize is enough: only the low bits are used.
        #[allow(clippy::cast_possible_truncation, reason = "the high bits are not needed")]
        let hash = self.chooser.hash_one(key) as usize;
        hash & (self.shards.len() - 1)
    }

    pub(super) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shards.get(self.place(key))?.get(key)
    }

    pub(super) fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(key).is_some()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Shards<K, V> {
    /// The value of a key, to be changed. Copies its shard if a snapshot still shares it, so ask only for what is there.
    pub(super) fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let place = self.place(key);
        self.shards.get(place).filter(|shard| shard.contains_key(key))?;
        Arc::make_mut(Arc::make_mut(&mut self.shards).get_mut(place)?).get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.length >= self.shards.len() * FULL && self.shards.len() < MOST {
            self.split();
        }
        let place = self.place(&key);
        let shard = Arc::make_mut(&mut self.shards).get_mut(place)?;
        let before = Arc::make_mut(shard).insert(key, value);
        self.length += usize::from(before.is_none());
        before
    }

    pub(super) fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let place = self.place(key);
        self.shards.get(place).filter(|shard| shard.contains_key(key))?;
        let shard = Arc::make_mut(Arc::make_mut(&mut self.shards).get_mut(place)?);
        let removed = shard.remove(key);
        self.length -= usize::from(removed.is_some());
        // What a burst needed is given back when it is over.
        if shard.capacity() > 16 && shard.len() * 4 < shard.capacity() {
            shard.shrink_to_fit();
        }
        removed
    }

    /// Twice as many shards.
    fn split(&mut self) {
        let mut split: Vec<HashMap<K, V>> = vec![HashMap::new(); self.shards.len() * 2];
        let mask = split.len() - 1;
        for shard in std::mem::take(&mut self.shards).iter() {
            for (key, value) in shard.iter() {
                #[allow(clippy::cast_possible_truncation, reason = "the high bits are not needed")]
                let place = self.chooser.hash_one(key) as usize & mask;
                if let Some(shard) = split.get_mut(place) {
                    shard.insert(key.clone(), value.clone());
                }
            }
        }
        self.shards = Arc::new(split.into_iter().map(Arc::new).collect());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_copy_keeps_what_it_saw() {
        let mut map = Shards::default();
        for number in 0..10_000_u32 {
            map.insert(number, number);
        }
        let before = map.clone();
        for number in 0..10_000 {
            if number % 2 == 0 {
                map.remove(&number);
            } else if let Some(value) = map.get_mut(&number) {
                *value += 1;
            }
        }
        assert_eq!((before.len(), map.len()), (10_000, 5_000));
        for number in 0..10_000 {
            assert_eq!(before.get(&number), Some(&number));
            assert_eq!(map.get(&number).copied(), (number % 2 == 1).then_some(number + 1));
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_plain_map_holds(steps in prop::collection::vec((0u16..600, prop::option::of(0u8..9)), 0..2000)) {
            let (mut sharded, mut plain) = (Shards::default(), BTreeMap::new());
            for (key, value) in steps {
                match value {
                    Some(value) => prop_assert_eq!(sharded.insert(key, value), plain.insert(key, value)),
                    None => prop_assert_eq!(sharded.remove(&key), plain.remove(&key)),
                }
            }
            let held: BTreeMap<u16, u8> = sharded.iter().map(|(key, value)| (*key, *value)).collect();
            prop_assert_eq!(sharded.len(), plain.len());
            prop_assert_eq!(held, plain);
        }
    }
}
