//! Tells the data plane the limits of the Director's `flood`: at once, whenever it may have changed.

use std::sync::atomic::Ordering::Relaxed;

use lb_common::guard::Guard;

use super::Agent;
use crate::model::Director;

impl Agent {
    /// Writes what differs.
    pub(super) fn guard(&self) {
        let director = self.director.objects().director().unwrap_or(&self.running);
        let view = &self.dataplane.views().guard;
        for (offset, wanted) in words(director) {
            let word = view.half(0, offset);
            if word.load(Relaxed) != wanted {
                word.store(wanted, Relaxed);
            }
        }
    }
}

/// The words of the record, by their offsets.
fn words(director: &Director) -> [(usize, u32); 1] {
    [(std::mem::offset_of!(Guard, new_flows), director.flood.new_flows.unwrap_or(0))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Flood;

    #[test]
    fn off_is_no_limit() {
        let text = "apiVersion: lb/v1\nkind: Director\nmetadata: {name: d}\nspec: {interfaces: []}\n";
        let source = crate::manifest::Source { file: "d.yaml".into(), text: text.into() };
        let objects = crate::manifest::load(&[source]).expect("a Director");
        let mut director = objects.director().expect("one").clone();
        assert_eq!(words(&director), [(0, 100_000)], "the default");
        director.flood = Flood { new_flows: None };
        assert_eq!(words(&director), [(0, 0)]);
    }
}
