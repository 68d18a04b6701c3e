//! What changes the objects: orders of the API, and files. All or nothing: what was refused or failed leaves
//! everything as it was.

use std::time::Instant;

use super::{Agent, Trouble, host, start};
use crate::apply::Failed;
use crate::control::{Change, Effect, Outcome, Refusal, Verb};
use crate::director::{Desired, Event, Refused};
use crate::manifest::{self, Objects, Source};
use crate::model::{ObjectId, field_effect};
use crate::plan;

impl Agent {
    /// `apply`.
    pub(super) async fn apply(
        &mut self,
        sources: &[Source],
        prune: bool,
        dry_run: bool,
    ) -> Result<Outcome, Refusal> {
        let parsed = manifest::parse(sources);
        if !parsed.report.0.is_empty() {
            return Err(parsed.report.into());
        }
        let next = self.desired.apply(parsed.objects, prune).map_err(refusal)?;
        self.order(next, dry_run).await
    }

    /// `delete`.
    pub(super) async fn delete(&mut self, ids: &[ObjectId], dry_run: bool) -> Result<Outcome, Refusal> {
        let next = self.desired.delete(ids).map_err(refusal)?;
        self.order(next, dry_run).await
    }

    /// Reads the files again. What is wrong with them is for `status` and the log; the last good ones run on.
    pub(super) async fn reload(&mut self) {
        let problems = match self.reload_files().await {
            Ok(()) => Vec::new(),
            Err(problems) => problems,
        };
        self.trouble(Trouble::Files, problems);
    }

    async fn reload_files(&mut self) -> Result<(), Vec<String>> {
        let one = |error: &dyn std::fmt::Display| vec![error.to_string()];
        let sources = start::sources(&self.options).map_err(|error| one(&error))?;
        let facts = self.net.host_facts().await.map_err(|error| one(&error))?;
        let all = |refusal: Refusal| match refusal {
            Refusal::Invalid { diagnostics } => diagnostics.0.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        };
        let files =
            start::check_files(&sources, &host::facts(&facts)).map_err(|report| all(report.into()))?;
        if files.director().is_none() {
            return Err(vec![format!("{}: no Director in it", self.options.config.display())]);
        }
        let (next, taken) = self.desired.with_files(files);
        let outcome = self.order(next, false).await.map_err(all)?;
        for id in taken {
            tracing::info!("{id} is a file's now, and no longer the API's");
        }
        if !outcome.plan.is_empty() {
            let changes: Vec<String> = outcome.plan.iter().map(|change| change.object.clone()).collect();
            tracing::info!("manifests read again: {}", changes.join(", "));
        }
        for warning in &outcome.warnings {
            tracing::warn!("{warning}");
        }
        self.state.save_files(&sources).map_err(|error| vec![format!("{error:#}")])
    }

    /// Makes `next` what should be, or says what that would mean.
    async fn order(&mut self, next: Desired, dry_run: bool) -> Result<Outcome, Refusal> {
        let objects = next.joined();
        self.check(&objects).await?;
        let lists = self.read_lists(&objects)?;
        let before = self.director.objects().clone();
        let plan = changes(&before, &objects);
        let warnings = self.warnings(&plan);
        if dry_run {
            let mut director = self.director.clone();
            director.handle(Event::Judged(self.health.roster.would_judge(Instant::now(), &objects)));
            director.handle(Event::Objects(objects));
            director.handle(Event::Lists(lists.prefixes()));
            let steps = plan::diff(self.applier.done(), director.layout());
            let steps = steps.iter().map(ToString::to_string).collect();
            return Ok(Outcome { plan, steps, map_writes: 0, applied: false, warnings });
        }
        let writes = self.applier.tables().writes();
        self.set_checks(&objects);
        self.follow_drains(&before, &objects);
        self.director.handle(Event::Objects(objects));
        let lists_before = self.lists.clone();
        self.use_lists(lists);
        let result = match self.run_plan().await {
            Ok(steps) => self.save(&next).map(|()| steps),
            Err(failed) => Err(failed),
        };
        match result {
            Ok(steps) => {
                self.desired = next;
                self.save_lists();
                self.set_sinks();
                self.set_vrrp();
                self.follow_metrics().await;
                self.metrics.generation += u64::from(!plan.is_empty());
                let map_writes = self.applier.tables().writes() - writes;
                let steps = steps.iter().map(ToString::to_string).collect();
                Ok(Outcome { plan, steps, map_writes, applied: true, warnings })
            }
            Err(Failed { step, error }) => {
                self.set_checks(&before);
                self.director.handle(Event::Objects(before));
                self.restore_lists(lists_before);
                self.enforce().await;
                Err(Refusal::Failed { step, cause: format!("{error:#}") })
            }
        }
    }

    /// The API's objects go to disk only where they changed.
    fn save(&self, next: &Desired) -> Result<(), Failed> {
        let values =
            |objects: &Objects| objects.iter().map(|(_, entry)| entry.object.clone()).collect::<Vec<_>>();
        if values(&next.api) == values(&self.desired.api) {
            return Ok(());
        }
        let failed = |error| Failed { step: "save the objects".into(), error };
        self.state.save_objects(&next.api).map_err(failed)
    }

    async fn check(&self, objects: &Objects) -> Result<(), Refusal> {
        let report = manifest::check_change(self.director.objects(), objects);
        if !report.0.is_empty() {
            return Err(report.into());
        }
        let failed = |error: anyhow::Error| Refusal::Failed {
            step: "look at the host".into(),
            cause: format!("{error:#}"),
        };
        let facts = self.net.host_facts().await.map_err(failed)?;
        let report = start::check_here(objects, &host::facts(&facts));
        if report.0.is_empty() { Ok(()) } else { Err(report.into()) }
    }

    fn warnings(&self, plan: &[Change]) -> Vec<String> {
        let waits = plan.iter().filter(|change| change.effect == Effect::Restart);
        waits
            .map(|change| {
                format!("{}: {} wait for the agent's next start", change.object, change.fields.join(", "))
            })
            .collect()
    }
}

/// The objects in which two sets differ.
fn changes(before: &Objects, after: &Objects) -> Vec<Change> {
    let mut changes = Vec::new();
    for (id, entry) in after.iter() {
        let (verb, fields) = match before.get(id) {
            None => (Verb::Add, Vec::new()),
            Some(old) if old.object == entry.object => continue,
            Some(old) => (Verb::Change, manifest::changed_fields(&old.object, &entry.object)),
        };
        let effects = fields.iter().map(|field| Effect::from(field_effect(id.kind, field)));
        let effect = effects.max().unwrap_or(Effect::Live);
        changes.push(Change { verb, object: id.to_string(), fields, effect });
    }
    for (id, _) in before.iter().filter(|(id, _)| !after.contains(id)) {
        let object = id.to_string();
        changes.push(Change { verb: Verb::Remove, object, fields: Vec::new(), effect: Effect::Live });
    }
    changes
}

fn refusal(refused: Refused) -> Refusal {
    match refused {
        Refused::Invalid(report) => report.into(),
        Refused::Owned { object, file } => Refusal::Owned { object: object.to_string(), file },
        Refused::Missing(object) => Refusal::Missing { object: object.to_string() },
    }
}
