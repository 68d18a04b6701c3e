//! First-fit allocation of ranges in the packed slot table. Pure.

use std::collections::BTreeMap;

/// Free ranges by their start; neighbours are always joined.
#[derive(Debug)]
pub struct Ranges {
    free: BTreeMap<u32, u32>,
}

impl Ranges {
    /// `len` slots, all free.
    pub fn new(len: u32) -> Self {
        Self { free: if len == 0 { BTreeMap::new() } else { BTreeMap::from([(0, len)]) } }
    }

    /// The first slot of a range of `len` (not 0) that was free.
    pub fn allocate(&mut self, len: u32) -> Option<u32> {
        let (&start, &free) = self.free.iter().find(|(_, free)| **free >= len)?;
        self.free.remove(&start);
        if free > len {
            self.free.insert(start + len, free - len);
        }
        Some(start)
    }

    /// Marks a range as used, as found in a service. False when some of it already is.
    pub fn claim(&mut self, start: u32, len: u32) -> bool {
        let end = start as u64 + len as u64;
        let Some((&from, &free)) = self.free.range(..=start).next_back() else { return false };
        if end > from as u64 + free as u64 {
            return false;
        }
        self.free.remove(&from);
        if start > from {
            self.free.insert(from, start - from);
        }
        if end < from as u64 + free as u64 {
            self.free.insert(end as u32, from + free - end as u32);
        }
        true
    }

    /// Gives a range back.
    pub fn release(&mut self, mut start: u32, mut len: u32) {
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before + free == start
        {
            self.free.remove(&before);
            (start, len) = (before, free + len);
        }
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        self.free.insert(start, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_released_range_joins_its_neighbours() {
        let mut ranges = Ranges::new(30);
        let starts: Vec<_> = (0..3).map(|_| ranges.allocate(10).unwrap()).collect();
        assert_eq!(starts, [0, 10, 20]);
        assert_eq!(ranges.allocate(1), None);
        ranges.release(0, 10);
        ranges.release(20, 10);
        assert_eq!(ranges.allocate(11), None, "two holes of ten are no eleven");
        ranges.release(10, 10);
        assert_eq!(ranges.allocate(30), Some(0));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_all_come_back(steps in proptest::collection::vec((any::<bool>(), 1u32..20, any::<usize>()), 0..100)) {
            let mut ranges = Ranges::new(100);
            let mut used: Vec<(u32, u32)> = Vec::new();
            for (take, len, which) in steps {
                if take {
                    if let Some(start) = ranges.allocate(len) {
                        prop_assert!(start + len <= 100);
                        prop_assert!(used.iter().all(|(s, l)| start + len <= *s || s + l <= start));
                        used.push((start, len));
                    }
                } else if !used.is_empty() {
                    let (start, len) = used.swap_remove(which % used.len());
                    ranges.release(start, len);
                }
            }
            let mut again = Ranges::new(100);
            for (start, len) in &used {
                prop_assert!(again.claim(*start, *len) && !again.claim(*start, *len));
            }
            prop_assert_eq!(&again.free, &ranges.free);
            used.into_iter().for_each(|(start, len)| ranges.release(start, len));
            prop_assert_eq!(ranges.allocate(100), Some(0));
        }
    }
}
