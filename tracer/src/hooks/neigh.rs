//! Hook `neigh`: a refused creation becomes a `neighbour_overflow`.

use std::net::IpAddr;

use tracer_common::neigh::{Overflow, WANTED_BY_KERNEL, WANTED_BY_SOURCE};

use super::{address, family_name, text};
use crate::export::events::Details;

/// The event's own fields.
pub fn details(record: &Overflow) -> Details {
    let refused = &record.refused;
    let family = refused.family as u16;
    Details::NeighbourOverflow {
        family: family_name(family),
        destination: address(family, refused.destination).to_string(),
        device: text(&refused.device),
        entries: refused.entries,
        limit: refused.limit,
        source: source(record).map(|source| source.to_string()),
        wanted_by_kernel: record.wanted_by == WANTED_BY_KERNEL,
    }
}

/// Source of the packet that was dropped, if it was forwarded: whose refusal it is.
pub fn source(record: &Overflow) -> Option<IpAddr> {
    (record.wanted_by == WANTED_BY_SOURCE)
        .then(|| address(record.source_family as u16, record.source))
}
