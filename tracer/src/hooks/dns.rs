//! Hook `dns`: a failed lookup becomes a `dns_failure`.

use hickory_proto::{
    rr::{Name, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder},
};
use tracer_common::dns::{Cause, Detail, Failure, Outcome};

use super::address;
use crate::{export::events::Details, kernel::reasons::Reasons};

/// The event's own fields.
pub fn details(record: &Failure, reasons: &Reasons) -> Details {
    let length = usize::from(record.question_len).min(record.question.len());
    let (qname, qtype) = question(&record.question[..length]);
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
        drop_reason: (record.drop_reason != 0).then(|| {
            Detail::name(record.drop_detail)
                .map_or_else(|| reasons.name(record.drop_reason.into()), str::to_owned)
        }),
        waited_seconds: record.waited_ns as f64 / 1e9,
    }
}

/// Name (no trailing dot, but `.` for the root) and type of a question on the wire. What is no
/// name comes out as escaped bytes: hostile pods send anything.
fn question(bytes: &[u8]) -> (String, String) {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(name) = Name::read(&mut decoder) else {
        return (bytes.escape_ascii().to_string(), String::new());
    };
    let mut text = name.to_ascii();
    if text.len() > 1 && text.ends_with('.') {
        text.pop();
    }
    // The library escapes what is not a host name's character; make sure of the rest.
    let text = if text.bytes().all(|b| b.is_ascii_graphic()) {
        text
    } else {
        text.as_bytes().escape_ascii().to_string()
    };
    let kind = RecordType::read(&mut decoder).map_or_else(
        |_| String::new(),
        |t| match t {
            RecordType::Unknown(number) => format!("TYPE{number}"),
            known => known.to_string(),
        },
    );
    (text, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded() {
        let (name, kind) = question(b"\x03api\x05local\x00\x00\x1c\x00\x01");
        assert_eq!((name.as_str(), kind.as_str()), ("api.local", "AAAA"));
        let (name, kind) = question(b"\x00\x00\x02\x00\x01");
        assert_eq!((name.as_str(), kind.as_str()), (".", "NS"));
        let (_, kind) = question(b"\x01a\x00\xfe\x00\x00\x01");
        assert_eq!(kind, "TYPE65024");
    }

    #[test]
    fn hostile_bytes_end_as_printable_text() {
        for bytes in [
            &b"\xc0\x00\x00\x01"[..],
            b"\x05a\n\x1b[0\x00\x00\x01\x00\x01",
            b"\x3f\xff",
            b"",
            b"\x03\xff\xfe\xfd\x00",
        ] {
            let (name, _) = question(bytes);
            assert!(
                name.bytes().all(|b| b.is_ascii_graphic() || b == b' '),
                "{name:?}"
            );
        }
    }
}
