//! The stream of events: whoever asks for it, and where it goes.

use std::time::Duration;

use super::Agent;
use crate::control::Reply;
use crate::events::Event;

impl Agent {
    /// Hooks and webhooks are those of the objects as they are now.
    pub(super) fn set_sinks(&mut self) {
        let Some(director) = self.director.objects().director() else { return };
        // An instance's own hooks before those that see everything.
        let hooks = self.vrrp_hooks().into_iter().chain(director.hooks.iter().cloned()).collect();
        self.sinks.set(hooks, director.webhooks.clone());
    }

    /// Answers at once where there are any; else when the next one comes, within `wait`.
    pub(super) fn events(&self, after: Option<u64>, limit: usize, wait: Duration, reply: Reply<Vec<Event>>) {
        let Some(after) = after else {
            let _ = reply.send(self.events.last(limit));
            return;
        };
        let events = self.events.clone();
        // Ends with the wait; whoever asked may be gone.
        tokio::spawn(async move {
            let _ = reply.send(events.wait_after(after, limit, wait).await);
        });
    }
}
