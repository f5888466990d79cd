//! Streams between nodes and the controller: order holds within one, and nothing else does.

use sluice_lifecycle::{Command, NodeReport};
use sluice_types::Generation;

use crate::controller::Reply;
use crate::host::Stream;
use crate::params::{HEARTBEAT, MILLI, SECOND};
use crate::sim::{Event, Sim, ToHost};

/// Reports that a broken link holds at most.
const STUCK: usize = 4096;
/// How long a node waits on a link that takes nothing.
const PATIENCE: u64 = 25 * SECOND;

impl Sim {
    pub(crate) fn delay(&mut self, host: usize) -> u64 {
        let slow = self.hosts[host].slow;
        self.dice.range(MILLI, 40 * MILLI) + if slow > 0 { self.dice.range(0, slow) } else { 0 }
    }

    fn is_cut(&self, host: usize) -> bool {
        self.hosts[host].cut || self.sites[self.hosts[host].site].cut
    }

    /// Whether sessions get through: over the stream that its agent has with the controller.
    pub(crate) fn reaches(&self, host: usize) -> bool {
        let row = &self.hosts[host];
        self.controller.memory.is_some() && row.runs_agent() && row.is_welcome() && !self.is_cut(host)
    }

    /// Dials the controller, later again where it cannot be reached.
    pub(crate) fn connect(&mut self, host: usize) {
        self.hosts[host].connecting = false;
        if !self.hosts[host].runs_agent() || self.hosts[host].stream.is_some() || self.hosts[host].gone {
            return;
        }
        if self.is_cut(host) || self.controller.memory.is_none() {
            return self.plan_connect(host, 3 * SECOND);
        }
        self.next_stream += 1;
        let id = self.next_stream;
        let at = self.now + self.delay(host);
        self.hosts[host].stream = Some(Stream {
            id,
            generation: None,
            shipped: 0,
            last_up: at,
            last_down: self.now,
            stuck_since: None,
            stuck: Vec::new(),
            lossy: false,
        });
        let incarnation = self.controller.incarnation;
        self.agenda.plan(at, Event::Hello { host, stream: id, incarnation });
        self.release_ghosts(host);
    }

    /// Reports of older streams arrive now, before or behind the new one's.
    fn release_ghosts(&mut self, host: usize) {
        let incarnation = self.controller.incarnation;
        let mut at = self.now;
        for (stream, generation, report) in std::mem::take(&mut self.hosts[host].ghosts) {
            at += self.dice.range(MILLI, SECOND);
            self.agenda.plan(at, Event::Up { host, stream, generation, report, incarnation });
        }
    }

    pub(crate) fn plan_connect(&mut self, host: usize, within: u64) {
        if !std::mem::replace(&mut self.hosts[host].connecting, true) {
            let at = self.now + self.dice.range(within / 3, within);
            self.agenda.plan(at, Event::Connect { host });
        }
    }

    pub(crate) fn on_hello(&mut self, host: usize, stream: u64) {
        let row = &self.hosts[host];
        if !row.runs_agent() {
            return;
        }
        let report = crate::cluster::hello(row, self.now);
        let command = Command::Node(row.node, Generation::ZERO, report);
        self.enqueue(command, Reply::Hello { host, stream });
    }

    pub(crate) fn send_up(&mut self, host: usize, report: NodeReport) {
        let cut = self.is_cut(host);
        let delay = self.delay(host);
        let (now, incarnation) = (self.now, self.controller.incarnation);
        let Some(stream) = self.hosts[host].stream.as_mut() else { return };
        let Some(generation) = stream.generation else { return };
        if cut || stream.stuck_since.is_some() {
            stream.stuck_since.get_or_insert(now);
            if stream.stuck.len() < STUCK {
                stream.stuck.push(report);
            }
            return;
        }
        let at = (now + delay).max(stream.last_up + 1);
        stream.last_up = at;
        let stream = stream.id;
        self.agenda.plan(at, Event::Up { host, stream, generation, report, incarnation });
    }

    /// Sends journal records that were not sent on this stream.
    pub(crate) fn ship(&mut self, host: usize) {
        let row = &mut self.hosts[host];
        let Some(stream) = row.stream.as_mut().filter(|stream| stream.generation.is_some()) else { return };
        let from = row.journal.partition_point(|record| record.journal <= stream.shipped);
        let Some(last) = row.journal.last().map(|record| record.journal) else { return };
        let records = row.journal[from..].to_vec();
        stream.shipped = stream.shipped.max(last);
        for batch in records.chunks(256) {
            self.send_up(host, NodeReport::Windows(batch.to_vec()));
        }
    }

    pub(crate) fn on_up(&mut self, host: usize, stream: u64, generation: Generation, report: NodeReport) {
        let journal = match &report {
            NodeReport::Windows(records) => records.iter().map(|record| record.journal).max(),
            _ => None,
        };
        let command = Command::Node(self.hosts[host].node, generation, report);
        self.enqueue(command, Reply::Host { host, stream, journal });
    }

    pub(crate) fn send_down(&mut self, host: usize, stream: u64, message: ToHost) {
        let cut = self.is_cut(host);
        let delay = self.delay(host);
        let now = self.now;
        let Some(open) = self.hosts[host].stream.as_mut().filter(|open| open.id == stream) else { return };
        if cut {
            open.lossy = true;
            open.stuck_since.get_or_insert(now);
            return;
        }
        let at = (now + delay).max(open.last_down + 1);
        open.last_down = at;
        self.agenda.plan(at, Event::Down { host, stream, message });
    }

    pub(crate) fn on_down(&mut self, host: usize, stream: u64, message: ToHost) {
        if !self.hosts[host].runs_agent() {
            return;
        }
        let Some(open) = self.hosts[host].stream.as_mut().filter(|open| open.id == stream) else { return };
        match message {
            ToHost::Welcome { generation, settled } => {
                open.generation = Some(generation);
                // Some nodes take only an acknowledgement for one, and send again what was settled without.
                let trusts = self.dice.chance(700);
                let first = self.hosts[host].journal.first().map_or(settled, |record| record.journal - 1);
                if let Some(open) = self.hosts[host].stream.as_mut() {
                    open.shipped = if trusts { settled } else { settled.min(first) };
                }
                if trusts {
                    self.settle_journal(host, settled);
                } else {
                    let row = &mut self.hosts[host];
                    row.next_journal = row.next_journal.max(settled + 1);
                }
                self.tell_all(host);
                self.ship(host);
            }
            _ if open.generation.is_none() => {}
            ToHost::Desired(list) => self.apply_desired(host, list),
            ToHost::Release(keys) => self.apply_release(host, keys),
            ToHost::Ack(journal) => self.settle_journal(host, journal),
        }
    }

    fn settle_journal(&mut self, host: usize, settled: u64) {
        let row = &mut self.hosts[host];
        row.next_journal = row.next_journal.max(settled + 1);
        let keep = row.journal.partition_point(|record| record.journal <= settled);
        row.journal.drain(..keep);
    }

    /// Both ends notice that the stream is over. What was on its way is lost or arrives late.
    pub(crate) fn break_stream(&mut self, host: usize) {
        if let Some(stream) = self.hosts[host].stream.take()
            && let Some(generation) = stream.generation
        {
            let keep = self.dice.chance(600);
            let reports = stream.stuck.into_iter().filter(|_| keep);
            self.hosts[host].ghosts.extend(reports.map(|report| (stream.id, generation, report)));
        }
        if self.hosts[host].runs_agent() {
            self.plan_connect(host, 3 * SECOND);
        }
    }

    /// The link works again: the stream goes on where nothing was lost and nobody gave up.
    pub(crate) fn heal_link(&mut self, host: usize) {
        if self.is_cut(host) {
            return;
        }
        let Some(stream) = self.hosts[host].stream.as_mut() else { return };
        if stream.lossy || stream.generation.is_none() {
            return self.break_stream(host);
        }
        stream.stuck_since = None;
        let stuck = std::mem::take(&mut stream.stuck);
        stuck.into_iter().for_each(|report| self.send_up(host, report));
    }

    /// The heart of a node.
    pub(crate) fn beat(&mut self, host: usize, boot: u64) {
        let now = self.now;
        let row = &self.hosts[host];
        if row.gone || !row.power || row.boot != boot {
            return;
        }
        self.agenda.plan(now + HEARTBEAT, Event::Beat { host, boot });
        if !row.agent {
            return;
        }
        self.meter(host);
        let stuck = self.hosts[host].stream.as_ref().and_then(|stream| stream.stuck_since);
        let mute = self.hosts[host]
            .stream
            .as_ref()
            .is_some_and(|stream| stream.generation.is_none() && now.saturating_sub(stream.last_up) > PATIENCE);
        if stuck.is_some_and(|since| now - since > PATIENCE) || mute {
            self.break_stream(host);
        } else if self.hosts[host].is_welcome() {
            let clock = self.hosts[host].instant(now);
            self.send_up(host, NodeReport::Heartbeat(clock));
        } else if self.hosts[host].stream.is_none() {
            self.plan_connect(host, 3 * SECOND);
        }
    }
}
