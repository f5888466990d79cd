//! A keyed table that remembers which of its rows changed.

use std::collections::{BTreeMap, BTreeSet};

/// Rows by key, in key order, with the keys changed since the last [`Table::take_dirty`].
#[derive(Debug, Clone)]
pub(crate) struct Table<K, V> {
    rows: BTreeMap<K, V>,
    dirty: BTreeSet<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), dirty: BTreeSet::new() }
    }
}

impl<K: Ord + Clone, V: Clone> Table<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    /// The row to be changed: it counts as changed from here on.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let row = self.rows.get_mut(key)?;
        self.dirty.insert(key.clone());
        Some(row)
    }

    /// The row, to change what no store keeps.
    pub(crate) fn get_quietly(&mut self, key: &K) -> Option<&mut V> {
        self.rows.get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: K, row: V) {
        self.dirty.insert(key.clone());
        self.rows.insert(key, row);
    }

    /// A row that the store has already.
    pub(crate) fn load(&mut self, key: K, row: V) {
        self.rows.insert(key, row);
    }

    /// Forgets a row in memory; the store keeps it.
    pub(crate) fn evict(&mut self, key: &K) -> Option<V> {
        self.rows.remove(key)
    }

    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.rows.values()
    }

    pub(crate) fn range<R: std::ops::RangeBounds<K>>(&self, range: R) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.range(range)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn mark(&mut self, key: &K) {
        if self.rows.contains_key(key) {
            self.dirty.insert(key.clone());
        }
    }

    pub(crate) fn take_dirty(&mut self) -> Vec<V> {
        if self.dirty.is_empty() {
            return Vec::new();
        }
        let dirty = std::mem::take(&mut self.dirty);
        dirty.iter().filter_map(|key| self.rows.get(key).cloned()).collect()
    }
}
