//! What goes wrong, and how it comes back.

use crate::controller::CrashPoint;
use crate::host::Stage;
use crate::params::{HEARTBEAT, HOUR, MINUTE, SECOND};
use crate::sim::{Event, Sim};

/// A fault, or its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    ControllerCrash,
    CommitCrash(CrashPoint),
    AgentCrash,
    Reboot,
    /// Power back with an empty disk, under the same identity.
    Rebuild,
    /// The host never comes back; a fresh one joins.
    HostGone,
    CutHost,
    CutSite,
    Slow,
    SlowPlanner,
    VaultDown,
    SlowSite,
    StreamReset,
    AgentBack(usize),
    PowerOn(usize, bool),
    HealHost(usize),
    HealSite(usize),
    FastHost(usize),
    FastPlanner,
    VaultUp(usize),
    FastSite(usize),
}

/// What came of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Struck {
    /// It met something that was down already.
    Nothing,
    Once,
    /// Until this comes.
    Until(Fault),
}

impl Sim {
    pub(crate) fn plan_faults(&mut self) {
        let end = self.day.busy_hours * HOUR;
        for _ in 0..self.day.faults {
            let at = self.faults.range(10 * MINUTE, end);
            let fault = match self.faults.range(0, 27) {
                0..=3 => Fault::ControllerCrash,
                4..=5 => Fault::CommitCrash(CrashPoint::BeforeCommit),
                6..=7 => Fault::CommitCrash(CrashPoint::AfterCommit),
                8..=11 => Fault::AgentCrash,
                12..=14 => Fault::Reboot,
                15 => Fault::Rebuild,
                16 => Fault::HostGone,
                17..=19 => Fault::CutHost,
                20..=21 => Fault::CutSite,
                22 => Fault::Slow,
                23 => Fault::SlowPlanner,
                24..=25 => Fault::VaultDown,
                26 => Fault::SlowSite,
                _ => Fault::StreamReset,
            };
            self.agenda.plan(at, Event::Fault(fault));
        }
    }

    /// A short time mostly, a long one now and then.
    fn outage(&mut self) -> u64 {
        match self.faults.range(0, 3) {
            0 => self.faults.range(2 * SECOND, 25 * SECOND),
            1..=2 => self.faults.range(30 * SECOND, 10 * MINUTE),
            _ => self.faults.range(10 * MINUTE, 90 * MINUTE),
        }
    }

    pub(crate) fn on_fault(&mut self, fault: Fault) {
        self.trace.line(self.now, || format!("fault {fault:?}"));
        let span = self.outage();
        let host = self.faults.index(self.hosts.len());
        let site = self.faults.index(self.sites.len());
        let struck = self.strike(fault, host, site);
        self.fault_count += usize::from(struck != Struck::Nothing);
        if let Struck::Until(undo) = struck {
            self.agenda.plan(self.now + span, Event::Fault(undo));
        }
    }

    /// What is down already is not struck again.
    fn strike(&mut self, fault: Fault, host: usize, site: usize) -> Struck {
        let until = |strikes: bool, undo| if strikes { Struck::Until(undo) } else { Struck::Nothing };
        let once = |strikes: bool| if strikes { Struck::Once } else { Struck::Nothing };
        match fault {
            Fault::ControllerCrash => {
                let strikes = self.controller.memory.is_some();
                if strikes {
                    let down = self.faults.range(SECOND, 2 * MINUTE);
                    self.check_restart();
                    self.crash_controller(down);
                }
                once(strikes)
            }
            Fault::CommitCrash(point) => {
                // Counted when it goes off.
                self.controller.armed = Some(point);
                Struck::Nothing
            }
            Fault::AgentCrash => until(self.crash_agent(host), Fault::AgentBack(host)),
            Fault::Reboot => until(self.power_off(host), Fault::PowerOn(host, false)),
            Fault::Rebuild => until(self.power_off(host), Fault::PowerOn(host, true)),
            Fault::HostGone => once(self.lose_host(host)),
            Fault::CutHost => {
                let row = &mut self.hosts[host];
                let strikes = row.power && !std::mem::replace(&mut row.cut, true);
                until(strikes, Fault::HealHost(host))
            }
            Fault::CutSite => until(!std::mem::replace(&mut self.sites[site].cut, true), Fault::HealSite(site)),
            Fault::Slow => {
                let slow = self.faults.range(SECOND, 20 * SECOND);
                let row = &mut self.hosts[host];
                let strikes = row.power && row.slow == 0;
                if strikes {
                    row.slow = slow;
                }
                until(strikes, Fault::FastHost(host))
            }
            Fault::SlowPlanner => {
                until(!std::mem::replace(&mut self.controller.slow_planner, true), Fault::FastPlanner)
            }
            Fault::VaultDown => until(std::mem::replace(&mut self.sites[site].up, false), Fault::VaultUp(site)),
            Fault::SlowSite => until(!std::mem::replace(&mut self.sites[site].slow, true), Fault::FastSite(site)),
            Fault::StreamReset => {
                let strikes = self.hosts[host].stream.is_some();
                self.break_stream(host);
                once(strikes)
            }
            back => {
                self.undo(back);
                Struck::Nothing
            }
        }
    }

    fn undo(&mut self, back: Fault) {
        match back {
            Fault::AgentBack(host) => self.start_agent(host),
            Fault::PowerOn(host, empty) => self.power_on(host, empty),
            Fault::HealHost(host) => {
                self.hosts[host].cut = false;
                self.heal_link(host);
            }
            Fault::HealSite(site) => {
                self.sites[site].cut = false;
                (0..self.hosts.len())
                    .filter(|host| self.hosts[*host].site == site)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|host| self.heal_link(host));
            }
            Fault::FastHost(host) => self.hosts[host].slow = 0,
            Fault::FastPlanner => self.controller.slow_planner = false,
            Fault::VaultUp(site) => self.sites[site].up = true,
            Fault::FastSite(site) => self.sites[site].slow = false,
            _ => {}
        }
    }

    /// The agent dies; supervisors and jobs do not notice.
    fn crash_agent(&mut self, host: usize) -> bool {
        if !self.hosts[host].runs_agent() {
            return false;
        }
        self.hosts[host].agent = false;
        self.hosts[host].proofs.clear();
        self.break_stream(host);
        true
    }

    /// The agent starts and finds everything again on the disk.
    fn start_agent(&mut self, host: usize) {
        if self.hosts[host].agent || !self.hosts[host].power {
            return;
        }
        self.hosts[host].agent = true;
        self.readopt(host);
        self.plan_connect(host, 3 * SECOND);
    }

    fn readopt(&mut self, host: usize) {
        let leases: Vec<_> = self.hosts[host].tasks.keys().copied().collect();
        let boot = self.hosts[host].boot_id();
        for lease in leases {
            let Some(task) = self.hosts[host].tasks.get_mut(&lease) else { continue };
            task.epoch += 1;
            task.sealing = false;
            match task.stage {
                Stage::Preparing => task.stage = Stage::Fresh,
                Stage::Launching => task.stage = Stage::Prepared,
                _ => {}
            }
            if task.stage != Stage::Ended && task.boot != boot {
                task.process = false;
                let lost = crate::agent::end_with(Some(sluice_types::Reason::NodeLost), "the host restarted");
                task.end.get_or_insert(lost);
            }
            let ended = task.end.is_some();
            match (task.stage, ended) {
                (Stage::Ended, _) => {}
                (_, true) => self.begin_finish(host, lease),
                _ => {
                    let clock = self.hosts[host].clock(self.now);
                    let length = crate::params::settings().window.get();
                    let records = self.hosts[host].catch_up(lease, clock, length);
                    self.journalled(host, records);
                    self.seal_next(host, lease);
                    self.act(host, lease);
                }
            }
        }
    }

    /// Agent, supervisors and jobs end at once; what is not on the disk is gone.
    fn power_off(&mut self, host: usize) -> bool {
        if !self.hosts[host].power || self.hosts[host].gone {
            return false;
        }
        self.hosts[host].power = false;
        self.hosts[host].proofs.clear();
        self.break_stream(host);
        for (lease, task) in &mut self.hosts[host].tasks {
            task.process = false;
            self.oracle.process_gone(self.now, *lease);
        }
        let workers = self.workers.iter().filter(|(_, worker)| worker.host == host);
        let gone: Vec<_> = workers.map(|(attempt, _)| *attempt).collect();
        gone.into_iter().for_each(|attempt| self.end_worker(attempt, false));
        true
    }

    fn power_on(&mut self, host: usize, empty: bool) {
        let row = &mut self.hosts[host];
        if row.power || row.gone {
            return;
        }
        row.power = true;
        row.agent = true;
        row.boot += 1;
        row.boot_at = self.now;
        row.base = 0;
        row.stream = None;
        if empty {
            row.tasks.clear();
            row.journal.clear();
            row.next_journal = 1;
        }
        let boot = row.boot;
        self.readopt(host);
        self.agenda.plan(self.now + HEARTBEAT, Event::Beat { host, boot });
        self.plan_connect(host, 3 * SECOND);
    }

    /// Gone for good. An operator puts a fresh host in its place.
    fn lose_host(&mut self, host: usize) -> bool {
        let gone = self.hosts.iter().filter(|row| row.gone).count();
        if gone >= 2 || !self.power_off(host) {
            return false;
        }
        self.hosts[host].gone = true;
        let at = self.now + self.faults.range(MINUTE, 10 * MINUTE);
        let (site, class) = (self.hosts[host].site, self.hosts[host].class);
        self.agenda.plan(at, Event::FreshHost { site, class });
        true
    }
}
