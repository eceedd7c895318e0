//! The ways out: metrics, the HTTP API, the stream of events.

pub mod events;
pub mod exposition;
pub mod http;
pub mod metrics;
pub mod negotiate;
pub mod serve;
pub mod snapshot;
