//! Connection tracking's own figures, of the agent's network namespace, which is the host's.
//!
//! Entries and limit are sysctls: they need no capability, and where they do not exist the kernel
//! tracks no connections. The counters come by netlink (ctnetlink): /proc/net/stat/nf_conntrack has
//! the same, but not where CONFIG_NF_CONNTRACK_PROCFS is off, as in Debian's kernels.

use std::{fs, io, time::Duration};

use anyhow::{Context as _, Result};
use netlink_packet_core::{
    DefaultNla, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::ConntrackMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// The figures at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections in the table (`nf_conntrack_count`).
    pub entries: u32,
    /// Most that it takes (`nf_conntrack_max`); 0 is no limit.
    pub limit: u32,
    /// `None` where the kernel does not give them.
    pub counters: Option<Counters>,
}

/// Counters of the kernel (`struct ip_conntrack_stat`, net/netfilter/nf_conntrack_core.c), since
/// boot or since conntrack was loaded. Each CPU has its own of 32 bits; this is their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections whose entry could not be inserted, mostly for another packet with the same
    /// addresses and ports had been faster. The packet is dropped; before 5.10 races that were
    /// settled without a loss are counted too.
    pub insert_failed: u64,
    /// Packets dropped: no room for an entry in a full table, or such a race lost (which is in
    /// `insert_failed` too: the two do not add up); since 2024 also what the TCP tracker refuses.
    pub drops: u64,
    /// Entries of others thrown out of a full table to make room. No packet is dropped for it, so
    /// it is not among `drops`.
    pub early_drops: u64,
}

const ENTRIES: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// Numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const IPCTNL_MSG_CT_GET_STATS_CPU: u8 = 4;
const CTA_STATS_INSERT_FAILED: u16 = 9;
const CTA_STATS_DROP: u16 = 10;
const CTA_STATS_EARLY_DROP: u16 = 11;

/// Reads the figures.
#[derive(Debug, Default)]
pub struct Reader {
    /// The kernel has said no. Not asked again: each time it would look for a module.
    no_counters: bool,
}

impl Reader {
    /// The figures; `None` where the kernel tracks no connections.
    pub fn read(&mut self) -> Result<Option<Conntrack>> {
        // Before netlink, which would load a conntrack that nobody asked for.
        let (Some(entries), Some(limit)) = (sysctl(ENTRIES)?, sysctl(LIMIT)?) else {
            return Ok(None);
        };
        let counters = if self.no_counters {
            None
        } else {
            self.counters()
                .context("cannot read conntrack's counters by netlink")?
        };
        Ok(Some(Conntrack {
            entries,
            limit,
            counters,
        }))
    }

    fn counters(&mut self) -> Result<Option<Counters>> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(2)),
        )?;
        let mut request = NetlinkMessage::from(NetfilterMessage::new(
            NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
            ConntrackMessage::Other {
                message_type: IPCTNL_MSG_CT_GET_STATS_CPU,
                attributes: Vec::new(),
            },
        ));
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        request.finalize();
        let mut buffer = vec![0; request.header.length as usize];
        request.serialize(&mut buffer);
        socket.send(&buffer, 0)?;

        let mut counters = Counters::default();
        loop {
            let (datagram, _) = socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)?;
                let length = (message.header.length as usize).next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(Some(counters)),
                    NetlinkPayload::Error(error) => {
                        tracing::warn!("no counters of conntrack: the kernel says {error}");
                        self.no_counters = true;
                        return Ok(None);
                    }
                    NetlinkPayload::InnerMessage(NetfilterMessage {
                        inner:
                            NetfilterMessageInner::Conntrack(ConntrackMessage::Other {
                                attributes, ..
                            }),
                        ..
                    }) => counters.add(&attributes),
                    _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

impl Counters {
    /// Adds what one CPU has counted.
    fn add(&mut self, attributes: &[DefaultNla]) {
        for attribute in attributes {
            let counter = match attribute.kind() {
                CTA_STATS_INSERT_FAILED => &mut self.insert_failed,
                CTA_STATS_DROP => &mut self.drops,
                CTA_STATS_EARLY_DROP => &mut self.early_drops,
                _ => continue,
            };
            let mut value = [0; 4];
            if attribute.value_len() == value.len() {
                attribute.emit_value(&mut value);
                *counter += u64::from(u32::from_be_bytes(value));
            }
        }
    }
}

/// A number under /proc/sys; `None` where there is no such file.
fn sysctl(path: &str) -> Result<Option<u32>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(
            text.trim()
                .parse()
                .with_context(|| format!("{path} holds no number"))?,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {path}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_added_up_and_what_is_unknown_left_out() {
        let of = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
        let mut counters = Counters::default();
        counters.add(&[of(9, 1), of(10, u32::MAX), of(11, 3), of(99, 7)]);
        counters.add(&[of(10, 1), DefaultNla::new(9, vec![1]), of(11, 4)]);
        let wanted = Counters {
            insert_failed: 1,
            drops: 1 << 32,
            early_drops: 7,
        };
        assert_eq!(counters, wanted);
    }

    #[test]
    fn the_running_kernel_says_what_its_files_say() {
        let mut reader = Reader::default();
        let Some(figures) = reader.read().unwrap() else {
            return;
        };
        assert_eq!(Some(figures.limit), sysctl(LIMIT).unwrap());
        assert_eq!(figures.counters.is_none(), reader.no_counters);
        let summary = fs::read_to_string("/proc/net/stat/nf_conntrack");
        if let (Some(counters), Ok(text)) = (figures.counters, summary) {
            let mut lines = text.lines().map(|line| line.split_whitespace());
            let names: Vec<&str> = lines.next().unwrap().collect();
            let column = names.iter().position(|name| *name == "drop").unwrap();
            let drops: u64 = lines
                .map(|mut line| u64::from_str_radix(line.nth(column).unwrap(), 16).unwrap())
                .sum();
            assert_eq!(counters.drops, drops);
        }
    }
}
