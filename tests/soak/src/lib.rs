//! Breaks a cluster of real processes on purpose, and checks that every promise was kept meanwhile.
//!
//! Workloads do operations and write down what came of each; a driver breaks nodes, links and mounts
//! as a seed says; at the end everything is healed, and each workload's checker holds its history
//! against what the design promises. A checker is a pure function over a history: its unit tests
//! show that it fails for histories that are not allowed.
//!
//! [`workload`] → [`shared`] ← [`fault`]; [`run`] puts them together.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod fault;
pub mod linear;
pub mod planted;
pub mod report;
pub mod run;
pub mod shared;
pub mod store;
pub mod workload;
