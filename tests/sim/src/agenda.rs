//! What will happen, in order of time; of what happens at one instant, what was planned first goes first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events by time. The heap holds places only, because events are large and a heap moves what it holds.
pub(crate) struct Agenda<E> {
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    order: u64,
    events: Vec<Option<E>>,
    free: Vec<usize>,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), order: 0, events: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn plan(&mut self, at: u64, event: E) {
        self.order += 1;
        let place = self.free.pop().unwrap_or(self.events.len());
        match self.events.get_mut(place) {
            Some(slot) => *slot = Some(event),
            None => self.events.push(Some(event)),
        }
        self.heap.push(Reverse((at, self.order, place)));
    }

    pub(crate) fn next(&mut self) -> Option<(u64, E)> {
        let Reverse((at, _, place)) = self.heap.pop()?;
        self.free.push(place);
        Some((at, self.events.get_mut(place)?.take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_plan() {
        let mut agenda = Agenda::new();
        for (at, event) in [(3, 'd'), (1, 'a'), (2, 'b'), (2, 'c')] {
            agenda.plan(at, event);
        }
        assert_eq!(agenda.next(), Some((1, 'a')));
        agenda.plan(3, 'e');
        let rest: Vec<_> = std::iter::from_fn(|| agenda.next()).map(|(_, event)| event).collect();
        assert_eq!(rest, ['b', 'c', 'd', 'e']);
        assert!(agenda.events.len() == 4, "places are used again");
    }
}
