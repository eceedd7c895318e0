//! Hook `drops`: a dropped packet becomes a `drop`.

use std::net::{IpAddr, SocketAddr};

use tracer_common::drops::{Dropped, Key};

use super::{address, text};
use crate::{export::events::Details, kernel::reasons::Reasons, pods::Identity};

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;

/// The event's own fields.
pub fn details(record: &Dropped, reasons: &Reasons) -> Details {
    let at = |words, port| {
        if record.family == 0 {
            return String::new(); // neither IPv4 nor IPv6
        }
        SocketAddr::new(address(record.family, words), port).to_string()
    };
    Details::Drop {
        reason: reasons.name(record.key.reason.into()),
        protocol: match record.protocol {
            _ if record.family == 0 => "other".to_owned(),
            IPPROTO_ICMP => "icmp".to_owned(),
            IPPROTO_TCP => "tcp".to_owned(),
            IPPROTO_UDP => "udp".to_owned(),
            IPPROTO_ICMPV6 => "icmpv6".to_owned(),
            IPPROTO_SCTP => "sctp".to_owned(),
            number => number.to_string(),
        },
        source: at(record.source, record.source_port),
        destination: at(record.destination, record.destination_port),
        device: text(&record.device),
    }
}

/// Whose packet it is, as far as the kernel knows: by its socket, else by the address that asked.
pub fn identity(key: &Key, netns: u32) -> Identity {
    Identity {
        cgroup_id: (key.family == 0 && key.cgroup_id != 0).then_some(key.cgroup_id),
        net_cookie: key.net_cookie,
        netns,
        source: source(key),
        is_forwarded: false,
    }
}

/// A loopback address is everybody's: the device's namespace decides.
fn source(key: &Key) -> Option<IpAddr> {
    let source = (key.family != 0).then(|| address(key.family, key.address))?;
    (!source.is_loopback()).then_some(source)
}
