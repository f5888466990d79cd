//! Uploads of projects, and what vaults may delete.

use sluice_types::{Digest, ProjectId, Reason, SiteId, Timestamp};

use super::Step;
use super::people::bounded;
use crate::Rows;
use crate::command::{Answer, Refusal};
use crate::model::{BlobRef, CheckpointPart, Discard, Job, JobSpec, Upload};
use crate::state::State;

impl Step<'_> {
    /// Room is reserved before the bytes come, so that the bounds hold while they do.
    pub(super) fn record_upload(
        &mut self,
        project: ProjectId,
        digest: Digest,
        size: u64,
        complete: bool,
    ) -> Result<Answer, Refusal> {
        if !self.state.projects.contains(&project) {
            return Err(Refusal::not_found("project"));
        }
        let key = (project, digest);
        let known = self.state.uploads.get(&key).cloned();
        if let Some(known) = &known
            && known.size != size
        {
            return Err(Refusal::field("size_bytes", "content of this digest has another size"));
        }
        if known.is_none() {
            let (count, bytes) = self.state.uploaded.get(&project).copied().unwrap_or_default();
            bounded(count, self.state.settings.uploads_per_project, "uploads of one project")?;
            let most = self.state.settings.upload_bytes_per_project;
            if bytes.saturating_add(size) > most {
                let message = format!("the uploads of a project have at most {most} bytes together, {bytes} are used");
                return Err(Refusal::new(Reason::TooLarge, message));
            }
            self.state.count_upload(project, size);
        }
        let was_complete = known.is_some_and(|known| known.complete);
        let complete = complete || was_complete;
        self.state.uploads.insert(key, Upload { project, digest, size, complete, used: self.now, deleted: false });
        Ok(Answer { object: digest.to_string(), replayed: was_complete, ..Answer::default() })
    }

    /// Uploads that no job has named for long.
    pub(super) fn forget_uploads(&mut self) {
        let keep = self.state.settings.keep_uploads;
        let old = self.state.uploads.values().filter(|row| self.now.since(row.used) > keep);
        let old: Vec<_> = old.map(|row| (row.project, row.digest)).collect();
        for key in old {
            if !self.state.uses.contains_key(&key)
                && let Some(row) = self.state.uploads.get_mut(&key)
            {
                row.deleted = true;
            }
        }
    }

    /// A vault has done what it was told.
    pub(super) fn forgotten(&mut self, site: SiteId, manifests: &[Digest]) -> Result<Answer, Refusal> {
        for manifest in manifests {
            let due = self.state.discards.get(&(site, *manifest)).is_some_and(|row| row.due <= self.now);
            if due && let Some(row) = self.state.discards.get_mut(&(site, *manifest)) {
                row.done = true;
            }
        }
        Ok(Answer::default())
    }
}

/// Everything of a spec that was uploaded: the field, digest and size.
fn uploads(spec: &JobSpec) -> impl Iterator<Item = (&'static str, Digest, u64)> {
    let blob = |field| move |blob: &BlobRef| (field, blob.digest, blob.size);
    let model = spec.model.iter().map(|model| ("spec.model", model.digest, model.size));
    spec.work_dir.iter().map(blob("spec.work_dir")).chain(spec.inputs.iter().map(blob("spec.inputs"))).chain(model)
}

impl State {
    /// A digest is no right: what a job names must have been uploaded by its project.
    pub(crate) fn check_uploads(&self, project: ProjectId, spec: &JobSpec) -> Result<(), Refusal> {
        for (field, digest, size) in uploads(spec) {
            let row = self.uploads.get(&(project, digest));
            if !row.is_some_and(|row| row.complete && !row.deleted && row.size == size) {
                let message = format!("the project has no upload {digest} of {size} bytes: upload it");
                return Err(Refusal::field(field, message));
            }
        }
        Ok(())
    }

    /// A project's upload, if it is kept.
    #[must_use]
    pub fn upload(&self, project: ProjectId, digest: Digest) -> Option<&Upload> {
        self.uploads.get(&(project, digest)).filter(|row| !row.deleted)
    }

    /// All uploads, also those under way.
    pub fn uploads(&self) -> impl Iterator<Item = &Upload> {
        self.uploads.values().filter(|row| !row.deleted)
    }

    /// Manifests that the vault of `site` may delete by now, at most `limit`, the longest due first.
    #[must_use]
    pub fn discards(&self, site: SiteId, now: Timestamp, limit: usize) -> Vec<Digest> {
        let first = (site, Timestamp::default(), Digest::from_bytes([0; 32]));
        let due = self.due.range(first..).take_while(|(at, due, _)| *at == site && *due <= now);
        // What a job began with may be due by the count of the job that wrote it.
        due.map(|(.., manifest)| *manifest).filter(|manifest| !self.names_manifest(*manifest)).take(limit).collect()
    }

    pub(crate) fn count_upload(&mut self, project: ProjectId, size: u64) {
        let (count, bytes) = self.uploaded.entry(project).or_default();
        *count += 1;
        *bytes = bytes.saturating_add(size);
    }

    /// A job in memory keeps what it names.
    pub(crate) fn count_uses(&mut self, job: &Job) {
        for (_, digest, _) in uploads(&job.spec) {
            self.keep_upload(job.project, digest);
        }
    }

    /// From `due` on the vault of `site` may delete a manifest. One that may go earlier stays so.
    pub(crate) fn discard(&mut self, site: SiteId, manifest: Digest, due: Timestamp) {
        let known = self.discards.get(&(site, manifest)).filter(|row| !row.done).map(|row| row.due);
        if known.is_some_and(|known| known <= due) {
            return;
        }
        if let Some(known) = known {
            self.due.remove(&(site, known, manifest));
        }
        self.due.insert((site, due, manifest));
        self.discards.insert((site, manifest), Discard { site, manifest, due, done: false });
    }

    /// A superseded checkpoint gives up a part, at every site that has it. What another job's checkpoint names is given up
    /// with that, and what is kept until a day for the job that wrote it is kept until then.
    pub(crate) fn let_go(&mut self, part: &CheckpointPart, due: Timestamp) {
        if self.names_manifest(part.manifest) {
            return;
        }
        for site in &part.sealed {
            if self.discards.get(&(*site, part.manifest)).is_none_or(|row| row.done) {
                self.discard(*site, part.manifest, due);
            }
        }
    }

    /// A part is kept until `due`, at every site that has it, also where another job would have let it go before.
    fn keep_part(&mut self, part: &CheckpointPart, due: Timestamp) {
        for site in &part.sealed {
            let key = (*site, part.manifest);
            let known = self.discards.get(&key).filter(|row| !row.done).map(|row| row.due);
            if known.is_none_or(|known| known < due) {
                if let Some(known) = known {
                    self.due.remove(&(*site, known, part.manifest));
                }
                self.due.insert((*site, due, part.manifest));
                self.discards.insert(key, Discard { site: *site, manifest: part.manifest, due, done: false });
            }
        }
    }

    /// Whether a checkpoint in memory has this part.
    pub(crate) fn names_manifest(&self, manifest: Digest) -> bool {
        let known = self.marks.by_manifest.get(&manifest).into_iter().flatten();
        known.filter_map(|id| self.checkpoints.get(id)).any(|row| !row.retired)
    }

    /// What a job that is over leaves in vaults goes after a while.
    pub(crate) fn leave_behind(&mut self, id: sluice_types::JobId, now: Timestamp) {
        let Some(job) = self.jobs.get(&id).cloned() else { return };
        for (_, digest, _) in uploads(&job.spec) {
            self.release_upload(job.project, digest, now);
        }
        let checkpoints: Vec<_> = self.checkpoints_of.get(&id).into_iter().flatten().copied().collect();
        let rows = checkpoints.iter().filter_map(|id| self.checkpoints.get(id)).filter(|row| !row.retired);
        let parts: Vec<_> = rows.flat_map(|row| row.parts.values().cloned()).collect();
        let due = now.after(self.settings.keep_checkpoints);
        parts.iter().for_each(|part| self.keep_part(part, due));
        let attempts: Vec<_> = self.attempts_of.get(&id).into_iter().flatten().copied().collect();
        let rows = attempts.iter().filter_map(|id| self.attempts.get(id));
        let outputs: Vec<_> = rows
            .flat_map(|row| row.tasks.iter().map(|task| (row.site, task.end.as_ref())))
            .filter_map(|(site, end)| Some((site, end?.outputs_manifest?)))
            .collect();
        let due = now.after(self.settings.keep_outputs);
        outputs.into_iter().for_each(|(site, manifest)| self.discard(site, manifest, due));
    }

    /// Drops what the step marked as deleted, once its rows say so.
    pub(crate) fn forget_deleted(&mut self, rows: &Rows) {
        for row in rows.uploads.iter().filter(|row| row.deleted) {
            self.uploads.evict(&(row.project, row.digest));
            if let Some((count, bytes)) = self.uploaded.get_mut(&row.project) {
                *count = count.saturating_sub(1);
                *bytes = bytes.saturating_sub(row.size);
            }
        }
        for row in rows.discards.iter().filter(|row| row.done) {
            self.discards.evict(&(row.site, row.manifest));
            self.due.remove(&(row.site, row.due, row.manifest));
        }
    }
}
