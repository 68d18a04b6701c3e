//! The tasks that take events to hooks and webhooks, as the manifests say at the moment.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Events, hooks, webhook};
use crate::model::{Hook, Webhook};

/// One task for all hooks, and one for each webhook. They end when this is dropped.
pub struct SinkTasks {
    events: Events,
    hooks: watch::Sender<Vec<Hook>>,
    runner: JoinHandle<()>,
    webhooks: BTreeMap<String, (Webhook, JoinHandle<()>)>,
}

impl SinkTasks {
    /// Needs a tokio runtime. Events of an earlier run that no hook was run for are taken up.
    pub fn start(events: Events) -> SinkTasks {
        let (hooks, receiver) = watch::channel(Vec::new());
        let runner = tokio::spawn(run_hooks(events.clone(), receiver));
        SinkTasks { events, hooks, runner, webhooks: BTreeMap::new() }
    }

    /// From now on these. An event that is under way ends as it began.
    pub fn set(&mut self, hooks: Vec<Hook>, webhooks: Vec<Webhook>) {
        self.hooks.send_if_modified(|now| {
            let other = *now != hooks;
            *now = hooks;
            other
        });
        let wanted: BTreeMap<String, Webhook> =
            webhooks.into_iter().map(|webhook| (consumer_of(&webhook), webhook)).collect();
        self.webhooks.retain(|name, (webhook, task)| {
            let stays = wanted.get(name) == Some(webhook);
            if !stays {
                task.abort();
            }
            stays
        });
        for (name, webhook) in &wanted {
            self.webhooks.entry(name.clone()).or_insert_with(|| {
                let task = tokio::spawn(run_webhook(self.events.clone(), name.clone(), webhook.clone()));
                (webhook.clone(), task)
            });
        }
        self.events.keep_consumers(|name| name == HOOKS || wanted.contains_key(name));
    }
}

impl Drop for SinkTasks {
    fn drop(&mut self) {
        self.runner.abort();
        self.webhooks.values().for_each(|(_, task)| task.abort());
    }
}

async fn run_hooks(events: Events, hooks: watch::Receiver<Vec<Hook>>) {
    loop {
        let event = events.next_for(HOOKS).await;
        let hooks = hooks.borrow().clone();
        for hook in hooks.iter().filter(|hook| hook.on.takes(&event.subject, &event.kind)) {
            match hooks::run(hook, &event).await {
                Ok(()) => tracing::debug!("hook {} ran for event {}", hook.command[0], event.sequence),
                Err(error) => {
                    tracing::error!("hook for event {} ({}): {error:#}", event.sequence, event.line())
                }
            }
        }
        events.done(HOOKS, event.sequence);
    }
}

async fn run_webhook(events: Events, name: String, webhook: Webhook) {
    loop {
        let event = events.next_for(&name).await;
        let mut pause = FIRST_PAUSE;
        while webhook.on.takes(&event.subject, &event.kind) {
            match webhook::send(&webhook, &event).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!("{name}, event {}: {error:#}; again in {pause:?}", event.sequence);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        events.done(&name, event.sequence);
    }
}

fn consumer_of(webhook: &Webhook) -> String {
    format!("webhook {}", webhook.url)
}

const HOOKS: &str = "hooks";
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
