//! The vaults: what is sealed at each site, and copies that take their time.

use std::collections::BTreeSet;

use sluice_lifecycle::{Command, Copy};
use sluice_types::{Digest, SiteId};

use crate::controller::Reply;
use crate::params::{MILLI, SECOND, settings};
use crate::sim::{Event, Sim};

/// Manifests that a vault deletes at a time.
const DELETE_AT_ONCE: usize = 64;

/// A site with its vault.
#[derive(Debug)]
pub(crate) struct SiteSim {
    pub(crate) id: SiteId,
    /// The vault process lives.
    pub(crate) up: bool,
    /// The site is cut off from everybody else.
    pub(crate) cut: bool,
    /// The link to other sites is slow.
    pub(crate) slow: bool,
    has: BTreeSet<Digest>,
    copying: BTreeSet<Digest>,
    greeted: u64,
    /// Since when the controller hears nothing of the vault.
    away: Option<u64>,
}

impl SiteSim {
    pub(crate) fn new(id: SiteId) -> Self {
        Self {
            id,
            up: true,
            cut: false,
            slow: false,
            has: BTreeSet::new(),
            copying: BTreeSet::new(),
            greeted: 0,
            away: None,
        }
    }

    pub(crate) fn has(&self, manifest: &Digest) -> bool {
        self.has.contains(manifest)
    }

    pub(crate) fn seal(&mut self, manifest: Digest) {
        self.has.insert(manifest);
    }
}

impl Sim {
    /// The vault's heartbeat: it says where it is, and failed copies are ordered again.
    pub(crate) fn vault_beat(&mut self, site: usize) {
        let incarnation = self.controller.incarnation;
        self.agenda.plan(self.now + 30 * SECOND, Event::VaultBeat { site, incarnation });
        let (now, timeout) = (self.now, settings().loss_timeout.get());
        let row = &mut self.sites[site];
        if !row.up || row.cut {
            row.greeted = 0;
            let (id, since) = (row.id, *row.away.get_or_insert(now));
            if now - since >= timeout {
                self.enqueue(Command::VaultAway { site: id }, Reply::Nobody);
            }
            return;
        }
        row.away = None;
        if std::mem::replace(&mut row.greeted, incarnation) != incarnation {
            let command = Command::VaultAddress { site: row.id, address: format!("vault-{site}:7000") };
            self.enqueue(command, Reply::Nobody);
        }
        self.send_copies(site);
        self.delete(site);
    }

    /// Deletes what the controller says may go, and tells so.
    fn delete(&mut self, site: usize) {
        let (now, id) = (self.stamp(), self.sites[site].id);
        let Some(memory) = self.controller.memory.as_ref() else { return };
        let manifests = memory.state.discards(id, now, DELETE_AT_ONCE);
        if manifests.is_empty() {
            return;
        }
        for manifest in &manifests {
            self.sites[site].has.remove(manifest);
            self.oracle.deleted(self.now, id, *manifest, &self.controller.store);
        }
        self.enqueue(Command::Forgotten { site: id, manifests }, Reply::Nobody);
    }

    pub(crate) fn on_copies(&mut self, site: usize, copies: Vec<Copy>) {
        if !self.sites[site].up || self.sites[site].cut {
            return;
        }
        for copy in copies {
            if self.sites[site].has(&copy.manifest) {
                self.tell_copied(site, copy.manifest);
                continue;
            }
            let source = (0..self.sites.len()).find(|other| {
                let row = &self.sites[*other];
                *other != site && row.up && !row.cut && copy.from.contains(&row.id) && row.has(&copy.manifest)
            });
            let Some(from) = source else { continue };
            if self.sites[site].copying.insert(copy.manifest) {
                let slow = if self.sites[site].slow || self.sites[from].slow { 20 } else { 1 };
                let span = self.dice.range(SECOND, 20 * SECOND) * slow;
                self.agenda.plan(self.now + span, Event::CopyDone { site, from, manifest: copy.manifest });
            }
        }
    }

    pub(crate) fn on_copy_done(&mut self, site: usize, from: usize, manifest: Digest) {
        self.sites[site].copying.remove(&manifest);
        let works = |row: &SiteSim| row.up && !row.cut;
        if works(&self.sites[site]) && works(&self.sites[from]) {
            self.sites[site].seal(manifest);
            self.oracle.stored(self.sites[site].id, manifest);
            self.tell_copied(site, manifest);
        }
    }

    fn tell_copied(&mut self, site: usize, manifest: Digest) {
        let at = self.now + self.dice.range(MILLI, 50 * MILLI);
        let incarnation = self.controller.incarnation;
        self.agenda.plan(at, Event::VaultUp { site, manifest, incarnation });
    }
}
