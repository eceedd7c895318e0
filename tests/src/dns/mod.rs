//! A DNS server that answers by script and a client that keeps count, both on raw UDP.

pub mod client;
pub mod load;
pub mod packet;
pub mod programs;
pub mod scene;
pub mod server;
pub mod truth;

pub use client::{Client, Lookup, Tally};
pub use scene::Scene;
pub use server::Server;

/// Type of an IPv4 address record.
pub const A: u16 = 1;
/// Type of an IPv6 address record.
pub const AAAA: u16 = 28;
