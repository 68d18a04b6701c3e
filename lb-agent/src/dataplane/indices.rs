//! Indices of records that packets name: given out, and after a record's removal kept back until nothing can
//! name it any more. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// Indices `first..limit`.
#[derive(Debug)]
pub struct Indices {
    /// From here on none was ever used.
    fresh: u32,
    limit: u32,
    free: BTreeSet<u32>,
    quarantine: BTreeMap<u32, Instant>,
}

impl Indices {
    pub fn new(first: u32, limit: u32) -> Self {
        Self { fresh: first, limit, free: BTreeSet::new(), quarantine: BTreeMap::new() }
    }

    /// The lowest free index.
    pub fn allocate(&mut self) -> Option<u32> {
        self.free.pop_first().or_else(|| {
            let index = (self.fresh < self.limit).then_some(self.fresh)?;
            self.fresh += 1;
            Some(index)
        })
    }

    /// Marks an index as used, as found in a table.
    pub fn claim(&mut self, index: u32) {
        while self.fresh <= index {
            self.free.insert(self.fresh);
            self.fresh += 1;
        }
        self.free.remove(&index);
    }

    /// Puts an index into quarantine.
    pub fn retire(&mut self, index: u32, now: Instant) {
        self.quarantine.insert(index, now);
    }

    /// Takes an index out of quarantine for its former owner. False when it is not there.
    pub fn revive(&mut self, index: u32) -> bool {
        self.quarantine.remove(&index).is_some()
    }

    /// Frees those in quarantine of which `is_free(index, since when)` says so, and returns them.
    pub fn release(&mut self, mut is_free: impl FnMut(u32, Instant) -> bool) -> Vec<u32> {
        let freed: Vec<u32> =
            self.quarantine.iter().filter(|(i, since)| is_free(**i, **since)).map(|(i, _)| *i).collect();
        for index in &freed {
            self.quarantine.remove(index);
            self.free.insert(*index);
        }
        freed
    }

    /// Whether anything waits in quarantine.
    pub fn has_quarantined(&self) -> bool {
        !self.quarantine.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_retired_index_is_not_given_out_until_released() {
        let now = Instant::now();
        let mut indices = Indices::new(1, 3);
        assert_eq!((indices.allocate(), indices.allocate(), indices.allocate()), (Some(1), Some(2), None));
        indices.retire(1, now);
        assert_eq!(indices.allocate(), None);
        assert!(indices.release(|_, _| false).is_empty());
        assert_eq!(indices.release(|index, since| index == 1 && since == now), [1]);
        assert_eq!(indices.allocate(), Some(1));
        indices.retire(2, now);
        assert!(indices.revive(2) && !indices.revive(2) && !indices.has_quarantined());
    }

    proptest! {
        #[test]
        fn no_index_is_given_out_twice(steps in proptest::collection::vec((0u8..4, 0u32..40), 0..200)) {
            let mut indices = Indices::new(0, 32);
            let (mut used, mut retired) = (BTreeSet::new(), BTreeSet::new());
            for (step, index) in steps {
                match step {
                    0 => if let Some(index) = indices.allocate() {
                        prop_assert!(index < 32 && !retired.contains(&index) && used.insert(index));
                    } else {
                        prop_assert_eq!(used.len() + retired.len(), 32);
                    },
                    1 => if used.remove(&index) {
                        retired.insert(index);
                        indices.retire(index, Instant::now());
                    },
                    2 => if indices.revive(index) {
                        prop_assert!(retired.remove(&index));
                        used.insert(index);
                    },
                    _ => for index in indices.release(|i, _| i % 2 == 0) {
                        prop_assert!(retired.remove(&index));
                    },
                }
            }
        }

        #[test]
        fn claimed_indices_are_not_given_out(claimed: BTreeSet<u8>) {
            let mut indices = Indices::new(0, 256);
            claimed.iter().for_each(|i| indices.claim(*i as u32));
            let given: BTreeSet<u32> = std::iter::from_fn(|| indices.allocate()).collect();
            prop_assert_eq!(given.len(), 256 - claimed.len());
            prop_assert!(claimed.iter().all(|i| !given.contains(&(*i as u32))));
        }
    }
}
