//! What a vault did, as plain counters for the metrics page.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counters since the process started. Cheap to bump from anywhere; labels are the exporter's business.
        #[derive(Debug, Default)]
        pub struct VaultStats {
            $($(#[doc = $doc])+ pub(crate) $name: AtomicU64,)+
        }

        /// A copy of the counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct VaultFigures {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl VaultStats {
            /// Reads all counters. They are not read at one instant.
            #[must_use]
            pub fn figures(&self) -> VaultFigures {
                VaultFigures { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }

        impl VaultFigures {
            /// Name and value of each counter, in a fixed order.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

counters! {
    /// Blobs stored, from whom ever.
    blobs_stored,
    /// Blobs and manifests found damaged and set aside.
    blobs_corrupt,
    /// Blobs deleted on order.
    blobs_deleted,
    /// Uploads and transfers that ended with another digest than promised.
    digests_refused,
    /// Manifests sealed.
    manifests_sealed,
    /// Payload bytes received from nodes.
    put_bytes,
    /// Payload bytes sent to nodes and vaults.
    served_bytes,
    /// Payload bytes fetched from other sites, relayed ones included.
    fetched_bytes,
    /// Payload bytes fetched through the relay.
    relayed_bytes,
    /// Payload bytes sent up for others on relay orders.
    relay_served_bytes,
    /// Transfers that were cut before their end.
    transfers_cut,
    /// Transfers that went on from where an earlier one was cut.
    transfers_resumed,
    /// Copy orders that succeeded.
    copies_done,
    /// Copy orders that failed.
    copies_failed,
    /// Requests refused because of who asked.
    peers_refused,
    /// Links to the controller that were made.
    links_made,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
