//! TCP in the lab: clients that know how each of their attempts ended, servers, the kernel's own
//! counters, and the comparison of tracer's figures with them.

pub mod client;
pub mod kernel;
pub mod scene;
pub mod server;
pub mod truth;
pub mod ways;

pub use client::{Attempt, Ended, Means, Tally, run, run_here};
pub use scene::Scene;
pub use server::{Manner, Server};
pub use ways::every_way;
