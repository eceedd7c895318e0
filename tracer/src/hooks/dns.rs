//! Hook `dns`: a failed lookup becomes a `dns_failure`.

use tracer_common::dns::{Cause, Detail, Failure, Outcome};

use super::{address, question};
use crate::{export::events::Details, kernel::reasons::Reasons};

/// The event's own fields.
pub fn details(record: &Failure, reasons: &Reasons) -> Details {
    let length = usize::from(record.question_len).min(record.question.len());
    let (qname, qtype) = question::decode(&record.question[..length]);
    let server = &record.server;
    let server = std::net::SocketAddr::new(address(server.family, server.address), server.port);
    Details::DnsFailure {
        qname,
        qtype,
        server: server.to_string(),
        id: record.id,
        outcome: Outcome::ALL
            .get(usize::from(record.outcome))
            .map_or("other", |outcome| outcome.name()),
        cause: Cause::ALL
            .get(usize::from(record.cause))
            .map_or("dropped", |cause| cause.name()),
        drop_reason: drop_reason(record, reasons),
        waited_seconds: record.waited_ns as f64 / 1e9,
    }
}

fn drop_reason(record: &Failure, reasons: &Reasons) -> Option<String> {
    if record.drop_reason == 0 || record.drop_detail == Detail::NoReason as u8 {
        return None;
    }
    let name = Detail::name(record.drop_detail, record.drop_reason);
    Some(name.map_or_else(|| reasons.name(record.drop_reason.into()), str::to_owned))
}
