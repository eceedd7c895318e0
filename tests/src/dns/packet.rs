//! The few bytes of DNS (RFC 1035) that the lab speaks. Written apart from tracer's parser on
//! purpose: what they agree on was not read by the same code.

/// Opcode of an ordinary query.
pub const QUERY: u8 = 0;
/// Another opcode, which is no lookup.
pub const STATUS: u8 = 2;

const QR: u16 = 0x8000;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;

/// A query for `name` with one question.
pub fn query(id: u16, opcode: u8, name: &str, qtype: u16) -> Vec<u8> {
    let flags = RD | u16::from(opcode) << 11;
    let mut bytes = Vec::new();
    for word in [id, flags, 1, 0, 0, 0] {
        bytes.extend(word.to_be_bytes());
    }
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("labels are short"));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(qtype.to_be_bytes());
    bytes.extend(1u16.to_be_bytes());
    bytes
}

/// What a message says, as far as the lab cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Transaction id.
    pub id: u16,
    /// An answer, not a query.
    pub answer: bool,
    /// Opcode.
    pub opcode: u8,
    /// Truncated.
    pub truncated: bool,
    /// Response code.
    pub rcode: u8,
    /// Count of answer records.
    pub answers: u16,
    /// Name asked for, without the last dot.
    pub name: String,
    /// Type asked for.
    pub qtype: u16,
}

/// Reads the header and the first question; `None` where they are not whole.
pub fn parse(bytes: &[u8]) -> Option<Message> {
    let word = |at: usize| {
        let pair = bytes.get(at..at + 2)?;
        Some(u16::from_be_bytes([pair[0], pair[1]]))
    };
    let flags = word(2)?;
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*bytes.get(at)?);
        if length == 0 {
            break;
        }
        let label = bytes.get(at + 1..at + 1 + length)?;
        labels.push(String::from_utf8_lossy(label).into_owned());
        at += 1 + length;
    }
    Some(Message {
        id: word(0)?,
        answer: flags & QR != 0,
        opcode: (flags >> 11 & 0xf) as u8,
        truncated: flags & TC != 0,
        rcode: (flags & 0xf) as u8,
        answers: word(6)?,
        name: labels.join("."),
        qtype: word(at + 1)?,
    })
}

/// The answer to `query` with this response code, and one record if `record`. What the query has
/// behind its question (EDNS) is left out.
pub fn answer(query: &[u8], rcode: u8, truncated: bool, record: bool) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0);
    let end = 12 + name.expect("own queries are whole") + 1 + 4;
    let mut bytes = query[..end].to_vec();
    bytes[6..12].fill(0);
    let flags = QR | RD | u16::from(rcode) | if truncated { TC } else { 0 };
    bytes[2..4].copy_from_slice(&flags.to_be_bytes());
    if record {
        let message = parse(query).expect("own queries are whole");
        bytes[7] = 1;
        // A pointer to the question's name, then type, class, time to live, length, address.
        bytes.extend([0xc0, 12]);
        bytes.extend(message.qtype.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 60]);
        let length: u16 = if message.qtype == super::AAAA { 16 } else { 4 };
        bytes.extend(length.to_be_bytes());
        bytes.extend(vec![1; usize::from(length)]);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let query = query(0x1234, QUERY, "ok-1.example", super::super::AAAA);
        let message = parse(&query).expect("whole");
        assert_eq!((message.id, message.answer), (0x1234, false));
        assert_eq!(message.name, "ok-1.example");
        assert_eq!(message.qtype, 28);

        let message = parse(&answer(&query, 3, true, true)).expect("whole");
        assert!(message.answer && message.truncated);
        assert_eq!((message.rcode, message.answers), (3, 1));
        assert_eq!(message.name, "ok-1.example");
        assert_eq!(parse(&query[..20]), None);
    }
}
