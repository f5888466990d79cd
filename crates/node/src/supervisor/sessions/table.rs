//! All sessions of one task: opening, finding, hanging up, forgetting.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_types::{Nanos, NodeInstant, Reason};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::ends::{self, Place};
use super::link::Sent;
use super::session::{Cursor, Due, Session, pump};
use super::wanted::Wanted;
use super::words::{Ended, Order, Program, Report};
use crate::supervisor::protocol::Refusal;

/// Sessions of one task at a time, those included that are over and not fetched.
const SESSIONS: usize = 64;
/// Orders that may wait for the init: a few for each session.
const ORDERS: usize = 4 * SESSIONS;

/// The sessions of one task; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Sessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How long a session waits for its client; `None` where the task is no sandbox for sessions.
    patience: Option<Nanos>,
    table: Mutex<Table>,
    /// Told when the init came or went.
    linked: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Table {
    open: BTreeMap<String, Entry>,
    next: u64,
    link: Option<mpsc::Sender<Sent>>,
    /// What everybody should know, also whoever comes later.
    notice: Option<String>,
    /// The init was there and is gone, or the task is over.
    over: bool,
}

#[derive(Debug)]
struct Entry {
    session: Arc<Session>,
    /// A driver's connection to an engine.
    drives: bool,
    _pump: AbortOnDropHandle<()>,
}

impl Table {
    fn order(&self, order: &Order, ends: Vec<std::os::fd::OwnedFd>) -> Result<(), Refusal> {
        let link = self.link.as_ref().ok_or_else(gone)?;
        let sent = Sent::new(order, ends);
        link.try_send(sent).map_err(|_| Refusal::new(Reason::Overloaded, "the sandbox is busy; try again"))
    }

    /// Makes room for one more where something is over and nobody is attached to it: the oldest of those goes.
    fn make_room(&mut self) -> Result<(), Refusal> {
        if self.open.len() < SESSIONS {
            return Ok(());
        }
        let left = self.open.iter().filter_map(|(id, entry)| Some((entry.session.left_since()?, id.clone())));
        let Some((_, id)) = left.min() else {
            return Err(Refusal::new(Reason::Overloaded, format!("a sandbox has at most {SESSIONS} sessions")));
        };
        self.open.remove(&id);
        Ok(())
    }
}

fn gone() -> Refusal {
    Refusal::new(Reason::WrongState, "the sandbox does not run")
}

impl Sessions {
    /// None yet. `patience` is how long one waits for its client.
    pub(crate) fn new(patience: Option<Nanos>) -> Self {
        let (table, linked) = (Mutex::default(), watch::channel(false).0);
        Self(Arc::new(Shared { patience, table, linked }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Changes are short and complete.
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Session>> {
        self.table().open.values().map(|entry| entry.session.clone()).collect()
    }

    /// Whether the task is a sandbox for sessions.
    pub(crate) fn are_wanted(&self) -> bool {
        self.0.patience.is_some()
    }

    /// The init is there; returns what it is to be sent.
    ///
    /// # Errors
    /// There is one already, or the task is no sandbox.
    pub(super) fn on_link(&self) -> Result<mpsc::Receiver<Sent>, Refusal> {
        let mut table = self.table();
        if !self.are_wanted() || table.link.is_some() || table.over {
            return Err(Refusal::new(Reason::WrongState, "no host of sessions is wanted here"));
        }
        let (to, orders) = mpsc::channel(ORDERS);
        table.link = Some(to);
        self.0.linked.send_replace(true);
        Ok(orders)
    }

    /// Waits, not for long, for an init that is on its way: its task is told to run a moment before it is heard here.
    pub(crate) async fn ready(&self, patience: Duration) {
        let mut linked = self.0.linked.subscribe();
        if self.are_wanted() && !self.table().over {
            // Late or never: whoever wants a session is told so.
            let _late = tokio::time::timeout(patience, linked.wait_for(|linked| *linked)).await;
        }
    }

    /// The init is gone, and everything that it started with it.
    pub(super) fn on_link_gone(&self) {
        let mut table = self.table();
        (table.link, table.over) = (None, true);
        for entry in table.open.values() {
            entry.session.on_exit(Ended::Failed("the sandbox ended".to_owned()));
        }
        self.0.linked.send_replace(false);
    }

    /// The init says that a program is gone. What it says of others than were opened is nothing.
    pub(super) fn on_report(&self, report: Report) {
        let found = self.all().into_iter().find(|session| session.number == report.session);
        if let Some(session) = found {
            session.on_exit(report.end);
        }
    }

    /// Attaches to a session, and opens it where there is none. `place` is asked only for that.
    ///
    /// A driver that opens a connection to an engine hangs up on those whose drivers are gone: the engine computes for
    /// nobody else, and a driver that was killed could not say that it wants no more.
    ///
    /// # Errors
    /// There is none and none was wanted; the task has no sessions; too many; descriptors ran out.
    pub(super) fn attach(
        &self,
        wanted: Wanted,
        place: Option<Place>,
        now: NodeInstant,
    ) -> Result<(Arc<Session>, Cursor), Refusal> {
        if !self.are_wanted() {
            return Err(Refusal::new(Reason::WrongState, "the task is not a rental's sandbox"));
        }
        let mut table = self.table();
        if let Some(entry) = table.open.get(&wanted.id) {
            let session = entry.session.clone();
            let cursor = session.attach(wanted.output_offset, false)?;
            drop(table);
            self.forget_replaced();
            return Ok((session, cursor));
        }
        let Some((program, size)) = wanted.program else {
            return Err(Refusal::new(Reason::NotFound, "there is no such session, or it is forgotten"));
        };
        let place = place.filter(|_| !table.over).ok_or_else(gone)?;
        table.make_room()?;
        let made = match size {
            Some(size) => ends::terminal(&place, size),
            None => ends::pipes(&place),
        };
        let failed =
            |error| Refusal::new(Reason::Internal, format!("the session's descriptors cannot be made: {error}"));
        let made = made.map_err(failed)?;
        let number = table.next;
        let drives = program == Program::Engine;
        let session = Arc::new(Session::new(number, &made.ours, program.is_ours(), now));
        let cursor = session.attach(wanted.output_offset, true)?;
        table.order(&Order::Open { session: number, program }, made.theirs)?;
        table.next += 1;
        if let Some(text) = &table.notice {
            session.notice(text);
        }
        let pump = AbortOnDropHandle::new(tokio::spawn(pump(session.clone(), made.ours)));
        table.open.insert(wanted.id, Entry { session: session.clone(), drives, _pump: pump });
        drop(table);
        self.forget_replaced();
        Ok((session, cursor))
    }

    /// An attachment is over; the session goes on, unless another driver has taken its place.
    pub(super) fn detach(&self, session: &Session, attachment: u64, now: NodeInstant) {
        session.detach(attachment, now);
        self.forget_replaced();
    }

    /// Forgets drivers' connections that nobody is attached to while a later one's driver is there. The supervisor has one
    /// thread: nobody comes between the look and what follows from it.
    fn forget_replaced(&self) {
        let all: Vec<_> = {
            let table = self.table();
            let drivers = table.open.values().filter(|entry| entry.drives);
            drivers.map(|entry| Arc::clone(&entry.session)).collect()
        };
        let newest = all.iter().filter(|session| !session.is_alone()).map(|session| session.number).max();
        let replaced = all.iter().filter(|session| session.is_alone() && Some(session.number) < newest);
        replaced.for_each(|session| self.forget(session));
    }

    /// Sends a signal to what runs in a session.
    ///
    /// # Errors
    /// The init takes no orders.
    pub(super) fn signal(&self, session: &Session, signal: i32) -> Result<(), Refusal> {
        // What is over has nobody to be signalled.
        if session.is_over() {
            return Ok(());
        }
        self.table().order(&Order::Signal { session: session.number, signal }, Vec::new())
    }

    /// Forgets a session at once; what still runs is hung up on.
    pub(super) fn forget(&self, session: &Session) {
        let mut table = self.table();
        if !session.is_over() {
            // Where the init takes no orders, closing the descriptors still tells the program.
            let _untold = table.order(&Order::HangUp { session: session.number }, Vec::new());
        }
        table.open.retain(|_, entry| entry.session.number != session.number);
        drop(table);
        session.close();
    }

    /// Time passes: sessions that nobody came back to are hung up on and, later, forgotten.
    pub(crate) fn on_time(&self, now: NodeInstant) {
        let Some(patience) = self.0.patience else { return };
        for session in self.all() {
            match session.on_time(now, patience) {
                Due::Nothing => {}
                Due::HangUp => {
                    let order = Order::HangUp { session: session.number };
                    // As above; it is forgotten in the end.
                    let _untold = self.table().order(&order, Vec::new());
                }
                Due::Forget => self.forget(&session),
            }
        }
    }

    /// Tells everybody who is attached, and whoever comes later.
    pub(crate) fn notice(&self, text: &str) {
        self.table().notice = Some(text.to_owned());
        self.all().iter().for_each(|session| session.notice(text));
    }

    /// The task is over: waits, not for long, until what the init said last is heard and every client was told the end.
    pub(crate) async fn close_down(&self, patience: Duration) {
        let mut linked = self.0.linked.subscribe();
        // What it returns locks the value and must not be kept.
        let heard = async { drop(linked.wait_for(|linked| !linked).await) };
        // One that does not hang up is of a process that is killed by now.
        let _late = tokio::time::timeout(patience, heard).await;
        self.on_link_gone();
        for session in self.all() {
            let told = async {
                let mut changes = session.changes();
                while !session.is_told() && changes.changed().await.is_ok() {}
            };
            let _late = tokio::time::timeout(patience, told).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_proto::v1;

    use super::super::session::Next;
    use super::*;

    const PATIENCE: Nanos = Nanos::from_secs(600);
    const PLACE: Place = Place { init: (1, 1), owner: None };

    fn at(secs: u64) -> NodeInstant {
        NodeInstant::from_nanos(secs * 1_000_000_000)
    }

    fn wanted(number: usize) -> Wanted {
        let program = Program::Unpack { path: String::new() };
        Wanted { id: number.to_string(), program: Some((program, None)), output_offset: 0 }
    }

    fn again(number: usize) -> Wanted {
        Wanted { program: None, ..wanted(number) }
    }

    fn run(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }

    fn orders(from: &mut mpsc::Receiver<Sent>) -> Vec<Order> {
        std::iter::from_fn(|| from.try_recv().ok()).map(|sent| serde_json::from_slice(&sent.line).unwrap()).collect()
    }

    async fn ended(session: &Session) {
        let mut changes = session.changes();
        while !session.is_over() {
            changes.changed().await.unwrap();
        }
    }

    #[test]
    fn a_session_without_a_client_is_hung_up_on_in_time_and_then_forgotten() {
        run(async {
            let sessions = Sessions::new(Some(PATIENCE));
            let mut init = sessions.on_link().unwrap();
            let (session, _cursor) = sessions.attach(wanted(0), Some(PLACE), at(0)).unwrap();
            sessions.on_time(at(100_000));
            assert_eq!(orders(&mut init).len(), 1, "somebody is attached");
            session.detach(1, at(1000));
            sessions.on_time(at(1599));
            assert!(orders(&mut init).is_empty());
            sessions.on_time(at(1600));
            assert!(matches!(orders(&mut init)[..], [Order::HangUp { session: 0 }]));
            // It ends of it, and its end can still be fetched.
            sessions.on_report(Report { session: 0, end: Ended::Signalled(1) });
            ended(&session).await;
            let (session, cursor) = sessions.attach(again(0), None, at(1700)).unwrap();
            session.detach(cursor.number(), at(1700));
            sessions.on_time(at(2299));
            let (session, cursor) = sessions.attach(again(0), None, at(2299)).unwrap();
            session.detach(cursor.number(), at(1700));
            sessions.on_time(at(2300));
            assert_eq!(sessions.attach(again(0), None, at(2300)).unwrap_err().reason, Reason::NotFound);
            assert!(orders(&mut init).is_empty(), "what is over needs no signal");
        });
    }

    #[test]
    fn one_that_does_not_care_to_be_hung_up_on_is_forgotten_all_the_same() {
        run(async {
            let sessions = Sessions::new(Some(PATIENCE));
            let mut init = sessions.on_link().unwrap();
            let (session, cursor) = sessions.attach(wanted(0), Some(PLACE), at(0)).unwrap();
            session.detach(cursor.number(), at(0));
            sessions.on_time(at(600));
            sessions.on_time(at(1199));
            assert_eq!(orders(&mut init).len(), 2);
            assert!(sessions.table().open.len() == 1);
            sessions.on_time(at(1200));
            assert!(sessions.table().open.is_empty());
            assert_eq!(orders(&mut init), [Order::HangUp { session: 0 }], "once more, for whatever it is worth");
        });
    }

    #[test]
    fn only_a_drivers_connection_makes_way_and_only_for_a_later_one() {
        run(async {
            let sessions = Sessions::new(Some(PATIENCE));
            let mut init = sessions.on_link().unwrap();
            let open = |number: usize, program| {
                let wanted = Wanted { program: Some((program, None)), ..wanted(number) };
                sessions.attach(wanted, Some(PLACE), at(0)).unwrap()
            };
            let mut hung_up = || {
                let orders = orders(&mut init).into_iter();
                orders.filter(|order| matches!(order, Order::HangUp { .. })).collect::<Vec<_>>()
            };
            let (shell, of_shell) = open(0, Program::Unpack { path: String::new() });
            sessions.detach(&shell, of_shell.number(), at(1));
            let (first, of_first) = open(1, Program::Engine);
            let (second, of_second) = open(2, Program::Engine);
            assert!(hung_up().is_empty(), "somebody is attached to each");
            sessions.detach(&second, of_second.number(), at(1));
            assert!(hung_up().is_empty(), "nobody came later");
            sessions.attach(again(1), None, at(1)).unwrap();
            sessions.detach(&first, of_first.number(), at(1));
            assert!(hung_up().is_empty(), "an attachment that was replaced");
            let (third, of_third) = open(3, Program::Engine);
            assert_eq!(hung_up(), [Order::HangUp { session: 2 }]);
            sessions.detach(&first, 2, at(2));
            assert_eq!(hung_up(), [Order::HangUp { session: 1 }]);
            // Of two that are cut off the first to come back tells which is gone.
            let (fourth, of_fourth) = open(4, Program::Engine);
            sessions.detach(&third, of_third.number(), at(3));
            assert_eq!(hung_up(), [Order::HangUp { session: 3 }]);
            sessions.detach(&fourth, of_fourth.number(), at(3));
            let (fifth, of_fifth) = open(5, Program::Engine);
            assert_eq!(hung_up(), [Order::HangUp { session: 4 }]);
            sessions.detach(&fifth, of_fifth.number(), at(4));
            sessions.attach(again(5), None, at(5)).unwrap();
            assert!(hung_up().is_empty());
            let left: Vec<_> = sessions.table().open.keys().cloned().collect();
            assert_eq!(left, ["0", "5"]);
        });
    }

    #[test]
    fn the_table_is_bounded_and_what_is_over_makes_room() {
        run(async {
            let sessions = Sessions::new(Some(PATIENCE));
            let _init = sessions.on_link().unwrap();
            let mut open = Vec::new();
            for number in 0..SESSIONS {
                open.push(sessions.attach(wanted(number), Some(PLACE), at(0)).unwrap());
            }
            let refused = sessions.attach(wanted(SESSIONS), Some(PLACE), at(1)).unwrap_err();
            assert_eq!(refused.reason, Reason::Overloaded);
            let (session, cursor) = &open[3];
            sessions.on_report(Report { session: session.number, end: Ended::Exited(0) });
            ended(session).await;
            assert!(sessions.attach(wanted(SESSIONS), Some(PLACE), at(1)).is_err(), "its client is still there");
            session.detach(cursor.number(), at(2));
            sessions.attach(wanted(SESSIONS), Some(PLACE), at(3)).unwrap();
            assert_eq!(sessions.attach(again(3), None, at(3)).unwrap_err().reason, Reason::NotFound);
        });
    }

    #[test]
    fn without_a_sandbox_or_its_init_nothing_is_opened() {
        run(async {
            let none = Sessions::new(None);
            assert!(none.on_link().is_err());
            assert_eq!(none.attach(wanted(0), Some(PLACE), at(0)).unwrap_err().reason, Reason::WrongState);
            let sessions = Sessions::new(Some(PATIENCE));
            assert_eq!(sessions.attach(wanted(0), Some(PLACE), at(0)).unwrap_err().reason, Reason::WrongState);
            let _init = sessions.on_link().unwrap();
            assert!(sessions.on_link().is_err(), "a second one");
            assert_eq!(sessions.attach(wanted(0), None, at(0)).unwrap_err().reason, Reason::WrongState);
            let (session, mut cursor) = sessions.attach(wanted(0), Some(PLACE), at(0)).unwrap();
            sessions.on_report(Report { session: 77, end: Ended::Exited(0) });
            sessions.on_link_gone();
            ended(&session).await;
            assert!(matches!(session.next(&mut cursor), Next::Say(said) if said_opened(&said)));
            let Next::Say(said) = session.next(&mut cursor) else { panic!("nothing is said") };
            let Some(v1::session_output::Message::End(end)) = said.message else { panic!("{said:?}") };
            assert_eq!((end.exit_code, end.message.as_str()), (None, "the sandbox ended"));
            assert!(sessions.on_link().is_err(), "an init that comes back");
            assert!(sessions.attach(wanted(1), Some(PLACE), at(0)).is_err());
        });
    }

    fn said_opened(said: &v1::SessionOutput) -> bool {
        matches!(&said.message, Some(v1::session_output::Message::Opened(opened)) if opened.created)
    }
}
