//! Who manages what: a row that has a manager is changed by callers that speak for it only.
//!
//! A manager is a word, not a right: who may change a row at all was decided before. It keeps two doors from undoing each
//! other's work, as field managers do in Kubernetes.

use sluice_types::{JobId, Reason};

use super::Step;
use crate::command::{Answer, Caller, Managed, Refusal};
use crate::state::Happened;

/// Bytes of a manager's name.
const MAX_MANAGER: usize = 256;

impl Step<'_> {
    pub(super) fn set_manager(
        &mut self,
        caller: &Caller,
        object: &Managed,
        manager: String,
        detach: bool,
    ) -> Result<Answer, Refusal> {
        check_name(&manager)?;
        let (known, name) = self.manager_of(object)?;
        if !detach {
            self.check_manager(caller, &known, &name)?;
        }
        let version = self.id();
        match object {
            Managed::Tenant(id) => {
                if let Some(row) = self.state.tenants.get_mut(id) {
                    row.manager = manager;
                }
            }
            Managed::Quota(key) => {
                let now = self.now;
                if let Some(row) = self.state.quotas.rows.get_mut(key) {
                    (row.manager, row.version, row.updated) = (manager, version, now);
                }
            }
            Managed::Job(id) => self.hand_job(*id, manager, &caller.key.to_string()),
        }
        Ok(Answer { object: name, ..Answer::default() })
    }

    /// Gives a job another manager, with an event: whoever watches it acts by its manager.
    fn hand_job(&mut self, id: JobId, manager: String, actor: &str) {
        let Some(row) = self.state.jobs.get_mut(&id) else { return };
        if row.manager == manager {
            return;
        }
        // Not its version: the scheduler's view of it stays valid.
        let before = std::mem::replace(&mut row.manager, manager);
        let job = row.clone();
        let what = match job.manager.as_str() {
            "" => Happened::new("Detached", before, actor),
            now => Happened::new("Adopted", now, actor),
        };
        self.state.event(&job, self.now, what);
    }

    /// Who manages it, and its name.
    fn manager_of(&self, object: &Managed) -> Result<(String, String), Refusal> {
        let missing = |what| Refusal::not_found(what);
        match object {
            Managed::Tenant(id) => {
                let row = self.state.tenants.get(id).ok_or_else(|| missing("tenant"))?;
                Ok((row.manager.clone(), format!("tenants/{}", row.name)))
            }
            Managed::Quota(key) => {
                let row = self.state.quotas.rows.get(key).filter(|row| !row.deleted);
                let row = row.ok_or_else(|| missing("quota"))?;
                Ok((row.manager.clone(), self.state.quota_name(key)))
            }
            Managed::Job(id) => {
                let ended = || Refusal::new(Reason::WrongState, "the job has ended");
                let row = self.state.jobs.get(id).ok_or_else(ended)?;
                Ok((row.manager.clone(), id.to_string()))
            }
        }
    }

    /// Whether a caller may change what has this manager.
    pub(super) fn check_manager(&self, caller: &Caller, manager: &str, name: &str) -> Result<(), Refusal> {
        if manager.is_empty() || manager == caller.manager {
            return Ok(());
        }
        let message = format!("{name} is managed by {manager}: change it there, or detach it first");
        Err(Refusal::new(Reason::ManagedElsewhere, message).with("manager", manager))
    }

    /// The same for jobs, and stricter: whoever speaks for a manager that it has no more is refused too,
    /// so that what was detached is not changed by a decision from before.
    pub(super) fn check_own_manager(&self, caller: &Caller, manager: &str, name: &str) -> Result<(), Refusal> {
        if manager.is_empty() && !caller.manager.is_empty() {
            let message = format!("{name} is managed by nobody, and not by {}: it was detached", caller.manager);
            return Err(Refusal::new(Reason::ManagedElsewhere, message).with("manager", manager));
        }
        self.check_manager(caller, manager, name)
    }
}

/// Whether a text may be a manager.
pub(super) fn check_name(manager: &str) -> Result<(), Refusal> {
    if manager.len() > MAX_MANAGER || manager.contains(char::is_control) {
        return Err(Refusal::field("manager", format!("at most {MAX_MANAGER} bytes, none of them control characters")));
    }
    Ok(())
}
