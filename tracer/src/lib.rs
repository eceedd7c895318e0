//! tracer finds network failures inside the kernel of a Kubernetes node, and says which pod was
//! hit, on which node, and why. The binary is a thin shell around this library.

pub mod agent;
pub mod aggregate;
pub mod cli;
pub mod client;
pub mod config;
pub mod doctor;
pub mod engine;
pub mod events_cmd;
pub mod export;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod held_log;
pub mod hooks;
pub mod kernel;
pub mod man;
pub mod moment;
pub mod output;
pub mod pods;
pub mod top;
pub mod usage;
pub mod why;
