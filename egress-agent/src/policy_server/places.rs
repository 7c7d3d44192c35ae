//! So many places for each, and what holds one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

type Taken<K> = Arc<Mutex<BTreeMap<K, usize>>>;

/// Counts by key. Nothing is kept of a key that has no place.
#[derive(Debug)]
pub(super) struct Places<K: Ord> {
    taken: Taken<K>,
}

impl<K: Ord> Default for Places<K> {
    fn default() -> Self {
        Self {
            taken: Taken::default(),
        }
    }
}

impl<K: Ord + Clone> Places<K> {
    /// A place for this key, which is given back when it is dropped; none if it has that many.
    pub(super) fn take(&self, key: K, most: usize) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(key.clone()).or_default();
        if *count >= most {
            if *count == 0 {
                taken.remove(&key);
            }
            return None;
        }
        *count += 1;
        Some(Place {
            taken: self.taken.clone(),
            key,
        })
    }
}

/// One of the places that a key has.
#[derive(Debug)]
pub(super) struct Place<K: Ord> {
    taken: Taken<K>,
    key: K,
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_and_given_back() {
        let places = Places::default();
        let (one, two) = (places.take("a", 2).unwrap(), places.take("a", 2).unwrap());
        assert!(places.take("a", 2).is_none());
        assert!(places.take("b", 0).is_none());
        let other = places.take("b", 1);
        assert!(other.is_some());
        drop(one);
        let three = places.take("a", 2);
        assert!(three.is_some() && places.take("a", 2).is_none());
        drop((two, three, other));
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
