//! The question of a DNS message as text: what pods put on the wire, hostile ones included.

use std::fmt::Write as _;

use hickory_proto::{
    rr::{Name, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

/// Name (no trailing dot, but `.` for the root) and type of a question on the wire. The name is in
/// presentation format (RFC 1035, section 5.1) as `dig` writes it. What is no name comes out as its
/// bytes, escaped likewise, without a type. Either way printable ASCII without a space, and at most
/// four characters for each byte.
pub fn decode(bytes: &[u8]) -> (String, String) {
    let mut text = String::with_capacity(bytes.len());
    let mut decoder = BinDecoder::new(bytes);
    let Ok(name) = Name::read(&mut decoder) else {
        escape(bytes, &mut text);
        return (text, String::new());
    };
    // Not the library's own text: that has escapes in octal, where the format has decimal.
    for label in &name {
        if !text.is_empty() {
            text.push('.');
        }
        escape(label, &mut text);
    }
    if text.is_empty() {
        text.push('.');
    }
    let kind = RecordType::read(&mut decoder).map_or_else(
        |_| String::new(),
        |kind| match kind {
            RecordType::Unknown(number) => format!("TYPE{number}"),
            known => known.to_string(),
        },
    );
    (text, kind)
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        match byte {
            b'"' | b'$' | b'(' | b')' | b'.' | b';' | b'@' | b'\\' => {
                text.push('\\');
                text.push(char::from(*byte));
            }
            byte if byte.is_ascii_graphic() => text.push(char::from(*byte)),
            byte => {
                write!(text, "\\{byte:03}").expect("a String takes every text");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};
    use proptest::{collection::vec, prelude::*};
    use tracer_common::dns::QUESTION_LEN;

    use super::*;

    #[test]
    fn names_are_decoded() {
        let question = |bytes: &[u8]| decode(bytes);
        let of = |name: &str, kind: &str| (name.to_owned(), kind.to_owned());
        assert_eq!(
            question(b"\x03api\x05local\x00\x00\x1c\x00\x01"),
            of("api.local", "AAAA")
        );
        assert_eq!(question(b"\x00\x00\x02\x00\x01"), of(".", "NS"));
        assert_eq!(question(b"\x01a\x00\xfe\x00\x00\x01"), of("a", "TYPE65024"));
        assert_eq!(question(b"\x01a\x00"), of("a", ""));
    }

    #[test]
    fn names_are_written_as_dig_writes_them() {
        let (name, _) = decode(b"\x040/25\x05_a-*b\x08\x00 \n\x7f\xff.@\\\x00");
        assert_eq!(name, r"0/25._a-*b.\000\032\010\127\255\.\@\\");
    }

    #[test]
    fn what_is_no_name_is_shown_as_bytes() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"\xc0\x00\x00\x01", r"\192\000\000\001"), // points at itself
            (b"\x3f\xffa b", r"?\255a\032b"),           // cut off
        ] {
            assert_eq!(decode(bytes), (text.to_owned(), String::new()));
        }
    }

    /// The bytes that a text in presentation format stands for, label by label: RFC 1035 read anew,
    /// apart from the library.
    fn labels(text: &str) -> Vec<Vec<u8>> {
        let mut labels = vec![Vec::new()];
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            let byte = match byte {
                b'.' => {
                    labels.push(Vec::new());
                    continue;
                }
                b'\\' => match rest.next().unwrap() {
                    first @ b'0'..=b'9' => {
                        let digits = [first, rest.next().unwrap(), rest.next().unwrap()];
                        std::str::from_utf8(&digits).unwrap().parse().unwrap()
                    }
                    other => other,
                },
                byte => byte,
            };
            labels.last_mut().unwrap().push(byte);
        }
        labels
    }

    fn is_plain(text: &str) -> bool {
        text.bytes().all(|byte| byte.is_ascii_graphic())
    }

    proptest! {
        #[test]
        fn any_bytes_end_as_plain_bounded_text(bytes in vec(any::<u8>(), 0..QUESTION_LEN)) {
            let (name, kind) = decode(&bytes);
            prop_assert!(is_plain(&name) && is_plain(&kind), "{name:?} {kind:?}");
            prop_assert!(name.len() <= (4 * bytes.len()).max(1), "{}", name.len());
            prop_assert!(kind.len() <= "TYPE65535".len().max("NSEC3PARAM".len()), "{kind}");
        }

        #[test]
        fn names_of_any_bytes_are_told_exactly(
            wanted in vec(vec(any::<u8>(), 1..=63), 1..=8),
            kind in any::<u16>(),
        ) {
            // Longer names than DNS has are no names.
            let name = Name::from_labels(wanted.iter().map(Vec::as_slice));
            prop_assume!(name.is_ok());
            let mut bytes = Vec::new();
            let mut encoder = BinEncoder::new(&mut bytes);
            name.unwrap().emit(&mut encoder).unwrap();
            bytes.extend(kind.to_be_bytes());
            let (text, _) = decode(&bytes);
            prop_assert_eq!(labels(&text), wanted, "{}", text);
        }

        #[test]
        fn names_cut_off_are_shown_byte_by_byte(
            label in vec(any::<u8>(), 1..=63),
            keep in 1..=63_usize,
        ) {
            let mut bytes = vec![label.len() as u8];
            bytes.extend(label);
            bytes.truncate(keep);
            let (text, kind) = decode(&bytes);
            prop_assert_eq!(labels(&text), [bytes], "{}", text);
            prop_assert_eq!(kind, "");
        }
    }
}
