//! For tests and benches of this and other rooms: a private PostgreSQL cluster, and rows to write.

mod cluster;
mod sample;
mod serving;

pub use cluster::{Cluster, NoCluster};
pub use sample::{RequestIds, Sample};
