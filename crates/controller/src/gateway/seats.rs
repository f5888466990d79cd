//! Connections that are open. When there is no room for another one, the one goes that has had no request for longest:
//! whoever opens many and asks nothing takes no place from others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All connections.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    seats: BTreeMap<u64, Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Requests of it that are let in; a connection has one at a time.
    busy: u32,
    idle_since: Instant,
    end: CancellationToken,
}

/// A connection's.
#[derive(Debug)]
pub(super) struct Seat {
    of: Arc<Seats>,
    number: u64,
    /// Told when another one needs it.
    pub(super) end: CancellationToken,
}

/// While it is kept the connection is not taken from its client.
#[derive(Debug)]
pub(super) struct Busy {
    of: Arc<Seats>,
    number: u64,
}

impl Seats {
    pub(super) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self { most: usize::try_from(most).unwrap_or(usize::MAX), taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat; `None` where all are busy.
    pub(super) fn take(self: &Arc<Self>, now: Instant) -> Option<Seat> {
        let mut taken = self.taken();
        if taken.seats.len() >= self.most {
            let idle = taken.seats.iter().filter(|(_, seat)| seat.busy == 0);
            let (number, _) = idle.min_by_key(|(number, seat)| (seat.idle_since, **number))?;
            let number = *number;
            if let Some(seat) = taken.seats.remove(&number) {
                seat.end.cancel();
            }
        }
        let (number, end) = (taken.next, CancellationToken::new());
        taken.next += 1;
        taken.seats.insert(number, Inner { busy: 0, idle_since: now, end: end.clone() });
        Some(Seat { of: Arc::clone(self), number, end })
    }
}

impl Seat {
    /// Whether a request of it is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.of.taken().seats.get(&self.number).is_some_and(|seat| seat.busy > 0)
    }

    /// A request of it was let in.
    pub(super) fn busy(&self) -> Busy {
        if let Some(seat) = self.of.taken().seats.get_mut(&self.number) {
            seat.busy += 1;
        }
        Busy { of: Arc::clone(&self.of), number: self.number }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.of.taken().seats.remove(&self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(seat) = self.of.taken().seats.get_mut(&self.number) {
            seat.busy = seat.busy.saturating_sub(1);
            seat.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_one_that_asks_nothing_for_longest_goes_and_busy_ones_stay() {
        let seats = Seats::new(3);
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(seats.take(Instant::now()).unwrap());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let busy = all[0].busy();
        let fourth = seats.take(Instant::now()).unwrap();
        assert_eq!(all.iter().map(|seat| seat.end.is_cancelled()).collect::<Vec<_>>(), [false, true, false]);
        let _others = [all[2].busy(), fourth.busy()];
        assert!(seats.take(Instant::now()).is_none(), "all are busy");
        drop(busy);
        let fifth = seats.take(Instant::now()).unwrap();
        assert!(all[0].end.is_cancelled() && !fifth.end.is_cancelled());
        drop((all, fourth, fifth));
        assert!(seats.taken().seats.is_empty());
    }
}
