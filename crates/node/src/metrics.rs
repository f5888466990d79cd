//! Figures of one node agent, as plain atomics: whoever serves `/metrics` reads them.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! figures {
    ($($(#[doc = $doc:literal])+ $name:ident;)+) => {
        /// Counters and gauges. Gauges are set by the agent, counters only grow while it runs.
        #[derive(Debug, Default)]
        pub struct NodeMetrics {
            $($(#[doc = $doc])+ pub $name: AtomicU64,)+
        }

        impl NodeMetrics {
            /// Name, help and present value of every figure, for an exporter.
            #[must_use]
            pub fn figures(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name.load(Ordering::Relaxed)),)+]
            }
        }
    };
}

figures! {
    /// Tasks whose inputs are being fetched (gauge).
    tasks_preparing;
    /// Tasks ready to start (gauge).
    tasks_prepared;
    /// Tasks whose process runs (gauge).
    tasks_running;
    /// Tasks that ended and are being stored or wait to be forgotten (gauge).
    tasks_ended;
    /// Windows written to the journal.
    windows_journalled;
    /// Newest journal record that the controller settled (gauge).
    windows_acknowledged;
    /// Appends to the journal that failed and are tried again.
    journal_failures;
    /// Bytes of the journal on disk (gauge).
    journal_bytes;
    /// Checkpoints sealed in the vault.
    checkpoints_sealed;
    /// Checkpoints given up because they could not be stored.
    checkpoints_dropped;
    /// Bytes of sealed checkpoints.
    checkpoint_bytes;
    /// Streams to the controller that were accepted.
    streams_opened;
    /// Streams to the controller that broke or could not be opened.
    stream_failures;
    /// Tasks that were started.
    tasks_started;
    /// Tasks found again after a restart of the agent.
    tasks_adopted;
    /// Tasks that could not be started.
    start_failures;
    /// Log channels opened.
    channels_opened;
}

impl NodeMetrics {
    pub(crate) fn add(figure: &AtomicU64, amount: u64) {
        figure.fetch_add(amount, Ordering::Relaxed);
    }

    pub(crate) fn set(figure: &AtomicU64, value: u64) {
        figure.store(value, Ordering::Relaxed);
    }
}
