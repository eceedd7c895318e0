//! Hook `neigh`: a refused creation becomes a `neighbour_overflow`.

use tracer_common::neigh::Overflow;

use super::{address, family_name, text};
use crate::export::events::Details;

/// The event's own fields.
pub fn details(record: Overflow) -> Details {
    let family = record.family as u16;
    Details::NeighbourOverflow {
        family: family_name(family),
        destination: address(family, record.destination).to_string(),
        device: text(&record.device),
        entries: record.entries,
        limit: record.limit,
    }
}
