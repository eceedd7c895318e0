//! The user-space half of each hook: decodes its records. One module per hook, same names as in the
//! kernel half.

pub mod cgroups;
pub mod dns;
pub mod drops;
pub mod neigh;
pub mod question;
pub mod tcp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use tracer_common::{AF_INET, Hook, event};
use zerocopy::{FromBytes, IntoBytes as _};

use crate::{export::events::Details, kernel::reasons::Reasons, pods::Identity};

/// A ring record, decoded but not yet attributed.
#[derive(Clone, Debug)]
pub struct Record {
    /// Which hook sent it.
    pub hook: Hook,
    /// Where it comes from.
    pub identity: Identity,
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub ktime_ns: u64,
    /// Process that asked; 0 where unknown.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// The rest.
    pub details: Details,
}

/// Decodes a ring record: length check, kind, version. Never panics, whatever the bytes.
pub fn decode(bytes: &[u8], reasons: &Reasons) -> Result<Record> {
    let Ok((header, _)) = event::Header::read_from_prefix(bytes) else {
        bail!(
            "a ring record of {} bytes is too short for its header",
            bytes.len()
        );
    };
    if header.version != event::VERSION {
        bail!(
            "a ring record has version {}, not {}",
            header.version,
            event::VERSION
        );
    }
    let mut identity = Identity {
        cgroup_id: Some(header.cgroup_id),
        net_cookie: header.net_cookie,
        netns: header.netns,
        source: None,
        is_forwarded: false,
    };
    let (hook, details) = match header.kind {
        event::KIND_NEIGHBOUR_OVERFLOW => {
            let overflow = whole(bytes)?;
            identity.cgroup_id = None;
            identity.source = neigh::source(&overflow);
            identity.is_forwarded = identity.source.is_some();
            (Hook::Neigh, neigh::details(&overflow))
        }
        event::KIND_DNS_FAILURE => (Hook::Dns, dns::details(&whole(bytes)?, reasons)),
        event::KIND_DROP => {
            let dropped: tracer_common::drops::Dropped = whole(bytes)?;
            identity = drops::identity(&dropped.key, header.netns);
            (Hook::Drops, drops::details(&dropped, reasons))
        }
        event::KIND_CONNECT_FAILURE => (Hook::Tcp, tcp::details(&whole(bytes)?)),
        kind => bail!("a ring record has the unknown kind {kind}"),
    };
    Ok(Record {
        hook,
        identity,
        ktime_ns: header.ktime_ns,
        pid: header.pid,
        comm: text(&header.comm),
        details,
    })
}

fn whole<T: FromBytes>(bytes: &[u8]) -> Result<T> {
    match T::read_from_prefix(bytes) {
        Ok((record, _)) => Ok(record),
        Err(_) => bail!(
            "a ring record of {} bytes is too short for its kind",
            bytes.len()
        ),
    }
}

/// A NUL-padded name from the kernel: whatever it holds, one line of printable text.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes[..end].escape_ascii().to_string()
}

/// An address in network byte order; IPv4 in the first word.
pub fn address(family: u16, words: [u32; 4]) -> IpAddr {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(words.as_bytes());
    if family == AF_INET {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
    } else {
        Ipv6Addr::from(bytes).into()
    }
}

/// The other way round.
pub fn words(address: IpAddr) -> [u32; 4] {
    let mut words = [0; 4];
    match address {
        IpAddr::V4(address) => words.as_mut_bytes()[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => words.as_mut_bytes().copy_from_slice(&address.octets()),
    }
    words
}

/// Label value of a family.
pub const fn family_name(family: u16) -> &'static str {
    if family == AF_INET { "ipv4" } else { "ipv6" }
}

/// Label values of both families, by index.
pub const FAMILY_NAMES: [&str; 2] = ["ipv4", "ipv6"];

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn records_of_any_bytes_are_refused_or_end_as_plain_text(
            kind in 0..6_u16,
            version in 0..3_u16,
            rest in vec(any::<u8>(), 0..600),
        ) {
            let bytes = [&kind.to_ne_bytes(), &version.to_ne_bytes(), &rest[..]].concat();
            let Ok(record) = decode(&bytes, &Reasons::default()) else {
                return Ok(());
            };
            prop_assert_eq!(version, event::VERSION);
            let json = serde_json::to_string(&record.details).unwrap();
            for text in [record.comm, json] {
                let plain = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
                prop_assert!(plain, "{:?}", text);
            }
        }

        #[test]
        fn whole_records_of_a_known_kind_are_understood(
            kind in event::KIND_NEIGHBOUR_OVERFLOW..=event::KIND_CONNECT_FAILURE,
            rest in vec(any::<u8>(), 600),
        ) {
            let version = event::VERSION.to_ne_bytes();
            let bytes = [&kind.to_ne_bytes(), &version, &rest[..]].concat();
            prop_assert!(decode(&bytes, &Reasons::default()).is_ok());
        }
    }

    #[test]
    fn process_names_cannot_forge_a_line() {
        assert_eq!(text(b"a\nb\x1b[0m\0junk"), r"a\nb\x1b[0m");
    }
}
