//! Single flight: at most one writer, fetch or deletion per digest at a time, the others wait and look again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_types::Digest;
use tokio::sync::watch;

/// Who is at work on which digest. Bounded by the callers, each of which holds at most one flight of a table, and those of
/// what a manifest names only below its own.
#[derive(Debug, Default, Clone)]
pub(crate) struct Flights {
    active: Arc<Mutex<HashMap<Digest, watch::Receiver<()>>>>,
}

/// The right to be the only one at work on a digest, until dropped.
#[derive(Debug)]
pub(crate) struct Flight {
    digest: Digest,
    flights: Flights,
    // Dropped after `Drop::drop` took the entry out, so whoever it wakes finds the table free.
    _landed: watch::Sender<()>,
}

impl Flights {
    fn table(&self) -> MutexGuard<'_, HashMap<Digest, watch::Receiver<()>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flight, unless somebody else is at work on the digest.
    pub(crate) fn try_enter(&self, digest: Digest) -> Option<Flight> {
        let mut table = self.table();
        if table.contains_key(&digest) {
            return None;
        }
        let (landed, busy) = watch::channel(());
        table.insert(digest, busy);
        Some(Flight { digest, flights: self.clone(), _landed: landed })
    }

    /// Waits until nobody else is at work on the digest. Waiters have no order.
    pub(crate) async fn enter(&self, digest: Digest) -> Flight {
        loop {
            let mut busy = {
                let mut table = self.table();
                match table.get(&digest) {
                    Some(busy) => busy.clone(),
                    None => {
                        let (landed, busy) = watch::channel(());
                        table.insert(digest, busy);
                        return Flight { digest, flights: self.clone(), _landed: landed };
                    }
                }
            };
            // Nothing is ever sent: this ends, with an error, when the sender is gone.
            let _gone = busy.changed().await;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.table().remove(&self.digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_one_is_in_at_a_time() {
        let flights = Flights::default();
        let digest = Digest::from_bytes([1; 32]);
        let inside = Arc::new(Mutex::new((0u32, 0u32)));
        let tasks: Vec<_> = (0..32)
            .map(|_| {
                let (flights, inside) = (flights.clone(), inside.clone());
                tokio::spawn(async move {
                    let _flight = flights.enter(digest).await;
                    {
                        let mut now = inside.lock().unwrap();
                        now.0 += 1;
                        now.1 = now.1.max(now.0);
                    }
                    tokio::task::yield_now().await;
                    inside.lock().unwrap().0 -= 1;
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*inside.lock().unwrap(), (0, 1));
        assert!(flights.table().is_empty());
    }
}
