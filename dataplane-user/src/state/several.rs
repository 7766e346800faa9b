//! What one address or name means: nearly always one thing.

use std::cmp::Ordering;
use std::sync::Arc;

/// One or more things of one key, the best first.
#[derive(Debug)]
pub(super) enum Several<T> {
    One(Arc<T>),
    /// Two at least.
    Many(Arc<Box<[Arc<T>]>>),
}

impl<T> Clone for Several<T> {
    fn clone(&self) -> Self {
        match self {
            Self::One(one) => Self::One(one.clone()),
            Self::Many(many) => Self::Many(many.clone()),
        }
    }
}

impl<T> Several<T> {
    pub(super) fn as_slice(&self) -> &[Arc<T>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    fn from_vec(mut all: Vec<Arc<T>>) -> Option<Self> {
        match all.len() {
            0 => None,
            1 => all.pop().map(Self::One),
            _ => Some(Self::Many(Arc::new(all.into()))),
        }
    }

    /// Puts `item` in its place, or in the place of the one that is the `same`.
    pub(super) fn with(
        present: Option<&Self>,
        item: Arc<T>,
        same: impl Fn(&T) -> bool,
        order: impl Fn(&T, &T) -> Ordering,
    ) -> Self {
        let others = present.map(Self::as_slice).unwrap_or_default().iter().filter(|known| !same(known));
        let mut all: Vec<Arc<T>> = others.cloned().collect();
        if all.is_empty() {
            return Self::One(item);
        }
        all.push(item);
        all.sort_by(|a, b| order(a, b));
        Self::Many(Arc::new(all.into()))
    }

    /// What is left without the `same` one.
    pub(super) fn without(&self, same: impl Fn(&T) -> bool) -> Option<Self> {
        Self::from_vec(self.as_slice().iter().filter(|known| !same(known)).cloned().collect())
    }
}
