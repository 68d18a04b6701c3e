//! Sync groups: instances that are master together or not at all, as a director that holds one side of a
//! router or firewall must hold the other. Pure: give it what became of a member, it returns orders for others.
//!
//! * A member becomes master only when every member is master or wants to be.
//! * One that hands over makes the others do so too: the other side takes all or none.
//! * One that stops being master pulls the others with it.
//! * A fault of one is a fault of all.

use super::events::{Order, Role};

/// One sync group. Members are named by their place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    members: Vec<Member>,
}

/// What a group has to know of a member ([`super::instance::Instance::member`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Member {
    pub role: Role,
    /// A backup that would be master, were it alone.
    pub wants_master: bool,
    /// A master that said goodbye and serves until another does.
    pub leaving: bool,
    /// It has a fault of its own, not the group's.
    pub fault: bool,
}

impl Group {
    /// A group of so many members, none of which has started.
    pub fn new(members: usize) -> Group {
        Group { members: vec![Member::default(); members] }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Member `index` is now so. The orders are to be given in turn; what becomes of each member by them is
    /// told here again, which ends: every order moves a member the way it then already is.
    pub fn update(&mut self, index: usize, member: Member) -> Vec<(usize, Order)> {
        let was = std::mem::replace(&mut self.members[index], member);
        let mut orders = Vec::new();
        let others = |wanted: fn(&Member) -> bool| {
            let members = self.members.iter().enumerate();
            members.filter(move |(other, member)| *other != index && wanted(member)).map(|(other, _)| other)
        };
        if was.fault != member.fault {
            for (other, _) in self.members.iter().enumerate() {
                // Whether any member beside `other` is in fault, before and now.
                let rest = |this: bool| {
                    let members = self.members.iter().enumerate();
                    members
                        .filter(|(at, _)| *at != other)
                        .any(|(at, member)| if at == index { this } else { member.fault })
                };
                let (before, now) = (other != index && rest(was.fault), other != index && rest(member.fault));
                if before != now {
                    orders.push((other, Order::Fault(now)));
                }
            }
        }
        if was.role == Role::Master && member.role != Role::Master {
            orders.extend(others(|member| member.role == Role::Master).map(|other| (other, Order::Demote)));
        }
        if member.leaving && !was.leaving {
            let serving = others(|member| member.role == Role::Master && !member.leaving);
            orders.extend(serving.map(|other| (other, Order::HandOver)));
        }
        let all_may = |member: &Member| member.role == Role::Master || member.wants_master;
        if self.members.iter().all(all_may) {
            let waiting = self.members.iter().enumerate().filter(|(_, member)| member.wants_master);
            orders.extend(waiting.map(|(waiting, _)| (waiting, Order::Promote)));
        }
        orders
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
