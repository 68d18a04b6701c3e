//! The ports of a service, and the record of a VIP's port ranges. Pure.

use lb_common::service::{MAX_RANGES, PortRange, PortRanges};

/// Some of a service's ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Ports {
    One(u16),
    /// Both ends included.
    Range(u16, u16),
    /// All that no other service of the VIP and protocol has.
    Any,
}

impl Ports {
    /// First and last port of what is not a single port.
    pub fn as_range(self) -> Option<(u16, u16)> {
        match self {
            Ports::One(_) => None,
            Ports::Range(first, last) => Some((first, last)),
            Ports::Any => Some((0, u16::MAX)),
        }
    }
}

/// The record of a list of ranges: sorted, the one of all ports last. Says why when it cannot be.
pub fn record(ranges: &[PortRange]) -> Result<PortRanges, String> {
    if ranges.len() > MAX_RANGES {
        return Err(format!("{} port ranges on one VIP and protocol; at most {MAX_RANGES}", ranges.len()));
    }
    let is_any = |r: &PortRange| (r.first, r.last) == (0, u16::MAX);
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|r| (is_any(r), r.first));
    for pair in sorted.windows(2) {
        let overlap = pair[0].last >= pair[1].first && !is_any(&pair[1]);
        if overlap || is_any(&pair[0]) {
            return Err(format!(
                "port ranges {}-{} and {}-{} of one VIP and protocol overlap",
                pair[0].first, pair[0].last, pair[1].first, pair[1].last
            ));
        }
    }
    let mut record = PortRanges::default();
    record.ranges[..sorted.len()].copy_from_slice(&sorted);
    Ok(record)
}

/// The ranges of a record.
pub fn list(record: &PortRanges) -> Vec<PortRange> {
    record.ranges.iter().take_while(|r| r.first <= r.last).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16, service: u32) -> PortRange {
        PortRange { first, last, service }
    }

    #[test]
    fn ranges_are_sorted_and_any_is_last() {
        let given = [range(0, 65_535, 3), range(9000, 9099, 1), range(8000, 8099, 2)];
        let sorted = [given[2], given[1], given[0]];
        assert_eq!(list(&record(&given).unwrap()), sorted);
        assert_eq!(list(&record(&[]).unwrap()), []);
    }

    #[test]
    fn overlap_and_too_many_are_refused() {
        assert!(record(&[range(1, 10, 1), range(10, 20, 2)]).unwrap_err().contains("1-10 and 10-20"));
        assert!(record(&[range(0, 65_535, 1), range(0, 65_535, 2)]).unwrap_err().contains("overlap"));
        let many: Vec<_> = (0..17).map(|i| range(i * 10, i * 10 + 5, 0)).collect();
        assert!(record(&many).unwrap_err().contains("at most 16"));
        assert!(record(&many[..16]).is_ok());
    }
}
