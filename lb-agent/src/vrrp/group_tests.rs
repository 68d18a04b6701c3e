//! What a group orders, event by event.

use super::*;

fn member(role: Role) -> Member {
    Member { role, fault: role == Role::Fault, ..Member::default() }
}

const BACKUP: Role = Role::Backup;
const MASTER: Role = Role::Master;

fn wanting() -> Member {
    Member { role: BACKUP, wants_master: true, ..Member::default() }
}

/// A group whose members are so.
fn group(members: &[Member]) -> Group {
    let mut group = Group::new(members.len());
    group.members.copy_from_slice(members);
    group
}

#[test]
fn a_group_gives_orders_to_the_others() {
    let (b, m, f) = (member(BACKUP), member(MASTER), member(Role::Fault));
    let leaving = Member { leaving: true, ..m };
    // In fault by the group's order, not by its own.
    let follows = Member { fault: false, ..f };
    for (what, before, index, now, orders) in [
        ("one wants, the other does not", [b, b], 0, wanting(), vec![]),
        (
            "the second wants too",
            [wanting(), b],
            1,
            wanting(),
            vec![(0, Order::Promote), (1, Order::Promote)],
        ),
        ("the first is promoted", [wanting(), wanting()], 0, m, vec![(1, Order::Promote)]),
        ("the second is promoted", [m, wanting()], 1, m, vec![]),
        ("a new member wants, the other is master", [m, b], 1, wanting(), vec![(1, Order::Promote)]),
        ("one no longer wants", [wanting(), b], 0, b, vec![]),
        ("one hands over", [m, m], 0, leaving, vec![(1, Order::HandOver)]),
        ("the other hands over too", [leaving, m], 1, leaving, vec![]),
        ("the first is relieved", [leaving, leaving], 0, b, vec![(1, Order::Demote)]),
        ("nobody took the first", [leaving, leaving], 0, m, vec![]),
        ("one master is outranked", [m, m], 0, b, vec![(1, Order::Demote)]),
        ("the other follows", [b, m], 1, b, vec![]),
        ("one master stops", [m, m], 1, member(Role::Initialize), vec![(0, Order::Demote)]),
        ("a master has a fault", [m, m], 0, f, vec![(1, Order::Fault(true)), (1, Order::Demote)]),
        ("the other follows into fault", [f, m], 1, follows, vec![]),
        ("the fault ends", [f, follows], 0, b, vec![(1, Order::Fault(false))]),
        ("the second has a fault of its own", [f, follows], 1, f, vec![(0, Order::Fault(true))]),
        ("the first one's own ends", [f, f], 0, Member { fault: false, ..f }, vec![(1, Order::Fault(false))]),
        ("a backup has a fault", [b, b], 1, f, vec![(0, Order::Fault(true))]),
    ] {
        let mut group = group(&before);
        assert_eq!(group.update(index, now), orders, "{what}");
    }
}

#[test]
fn with_three_members_all_must_want() {
    let b = member(BACKUP);
    let mut group = group(&[b, b, b]);
    assert_eq!(group.update(0, wanting()), vec![]);
    assert_eq!(group.update(1, wanting()), vec![]);
    let all = vec![(0, Order::Promote), (1, Order::Promote), (2, Order::Promote)];
    assert_eq!(group.update(2, wanting()), all);
    // A second fault tells only those who did not know.
    let fault = member(Role::Fault);
    assert_eq!(group.update(0, fault), vec![(1, Order::Fault(true)), (2, Order::Fault(true))]);
    assert_eq!(group.update(1, fault), vec![(0, Order::Fault(true))]);
}
