//! The system as its users meet it: one real `sluice up` per test, one test at a time.

mod budget;
mod failures;
mod gang;
mod job;
mod migrate;
mod outage;
mod partition;
mod quota;
mod rent;
mod retry;
mod support;
mod suspend;
mod tenants;
