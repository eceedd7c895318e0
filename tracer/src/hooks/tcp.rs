//! Hook `tcp`: a failed attempt or connection becomes a `connect_failure`.

use std::net::SocketAddr;

use tracer_common::tcp::{Failure, Outcome};

use super::address;
use crate::export::events::Details;

/// The event's own fields. Who had the address is the resolver's to say.
pub fn details(record: &Failure) -> Details {
    let ends = &record.ends;
    let at = |words, port| SocketAddr::new(address(ends.family, words), port).to_string();
    Details::ConnectFailure {
        source: at(ends.source, ends.source_port),
        destination: at(ends.destination, ends.destination_port),
        backend: (record.backend_port != 0).then(|| at(record.backend, record.backend_port)),
        result: Outcome::ALL
            .get(usize::from(record.outcome))
            .map_or("other", |outcome| outcome.name()),
        last_owner: None,
        owner_gone_since: None,
        waited_seconds: (record.waited_ns != 0).then_some(record.waited_ns as f64 / 1e9),
    }
}
