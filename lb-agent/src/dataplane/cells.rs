//! What a cell of the address filter says of all the addresses that fall into it. Pure.

use lb_common::filter::{AddressRecord, cell, role};

/// Joins the records of the addresses of one cell.
pub fn join<'a>(records: impl IntoIterator<Item = &'a AddressRecord>) -> u16 {
    let mut value = 0;
    let mut pool = None;
    for record in records {
        if record.roles & role::VIP != 0 {
            value |= cell::VIP;
        }
        if record.roles & role::NAT_SOURCE != 0 {
            value |= cell::NAT_SOURCE;
        }
        if record.roles & role::PROBED != 0 {
            value |= cell::PROBED;
        }
        if record.roles & role::PEERED != 0 {
            value |= cell::PEERED;
        }
        if record.vrrp != 0 {
            value |= cell::VRRP;
        }
        if record.roles & role::POOL != 0 {
            let own = (record.pool + 1).min(cell::POOL_AMBIGUOUS);
            pool = Some(if pool.is_none() { own } else { cell::POOL_AMBIGUOUS });
        }
    }
    value | pool.unwrap_or(0) << cell::POOL_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_says_of_its_addresses_what_any_of_them_is() {
        let of = |roles, pool| AddressRecord { roles, pool, vrrp: 0 };
        let following = |roles| AddressRecord { roles, pool: 0, vrrp: 3 };
        for (records, value) in [
            (vec![], 0),
            (vec![of(role::VIP, 0)], cell::VIP),
            (vec![of(role::VIP, 0), of(role::NAT_SOURCE, 0)], cell::VIP | cell::NAT_SOURCE),
            (vec![of(role::VIP | role::PROBED, 0)], cell::VIP | cell::PROBED),
            (vec![of(role::VIP | role::PEERED, 0)], cell::VIP | cell::PEERED),
            (vec![following(role::VRRP)], cell::VRRP),
            (vec![following(role::VIP | role::VRRP), of(role::NAT_SOURCE, 0)], 7),
            (vec![of(role::POOL, 4)], 5 << cell::POOL_SHIFT),
            (vec![of(role::POOL, 4), of(role::VIP, 0)], 5 << cell::POOL_SHIFT | cell::VIP),
            (vec![of(role::POOL, 4), of(role::POOL, 5)], cell::POOL_AMBIGUOUS << cell::POOL_SHIFT),
            (vec![of(role::POOL, 254)], cell::POOL_AMBIGUOUS << cell::POOL_SHIFT),
        ] {
            assert_eq!(join(&records), value, "{records:?}");
        }
    }
}
