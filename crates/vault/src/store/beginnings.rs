//! Beginnings of cut transfers: kept to go on from, and the first to go when room is wanted.

use sluice_types::Digest;
use tokio::time::Instant;

use super::{BlobStore, State, blocking};

impl State {
    /// Those that nobody writes to, the oldest first, with their bytes.
    fn idle_beginnings(&self) -> Vec<(Digest, u64)> {
        let idle = self.partials.iter().filter(|(_, partial)| !partial.active);
        let mut idle: Vec<_> = idle.map(|(digest, partial)| (partial.order, *digest, partial.bytes)).collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, digest, bytes)| (digest, bytes)).collect()
    }
}

/// So many of them, in order, that they have at least so many bytes together.
fn worth(beginnings: &[(Digest, u64)], bytes: u64) -> &[(Digest, u64)] {
    let mut sum: u64 = 0;
    let enough = beginnings.iter().position(|(_, size)| {
        sum = sum.saturating_add(*size);
        sum >= bytes
    });
    &beginnings[..enough.map_or(beginnings.len(), |at| at + 1)]
}

impl BlobStore {
    /// Throws the oldest away where there are more than [`super::StoreLimits::partials`].
    pub(super) async fn bound_beginnings(&self) {
        let excess = {
            let state = self.state();
            let excess = state.partials.len().saturating_sub(self.inner.limits.partials);
            // Sorted only where it must be: this is asked for each blob.
            if excess == 0 { Vec::new() } else { state.idle_beginnings().into_iter().take(excess).collect() }
        };
        self.evict(&excess).await;
    }

    /// Throws the oldest away where so many more bytes would pass [`super::StoreLimits::total`], and that helps.
    pub(super) async fn make_room(&self, more: u64) {
        let oldest = {
            let state = self.state();
            let over = state.used.saturating_add(more).saturating_sub(self.inner.limits.total.get());
            let idle = if over == 0 { Vec::new() } else { state.idle_beginnings() };
            let all = idle.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
            if all < over { Vec::new() } else { worth(&idle, over).to_vec() }
        };
        self.evict(&oldest).await;
    }

    /// Throws the oldest away on a disk that is full, to have so many bytes, or what there is.
    pub(super) async fn make_room_on_disk(&self, bytes: u64) {
        let idle = self.state().idle_beginnings();
        self.evict(worth(&idle, bytes)).await;
    }

    /// Throws away what nobody has gone on with in [`super::StoreLimits::partial_age`].
    pub(super) async fn evict_old_beginnings(&self) {
        let now = Instant::now();
        let old: Vec<_> = {
            let state = self.state();
            let age = self.inner.limits.partial_age;
            let old = state.partials.iter().filter(|(_, partial)| !partial.active && partial.idle(now) > age);
            old.map(|(digest, partial)| (*digest, partial.bytes)).collect()
        };
        self.evict(&old).await;
    }

    async fn evict(&self, beginnings: &[(Digest, u64)]) {
        for (digest, bytes) in beginnings {
            // Its flight is not waited for: two writers that make room might wait for each other.
            let Some(flight) = self.inner.flights.try_enter(*digest) else { continue };
            {
                let mut state = self.state();
                if state.partials.get(digest).is_none_or(|partial| partial.active) {
                    continue;
                }
                state.account(*digest, None);
            }
            tracing::info!(%digest, bytes, "the beginning of a cut transfer is thrown away");
            let path = self.partial_path(digest);
            // Best effort: a file that stays is found at the next start, or by whoever stores this blob.
            let _gone = blocking(move || (std::fs::remove_file(path), flight)).await;
        }
    }
}
