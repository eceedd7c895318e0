//! The user-space half of each hook: decodes its records. One module per hook, same names as in the
//! kernel half.

pub mod dns;
pub mod neigh;

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
    let mut source = None;
    let (hook, details) = match header.kind {
        event::KIND_NEIGHBOUR_OVERFLOW => {
            let overflow = whole(bytes)?;
            source = neigh::source(&overflow);
            (Hook::Neigh, neigh::details(&overflow))
        }
        event::KIND_DNS_FAILURE => (Hook::Dns, dns::details(&whole(bytes)?, reasons)),
        kind => bail!("a ring record has the unknown kind {kind}"),
    };
    Ok(Record {
        hook,
        identity: Identity {
            cgroup_id: (hook == Hook::Dns).then_some(header.cgroup_id),
            net_cookie: header.net_cookie,
            netns: header.netns,
            source,
        },
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

/// Label value of a family.
pub const fn family_name(family: u16) -> &'static str {
    if family == AF_INET { "ipv4" } else { "ipv6" }
}

/// Label values of both families, by index.
pub const FAMILY_NAMES: [&str; 2] = ["ipv4", "ipv6"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_refused_without_panic() {
        let reasons = Reasons::default();
        for length in 0..512 {
            for fill in [0u8, 1, 2, 0xff] {
                let mut bytes = vec![fill; length];
                if length > 4 {
                    bytes[..4].copy_from_slice(&[fill, 0, 1, 0]);
                }
                let _ = decode(&bytes, &reasons);
            }
        }
    }

    #[test]
    fn process_names_cannot_forge_a_line() {
        assert_eq!(text(b"a\nb\x1b[0m\0junk"), r"a\nb\x1b[0m");
    }
}
